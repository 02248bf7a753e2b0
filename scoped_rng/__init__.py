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

# Where each name is. They are imported when they are first asked for: every pytest and every Hypothesis in the
# environment imports this package for its plugin, most often to find that nothing is asked of it.
_HOMES = {
    "decorators": ("fixed_seed",),
    "errors": (
        "ConcurrentScopeError",
        "DesyncError",
        "DeterminismWarning",
        "LeakWarning",
        "RestoreError",
        "RestoreWarning",
        "ScopedRngError",
        "ScopeOrderWarning",
        "StateFormatError",
        "StateMismatchError",
        "TraceFormatError",
    ),
    "streams.registry": (
        "register_stream",
        "unregister_stream",
    ),
    "scope": (
        "deterministic",
        "isolated",
        "replay",
    ),
    "seeds": ("fold_in",),
    "state": (
        "RngState",
        "capture",
    ),
}
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
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f".{home}", __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
