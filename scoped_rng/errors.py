"""The exceptions and warnings of scoped_rng.

An error is raised for what is refused before anything is touched; a warning tells of what was repaired.
"""

from __future__ import annotations

import reprlib
import sys
import warnings
from typing import Any

__all__ = [
    "ConcurrentScopeError",
    "DesyncError",
    "DeterminismWarning",
    "LeakWarning",
    "RestoreError",
    "RestoreWarning",
    "ScopeOrderWarning",
    "ScopedRngError",
    "StateFormatError",
    "StateMismatchError",
    "TraceFormatError",
    "shown",
    "warn",
]


class ScopedRngError(Exception):
    """Catch every error that scoped_rng raises on its own account.

    Wrong arguments are plain ``TypeError`` and ``ValueError``, as everywhere in Python.
    """


class ConcurrentScopeError(ScopedRngError, RuntimeError):
    """Refuse a scope that would overlap another one without being nested in it.

    Streams are process-wide, so two scopes that are open at once in two threads or two tasks cannot both be right.
    """


class DesyncError(ScopedRngError, RuntimeError):
    """Tell, on every rank, that ranks do not agree, or differ not where they should; or that one has not come.

    Attributes:
        ranks: the global ranks that are unlike the others.
        streams: the streams that it is about.
        leaf: the path of the first value that differs, or None.
    """

    def __init__(
        self, message: str, *, ranks: tuple[int, ...] = (), streams: tuple[str, ...] = (), leaf: str | None = None
    ) -> None:
        super().__init__(message)
        self.ranks, self.streams, self.leaf = ranks, streams, leaf


class RestoreError(ScopedRngError, RuntimeError):
    """Report a stream or flag that could not be put back when a scope was left; everything else was."""


class StateFormatError(ScopedRngError, ValueError):
    """Refuse a state dict that is damaged, foreign or of another version; nothing was changed."""


class StateMismatchError(ScopedRngError, ValueError):
    """Refuse a state of devices or objects that are not here; nothing was changed."""


class TraceFormatError(ScopedRngError, ValueError):
    """Refuse a trace file that is damaged, foreign or of another version."""


class ScopeOrderWarning(RuntimeWarning):
    """Tell that scopes were left in another order than entered; the ambient state comes back all the same."""


class RestoreWarning(RuntimeWarning):
    """Tell of what could not be put back: beside the body's own exception, or of a state that does not fit here."""


class DeterminismWarning(UserWarning):
    """Tell of what is not, or can no longer be, made deterministic, and what to do about it."""


class LeakWarning(UserWarning):
    """Tell of a test that leaves a global stream moved or a flag changed (``--rng-leaks=warn``)."""


def shown(value: Any) -> str:
    """Return the ``repr`` of what a file or dict holds, cut short for a message."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no int of more than 4300 digits, and reprlib tries before it cuts
        return f"{type(value).__name__} with a very large number"


def warn(message: str, category: type[Warning]) -> None:
    """Warn of the line outside of this package that has led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__package__")).partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
