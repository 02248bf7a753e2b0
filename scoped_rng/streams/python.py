"""Python's global stream, and which streams there are to cover without importing anything."""

from __future__ import annotations

import ctypes
import random
import struct
import sys
from collections.abc import Callable
from typing import Any

from ..dynamo import imported
from .registry import REGISTERED, Held

__all__ = [
    "PYTHON",
    "MersenneMemory",
    "PythonStream",
    "loaded_streams",
    "python_memory",
    "python_memory_is_as_known",
]


class PythonStream:
    """Hold Python's global ``random``.

    ``getstate`` and ``setstate`` turn 624 words into int objects and back, which takes 10 µs: half of a scope. The
    words are 2,500 bytes behind the object's header, and copying those takes 0.2 µs. Where a CPython does not have them
    there, or has no GIL to keep other threads out meanwhile, the public functions do it.
    """

    name = kind = "python"
    subject: Any = random

    def __init__(self, direct: bool | None = None) -> None:
        generator: random.Random = random.getstate.__self__  # type: ignore[attr-defined]
        self._generator: Any = generator
        self._memory: Any = None
        self._seed: Callable[[int], Any] = random.seed
        if python_memory_is_as_known(generator) if direct is None else direct:
            self._memory = python_memory(generator)
            # Under random.Random's own, which only looks at the kind of seed and forgets the gaussian.
            self._seed = super(random.Random, generator).seed

    def take(self) -> Any:
        if self._memory is None:
            return random.getstate()
        return self._memory.raw, self._generator.gauss_next

    def put(self, value: Any) -> None:
        if len(value) == 3:  # from the public functions, or from a state
            random.setstate(value)
        else:
            self._memory.raw, self._generator.gauss_next = value

    def seed(self, seed: int) -> None:
        self._seed(seed)
        self._generator.gauss_next = None

    def memory(self) -> Any:
        """Return the words as they lie in memory, to be looked at and not kept; None where they are not to be had."""
        return self._memory

    def as_tuple(self, value: Any) -> Any:
        """Return what `take` gave as ``random.getstate`` gives it."""
        if len(value) == 3:
            return value
        position, *words = struct.unpack("=i624I", value[0])
        return 3, (*words, position), value[1]


def python_memory(generator: random.Random) -> Any:
    return MersenneMemory.from_address(id(generator) + object.__basicsize__)  # int index; uint32 state[624]


def python_memory_is_as_known(generator: random.Random) -> bool:
    base: Any = random.Random.__base__
    if sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    if base.__basicsize__ < object.__basicsize__ + 2500:
        return False
    _, (*words, position), _ = generator.getstate()
    return bool(python_memory(generator).raw == struct.pack("=i624I", position, *words))


MersenneMemory = ctypes.c_char * 2500
PYTHON = PythonStream()


def loaded_streams(devices: Any = None) -> list[Held]:
    """Return the streams of Python, and of numpy and torch as far as they are imported already.

    For a plugin, which sees processes that never import them.
    """
    if imported("torch") is not None:
        from .ambient import ambient_streams

        streams: list[Held] = ambient_streams(devices)
        return streams
    if imported("numpy") is not None:
        from .numpy import NUMPY_STREAMS

        return [PYTHON, *NUMPY_STREAMS, *REGISTERED.values()]
    return [PYTHON, *REGISTERED.values()]
