"""Scoped determinism: seed Python, NumPy and torch for a block, and put everything back after it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decorators import fixed_seed
    from .errors import (
        ConcurrentScopeError,
        DesyncError,
        DeterminismWarning,
        LeakWarning,
        RestoreError,
        RestoreWarning,
        ScopedRngError,
        ScopeOrderWarning,
        StateFormatError,
        StateMismatchError,
        TraceFormatError,
    )
    from .scope import deterministic, isolated, replay
    from .seeds import fold_in
    from .state import RngState, capture
    from .streams.registry import register_stream, unregister_stream

# Where the names are. They are imported when one is first asked for: every pytest and every Hypothesis in the
# environment imports this package for its plugin, most often to find that nothing is asked of it.
_HOMES = ("errors", "seeds", "streams.registry", "state", "scope", "decorators")
_MODULES = ("checkpoint", "compare", "data", "distributed", "nn", "testing", "trace")

__all__ = [
    "ConcurrentScopeError",
    "DesyncError",
    "DeterminismWarning",
    "LeakWarning",
    "RestoreError",
    "RestoreWarning",
    "RngState",
    "ScopeOrderWarning",
    "ScopedRngError",
    "StateFormatError",
    "StateMismatchError",
    "TraceFormatError",
    "capture",
    "deterministic",
    "fixed_seed",
    "fold_in",
    "isolated",
    "register_stream",
    "replay",
    "unregister_stream",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    for home in _HOMES if name in __all__ else ():
        module = import_module(f".{home}", __name__)
        if name in module.__all__:
            globals()[name] = getattr(module, name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
