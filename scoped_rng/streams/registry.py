"""What a scope can hold, and the streams that the user adds to every scope."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from ..seeds import fold_in

__all__ = [
    "REGISTERED",
    "Direct",
    "Held",
    "Keyed",
    "is_global",
    "is_stream",
    "put_all",
    "register_stream",
    "unregister_stream",
]


class Held(Protocol):
    """What a scope can hold: a stream, the flags, or an object that the user hands over.

    ``take`` returns the value now and leaves everything as it was; ``put`` makes a value taken before the value now,
    and twice is as good as once; ``seed`` starts anew.
    """

    name: str
    kind: str  # how a state writes it down; "" for what is not part of a state
    subject: Any  # the thing itself, by which two scopes know that they hold the same

    @property
    def take(self) -> Callable[[], Any]: ...
    @property
    def put(self) -> Callable[[Any], Any]: ...
    @property
    def seed(self) -> Callable[[int], Any]: ...


class Direct:
    """Hold an object whose own methods get, set and seed its state."""

    def __init__(
        self,
        name: str,
        kind: str,
        subject: Any,
        take: Callable[[], Any],
        put: Callable[[Any], Any],
        seed: Callable[[int], Any],
    ) -> None:
        self.name, self.kind, self.subject = name, kind, subject
        self.take, self.put, self.seed = take, put, seed


class Keyed:
    """Hold a stream that is seeded with a child of the scope's seed.

    A generator of the same kind under the raw seed would repeat the global stream.
    """

    def __init__(self, held: Held, *path: str | int) -> None:
        self.name, self.kind, self.subject = held.name, held.kind, held.subject
        self.take, self.put = held.take, held.put
        self.held = held
        self._path = path

    def seed(self, seed: int) -> None:
        self.held.seed(fold_in(seed, *self._path))


def put_all(puts: Iterable[Callable[[], Any]]) -> None:
    """Call each, the later ones also where one fails, and raise the first failure; an interrupt goes before it."""
    failure: BaseException | None = None
    for put in puts:
        try:
            put()
        except BaseException as error:
            if failure is None or not isinstance(error, Exception):
                failure = error
    if failure is not None:
        raise failure


REGISTERED: dict[str, Held] = {}
METHODS = ("seed", "getstate", "setstate")
_RESERVED = ("python", "numpy", "numpy.entropy", "torch", "flags")


def register_stream(name: str, stream: Any) -> None:
    """Add a process-wide stream that every scope covers from its next entry on.

    Args:
        name: what messages and states call it.
        stream: an object with ``seed(int)``, ``getstate()`` and ``setstate(state)``. A scope with seed ``s`` seeds it
            with ``fold_in(s, "stream", name)``, an int in [0, 2**64).

    Raises:
        TypeError: ``name`` is not a str, or ``stream`` lacks one of the methods.
        ValueError: the name is taken.

    >>> import random
    >>> register_stream("dice", random.Random(6))
    >>> unregister_stream("dice")
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a stream must be a str, got {type(name).__name__} {name!r}")
    taken = (*_RESERVED, *REGISTERED)
    if name in taken or not name or ":" in name or "[" in name:  # as in "cuda:0" and "also[0]"
        raise ValueError(
            f"a stream cannot be named {name!r}: it needs a name of its own, without ':' and '['; "
            f"taken are {', '.join(taken)}"
        )
    if is_global(stream):
        raise ValueError(f"{stream!r} is a global stream, which every scope covers; register nothing for it")
    if not is_stream(stream):
        missing = [method for method in METHODS if not callable(getattr(stream, method, None))]
        raise TypeError(
            "a stream needs the methods seed(int), getstate() and setstate(state); "
            + (
                f"{type(stream).__name__} lacks {', '.join(missing)}"
                if missing
                else f"{stream!r} has no state of its own"
            )
        )
    REGISTERED[name] = Keyed(
        Direct(name, "object", stream, stream.getstate, stream.setstate, stream.seed), "stream", name
    )


def unregister_stream(name: str) -> None:
    """Take back `register_stream`; scopes that are open keep the stream until they are left.

    Raises:
        ValueError: no stream of that name is registered.
    """
    if name not in REGISTERED:
        known = ", ".join(sorted(REGISTERED)) or "none"
        raise ValueError(f"no stream is registered as {name!r}; registered: {known}")
    del REGISTERED[name]


def is_stream(stream: Any) -> bool:
    """Return whether ``stream`` has the methods of a stream and a state; a class has none, nor has the system."""
    has_state = not isinstance(stream, (type, random.SystemRandom))
    return has_state and all(callable(getattr(stream, method, None)) for method in METHODS)


def is_global(stream: Any) -> bool:
    """Return whether ``stream`` is Python's global one: the module, or the generator that its functions draw from."""
    return stream is random or stream is random.getstate.__self__  # type: ignore[attr-defined]
