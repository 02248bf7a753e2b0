"""The adapter for user objects: what a scope needs to hold what it is given in ``also=``."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from ..dynamo import skipped
from .buffers import ModuleBuffers
from .devices import default_generators
from .registry import Direct, Held, Keyed, is_global, is_stream

__all__ = ["GeneratorStream", "RandomStateStream", "TorchGeneratorStream", "adapt_all"]


class TorchGeneratorStream(Direct):
    """Hold a ``torch.Generator`` of any device."""

    def __init__(self, name: str, subject: torch.Generator) -> None:
        super().__init__(name, "torch", subject, subject.get_state, subject.set_state, subject.manual_seed)
        self.device = subject.device.type


class GeneratorStream:
    """Hold a NumPy ``Generator``: its bit generator's state and how many children it has spawned."""

    kind = "numpy.generator"

    def __init__(self, name: str, subject: np.random.Generator) -> None:
        self.name = name
        self._bits: Any = subject.bit_generator
        self.subject = self._bits  # which another Generator may have as well
        sequence = self._bits.seed_seq
        self._sequence: Any = sequence if isinstance(sequence, np.random.SeedSequence) else None

    def take(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self._bits.state, {} if self._sequence is None else dict(self._sequence.state)

    def put(self, value: tuple[dict[str, Any], dict[str, Any]]) -> None:
        self._bits.state, spawning = value
        if self._sequence is not None and spawning:
            self._sequence.__init__(**spawning)  # its counter cannot be set in another way

    def seed(self, seed: int) -> None:
        sequence = np.random.SeedSequence(seed)
        self.put((type(self._bits)(sequence).state, dict(sequence.state)))

    def bit_generator_name(self) -> str:
        return str(self._bits.state["bit_generator"])


class RandomStateStream:
    """Hold a NumPy ``RandomState`` over any of NumPy's bit generators."""

    kind = "numpy"

    def __init__(self, name: str, subject: np.random.RandomState) -> None:
        self.name, self.subject = name, subject

    def take(self) -> dict[str, Any]:
        return self.subject.get_state(legacy=False)

    def put(self, value: dict[str, Any]) -> None:
        self.subject.set_state(value)

    def seed(self, seed: int) -> None:
        # Not public, and seed() takes no bit generator but MT19937.
        bits: Any = getattr(self.subject, "_bit_generator", None)
        kind = getattr(np.random, self.bit_generator_name()) if bits is None else type(bits)
        self.put({**kind(seed).state, "has_gauss": 0, "gauss": 0.0})

    def bit_generator_name(self) -> str:
        return str(self.take()["bit_generator"])


_numpy: Any = np.random  # whose stubs leave out get_bit_generator
# What the global functions of NumPy and torch draw from; registry knows Python's.
_GLOBAL_OBJECTS = (getattr(_numpy.mtrand, "_rand", _numpy), torch.default_generator)


def _draws_from_global(subject: Any) -> bool:
    """Return whether it is over NumPy's global bit generator, or is an accelerator's own generator."""
    bits = getattr(subject, "bit_generator", getattr(subject, "_bit_generator", None))
    if isinstance(bits, np.random.MT19937):
        return bits is _numpy.get_bit_generator()
    return isinstance(subject, torch.Generator) and any(subject is known for known in default_generators())


@skipped
def adapt_all(also: Any) -> tuple[Held, ...]:
    """Return what a scope needs to hold the user's objects ``also``: one object, or a list or tuple of them."""
    if not isinstance(also, (list, tuple)):
        also = (also,)
    return tuple(adapt(subject, position) for position, subject in enumerate(also))


def adapt(subject: Any, position: int) -> Held:
    """Return what a scope needs to hold ``subject``, seeded by ``fold_in(seed, "also", position)``.

    Raises:
        TypeError: it is none of the kinds that a scope can hold.
        ValueError: it is one of the global streams.
    """
    name = f"also[{position}]"
    if is_global(subject) or any(subject is known for known in _GLOBAL_OBJECTS) or _draws_from_global(subject):
        raise ValueError(f"{name} is {subject!r}, a global stream, which every scope covers; leave it out of also=")
    held: Held
    if isinstance(subject, torch.nn.Module):
        return ModuleBuffers(name, subject)
    if isinstance(subject, torch.Generator):
        held = TorchGeneratorStream(name, subject)
    elif isinstance(subject, np.random.Generator):
        held = GeneratorStream(name, subject)
    elif isinstance(subject, np.random.RandomState):
        held = RandomStateStream(name, subject)
    elif not is_stream(subject):
        raise TypeError(
            f"{name} is {type(subject).__name__} {subject!r}; also= takes random.Random, numpy.random.Generator, "
            "numpy.random.RandomState, torch.Generator, torch.nn.Module, or an object with the methods seed(int), "
            "getstate() and setstate(state); one of them, or a list or tuple"
        )
    else:
        kind = "python" if getattr(type(subject), "getstate", None) is random.Random.getstate else "object"
        held = Direct(name, kind, subject, subject.getstate, subject.setstate, subject.seed)
    return Keyed(held, "also", position)
