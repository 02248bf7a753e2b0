"""Scoped determinism: seed Python, NumPy and torch for a block, and put everything back after it."""

from .decorators import fixed_seed
from .errors import (
    ConcurrentScopeError,
    DeterminismWarning,
    LeakWarning,
    RestoreError,
    RestoreWarning,
    ScopedRngError,
    ScopeOrderWarning,
    StateFormatError,
    StateMismatchError,
)
from .registry import register_stream, unregister_stream
from .scope import deterministic, isolated, replay
from .seeds import fold_in
from .state import RngState, capture

__all__ = [
    "ConcurrentScopeError",
    "DeterminismWarning",
    "LeakWarning",
    "RestoreError",
    "RestoreWarning",
    "RngState",
    "ScopeOrderWarning",
    "ScopedRngError",
    "StateFormatError",
    "StateMismatchError",
    "capture",
    "deterministic",
    "fixed_seed",
    "fold_in",
    "isolated",
    "register_stream",
    "replay",
    "unregister_stream",
]
