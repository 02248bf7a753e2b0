"""NumPy's global streams: the legacy one, and fresh entropy. Importing this imports numpy."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.random.bit_generator as bit_generator

from ..dynamo import imported
from ..seeds import fold_in
from .python import MersenneMemory, python_memory, python_memory_is_as_known
from .registry import Held

__all__ = ["ENTROPY", "NUMPY", "NUMPY_STREAMS", "EntropySource", "EntropyStream", "NumPyStream"]


_numpy: Any = np.random  # whose stubs leave out the next two
_get_bit_generator, _set_bit_generator = _numpy.get_bit_generator, _numpy.set_bit_generator
_standard_normal = _numpy.standard_normal
_MT19937 = np.random.MT19937
_ONCE = (None,)


class NumPyStream:
    """Hold NumPy's legacy global stream: its bit generator, that one's state, and the cached gaussian.

    ``get_state`` and ``set_state`` cost 55 µs. The state of an MT19937 is 2,500 bytes at an address that its public
    ``ctypes`` interface tells, and copying those costs 0.2 µs. The cached gaussian is not among them. One draw tells
    whether there is one: if there is, it comes back and the state does not move.
    """

    name = kind = "numpy"
    subject: Any = np.random

    def __init__(self, direct: bool | None = None) -> None:
        self._memory: tuple[Any, Any] = (None, None)
        self._direct = _mt19937_memory_is_as_known() if direct is None else direct
        self._put_gaussian = _put_gaussian_alone if self._direct and _puts_gaussian_alone() else _put_gaussian
        self._put_sequence = _put_sequence_alone if _puts_sequence_alone() else _put_sequence
        # np.random.seed on the global stream itself would forget how its bit generator spawns, so another one is seeded
        # and its words are copied.
        self._seeded_bits: Any = _MT19937(0)
        self._seeded = np.random.RandomState(self._seeded_bits)
        self._seeded_memory = _memory(self._seeded_bits)
        self._python = _words_by_python()

    def _view(self, bits: Any) -> Any:
        """Return the memory of ``bits`` as a ctypes array, kept for the next call."""
        known, memory = self._memory
        if known is not bits:
            memory = _memory(bits)
            self._memory = (bits, memory)
        return memory

    def memory(self) -> Any:
        """Return the words as they lie in memory, to be looked at and not kept; None where they are not to be had."""
        bits = _get_bit_generator()
        return self._view(bits) if self._direct and type(bits) is _MT19937 else None

    def take(self) -> tuple[Any, Any, float | None, Any]:
        bits = _get_bit_generator()
        if type(bits) is not _MT19937 or not self._direct:
            return bits, _numpy.get_state(legacy=False), None, bits.seed_seq
        memory = self._view(bits)
        drawn: list[Any] = []
        with bits.lock:  # every draw holds it, so this is safe beside threads that draw
            state = memory.raw
            try:
                # extend and map run in C: no interrupt can come between the draw and keeping what it gave.
                drawn.extend(map(_standard_normal, _ONCE))
                gaussian = self._undraw(bits, memory, state, drawn)
            except BaseException:
                self._undraw(bits, memory, state, drawn)
                raise
        return bits, state, gaussian, bits.seed_seq

    def _undraw(self, bits: Any, memory: Any, state: bytes, drawn: list[Any]) -> float | None:
        """Undo the draw of `take` and return the gaussian that was cached; a second call goes on after an interrupt."""
        if not drawn:
            return None
        if len(drawn) == 1:
            drawn.append(memory.raw == state)
        gaussian, was_cached = drawn
        memory.raw = state
        _set_bit_generator(bits)  # forgets the gaussian that the draw has left
        if not was_cached:
            return None
        self._put_gaussian(gaussian)
        return float(gaussian)

    def put(self, value: Any) -> None:
        if isinstance(value, dict):  # from a state: any bit generator of that kind will do
            name, bits = value["bit_generator"], _get_bit_generator()
            bits = bits if type(bits).__name__ == name else getattr(np.random, name)(0)
            value = (bits, value, None, bits.seed_seq)
        bits, state, gaussian, sequence = value
        with bits.lock:
            _set_bit_generator(bits)  # also where the body has swapped it; forgets a cached gaussian
            if bits.seed_seq is not sequence and _pickles_seed_sequence:  # the body has called np.random.seed
                put_sequence = self._put_sequence if type(bits) is _MT19937 else _put_sequence
                put_sequence(bits, sequence)
            if isinstance(state, dict):
                _numpy.set_state(state)
                return
            self._view(bits).raw = state
            if gaussian is not None:
                self._put_gaussian(gaussian)

    def seed(self, seed: int) -> None:
        # NumPy takes larger seeds as an array of words. Of these two alone it would make the very numbers that Python
        # makes of the seed, in the same way, so there is a third.
        words = None
        if seed < 1 << 32:
            self._seeded.seed(seed)
        elif self._direct and self._python is not None and type(_get_bit_generator()) is _MT19937:
            words = self._python(seed | 1 << 64)
        else:
            self._seeded.seed([seed & 0xFFFF_FFFF, seed >> 32, 1])
        bits = _get_bit_generator()
        if not isinstance(bits, _MT19937):  # the same numbers whatever is installed outside
            bits = _MT19937(0)
        with bits.lock:
            _set_bit_generator(bits)
            if self._direct and type(bits) is _MT19937:
                self._view(bits).raw = words or self._seeded_memory.raw
            else:
                state: Any = self._seeded_bits.state
                state["bit_generator"] = type(bits).__name__  # a subclass, perhaps
                bits.state = state

    def as_dict(self, value: tuple[Any, Any, float | None, Any]) -> dict[str, Any]:
        """Return what `take` gave as the dict that ``np.random.get_state(legacy=False)`` gives."""
        _, state, gaussian, _ = value
        if isinstance(state, dict):
            return dict(state)
        key, position = np.frombuffer(state[:-4], np.uint32), int.from_bytes(state[-4:], sys.byteorder)
        bits = {"bit_generator": "MT19937", "state": {"key": key, "pos": position}}
        return {**bits, "has_gauss": int(gaussian is not None), "gauss": gaussian or 0.0}


_pickles_seed_sequence = int(np.__version__.split(".")[0]) >= 2


def _memory(bits: Any) -> Any:
    return MersenneMemory.from_address(bits.ctypes.state_address)  # uint32 key[624]; int pos


def _words_by_python() -> Callable[[int], bytes] | None:
    """Return what makes the memory of an MT19937 from a seed by Python's generator, or None where it cannot.

    It spreads the words of a seed over the state in the same way, from an int, in a third of the time that NumPy takes
    for an array: 7 µs of a scope.
    """
    generator = random.Random(0)
    if not python_memory_is_as_known(generator):
        return None
    memory, seed = python_memory(generator), super(random.Random, generator).seed

    def words(number: int) -> bytes:
        seed(number)
        raw: bytes = memory.raw
        return raw[4:] + raw[:4]  # Python has the position first

    bits: Any = _MT19937(0)
    np.random.RandomState(bits).seed([2, 3, 1])
    return words if words(2 | 3 << 32 | 1 << 64) == _memory(bits).raw else None


def _mt19937_memory_is_as_known() -> bool:
    bits: Any = _MT19937(0)
    state = bits.state["state"]
    if _memory(bits).raw != state["key"].tobytes() + int(state["pos"]).to_bytes(4, sys.byteorder):
        return False
    with bits.lock:  # which `take` draws under, so it must be reentrant
        reentrant = bits.lock.acquire(blocking=False)
        if reentrant:
            bits.lock.release()
    return bool(reentrant)


def _put_gaussian(gaussian: float, stream: Any = _numpy) -> None:
    state = stream.get_state(legacy=False)
    state["has_gauss"], state["gauss"] = 1, gaussian
    stream.set_state(state)


def _put_gaussian_alone(gaussian: float, stream: Any = _numpy) -> None:
    # set_state puts the gaussian first and then hands the rest to the bit generator, which refuses a foreign one. That
    # saves copying 624 words to and fro: 55 µs, more than a whole scope takes.
    with contextlib.suppress(ValueError):
        stream.set_state({"bit_generator": "none", "state": None, "has_gauss": 1, "gauss": gaussian})


def _puts_gaussian_alone() -> bool:
    stream, untouched = np.random.RandomState(0), np.random.RandomState(0)
    _put_gaussian_alone(0.25, stream)
    return bool(stream.standard_normal() == 0.25 and stream.random() == untouched.random())


def _put_sequence(bits: Any, sequence: Any) -> None:
    bits.__setstate__((bits.state, sequence))


def _put_sequence_alone(bits: Any, sequence: Any) -> None:
    # As with the gaussian: __setstate__ puts the sequence first and then refuses a state that is none. A suspended
    # generator whose caller has called np.random.seed would pay 55 µs twice for each of its steps.
    with contextlib.suppress(TypeError, ValueError):
        bits.__setstate__((None, sequence))


def _puts_sequence_alone() -> bool:
    bits, sequence = _MT19937(0), np.random.SeedSequence(1)
    before = _memory(bits).raw
    _put_sequence_alone(bits, sequence)
    return bool(bits.seed_seq is sequence and _memory(bits).raw == before)


class EntropySource:
    """Draw from a seed what NumPy would otherwise ask the operating system for."""

    def __init__(self, seed: int) -> None:
        self.state = (seed, 0)
        self._process = os.getpid()

    def __call__(self, bits: int) -> int:
        with _entropy_lock:
            seed, drawn = self.state
            self.state = (seed, drawn + 1)
        path: tuple[str | int, ...] = ("numpy.entropy", drawn)
        # Loader workers that are forked inside a scope start from the same state; their loader has given each a seed.
        torch = None if os.getpid() == self._process else imported("torch")
        worker = None if torch is None else torch.utils.data.get_worker_info()
        if worker is not None:
            path += ("worker", worker.seed)
        words = (fold_in(seed, *path, word) for word in range((bits + 63) // 64))
        return sum(word << 64 * place for place, word in enumerate(words)) & ((1 << bits) - 1)


_entropy_lock = threading.RLock()  # reentrant, for signal handlers
_bit_generator: Any = bit_generator
_FRESH: Any = getattr(bit_generator, "randbits", None)


class EntropyStream:
    """Hold NumPy's fresh entropy: what an unseeded ``default_rng()``, ``SeedSequence()`` or ``np.random.seed()`` draws.

    NumPy asks for it in one place, ``randbits`` of the module that makes seed sequences; there is no public hook.
    """

    name = kind = "numpy.entropy"
    subject: Any = bit_generator

    def is_seeded(self) -> bool:
        return type(_bit_generator.randbits) is EntropySource

    def take(self) -> tuple[Any, tuple[int, int] | None]:
        source = _bit_generator.randbits
        return source, source.state if type(source) is EntropySource else None

    def put(self, value: tuple[Any, tuple[int, int] | None]) -> None:
        source, state = value
        if state is not None:
            source.state = state
        if source is not _FRESH:
            # A trace watches what is not seeded, and may have ended before the scope that was entered inside it.
            source = getattr(source, "ended_with", None) or source
        _bit_generator.randbits = source

    def seed(self, seed: int) -> None:
        _bit_generator.randbits = EntropySource(seed)


NUMPY = NumPyStream()
ENTROPY = EntropyStream()
# What asks for entropy is not public; without it fresh entropy stays fresh.
NUMPY_STREAMS: list[Held] = [NUMPY, ENTROPY] if hasattr(bit_generator, "randbits") else [NUMPY]


def _before_fork() -> None:
    # A child has none of the parent's other threads: what one of them held would never be released there.
    _held_over_fork[:] = [_get_bit_generator().lock, _entropy_lock]
    for lock in _held_over_fork:
        lock.acquire()


def _after_fork() -> None:
    for lock in _held_over_fork:
        lock.release()


_held_over_fork: list[Any] = []
getattr(os, "register_at_fork", lambda **hooks: None)(  # Windows does not fork
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
)
