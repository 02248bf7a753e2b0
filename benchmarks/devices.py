"""Accelerators that are not there: a device module, registered where torch keeps that of a backend of one's own."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

__all__ = ["Counter", "devices"]


class Counter:
    """A generator of a device whose state is the 16 bytes that CUDA's has: a seed and an offset."""

    def __init__(self) -> None:
        self._state = torch.zeros(16, dtype=torch.uint8)

    def get_state(self) -> torch.Tensor:
        return self._state.clone()

    def set_state(self, state: torch.Tensor) -> None:
        self._state = state.clone()

    def manual_seed(self, seed: int) -> None:
        self._state = torch.tensor([seed, 0], dtype=torch.uint64).view(torch.uint8)


@contextlib.contextmanager
def devices(count: int, make: Callable[[], Any] = torch.Generator) -> Iterator[None]:
    """Have so many devices in the block, each with a generator of its own; CPU generators stand in."""
    module = types.SimpleNamespace(
        default_generators=tuple(make() for _ in range(count)),
        device_count=lambda: count,
        is_initialized=lambda: True,
    )
    name = torch._C._get_privateuse1_backend_name()
    setattr(torch, name, module)
    try:
        yield
    finally:
        delattr(torch, name)
