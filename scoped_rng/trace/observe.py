"""What the streams of random numbers are at this moment, in 64 bits each, moving none of them."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.random.bit_generator as bit_generator
import torch

from ..state.codecs import pack
from ..streams.devices import default_generators
from ..streams.numpy import ENTROPY, NUMPY, EntropySource, NumPyStream
from ..streams.python import PYTHON, PythonStream
from .file import Source
from .fingerprint import data_hash, fingerprint, text_hash
from .places import source_line

__all__ = ["Streams", "are_cheap", "numpy_state", "python_state", "torch_state"]

_C: Any = torch._C
_numpy: Any = np.random  # whose stubs leave out get_bit_generator
_get_bit_generator = _numpy.get_bit_generator
_bit_generator: Any = bit_generator
_python: Any = random.getstate.__self__  # type: ignore[attr-defined]
_NAMES = ("python", "numpy", "numpy.entropy")
_NONE: Mapping[str, int] = {}


def python_state(stream: PythonStream = PYTHON) -> int:
    """Return 64 bits of the state of Python's global stream."""
    memory, gaussian = stream.memory(), _python.gauss_next
    if memory is None:
        return text_hash(repr(random.getstate()))
    return data_hash(memory, 0 if gaussian is None else data_hash(struct.pack("<d", gaussian)))


def numpy_state(stream: NumPyStream = NUMPY) -> int:
    """Return 64 bits of the state of NumPy's global stream, but for a cached gaussian where that is not cheap."""
    memory = stream.memory()
    return text_hash(repr(pack(stream))) if memory is None else data_hash(memory)


def are_cheap(python: PythonStream = PYTHON, numpy: NumPyStream = NUMPY) -> bool:
    """Return whether the states can be looked at where they lie in memory, at every op."""
    return python.memory() is not None and numpy.memory() is not None


def torch_state(device: torch.device | None, generator: torch.Generator | None) -> dict[str, int]:
    """Return 64 bits of the state of the torch generator that an op draws from."""
    name = "torch" if generator is None else "generator"
    if generator is None:
        generator = torch.default_generator
        if device is not None and device.type != "cpu":
            device = torch.device(device.type, device.index or 0)
            generator = next((one for one in default_generators() if one.device == device), None)
    if generator is None:  # a backend without one to ask
        return {}
    with _C._DisableTorchDispatch():  # it makes a tensor
        return {name: fingerprint(generator.get_state())}


class Streams:
    """Tell which streams outside of torch have moved since they were looked at last."""

    def __init__(self) -> None:
        self.are_cheap = are_cheap()
        self.entropy = WatchedEntropy()
        self._last: tuple[int | None, ...] = (None, None, None)
        self._python = PYTHON.memory()
        self._numpy: tuple[Any, Any] = (None, None)

    def moved(self, at_any_cost: bool = True) -> Mapping[str, int]:
        """Return 64 bits of each that has moved, or of those alone where looking is cheap; this runs for every op."""
        bits, memory = self._numpy
        if bits is not _get_bit_generator():
            bits, memory = self._numpy = _get_bit_generator(), NUMPY.memory()
        python, last = self._python, self._last
        if python is not None and _python.gauss_next is None:
            of_python: int | None = data_hash(python)
        else:
            of_python = python_state() if python is not None or at_any_cost else last[0]
        if memory is not None:
            of_numpy: int | None = data_hash(memory)
        else:
            of_numpy = numpy_state() if at_any_cost else last[1]
        now = of_python, of_numpy, self.entropy.state()
        if now == last:
            return _NONE
        self._last = now
        return {name: new for name, new, old in zip(_NAMES, now, last, strict=True) if new is not None and new != old}


_ODD, _64_BITS = 0x9E3779B97F4A7C15, (1 << 64) - 1


class WatchedEntropy:
    """Note what NumPy's fresh entropy gives, and to which line.

    In a seeded scope it is a stream like others. Outside, it comes from the operating system, and stays what it is; to
    know that two runs were given different numbers, they pass through here.
    """

    def __init__(self) -> None:
        self._inner: Any = None
        self._given = 0
        self.place: Source | None = None
        self.ended_with: Any = None  # what was there before, for a scope that outlives this and puts it back

    def start(self) -> None:
        """Watch, unless a scope has seeded it."""
        source = getattr(_bit_generator, "randbits", None)
        if source is not None and not ENTROPY.is_seeded():
            self._inner, self.ended_with, _bit_generator.randbits = source, None, self

    def stop(self) -> None:
        """Leave what was there before."""
        self.ended_with = self._inner
        if getattr(_bit_generator, "randbits", None) is self:
            _bit_generator.randbits = self._inner

    def __call__(self, bits: int) -> int:
        given: int = self._inner(bits)
        self._given = data_hash(given.to_bytes(bits // 8 + 1, "little"), self._given)
        self.place = source_line()
        return given

    def state(self) -> int:
        """Return 64 bits of what it has given so far, and of where it stands in a seeded scope."""
        source = getattr(_bit_generator, "randbits", None)
        if type(source) is not EntropySource:
            return self._given
        seed, drawn = source.state
        return seed ^ self._given ^ (drawn * _ODD & _64_BITS)
