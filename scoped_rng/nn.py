"""Module buffers as something that a scope can hold."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

__all__ = ["BuffersValue", "ModuleBuffers"]


class BuffersValue(NamedTuple):
    """A module's buffers at one moment."""

    modules: list[tuple[Any, bool, dict[str, Any]]]  # each module, its training mode, its table of buffers
    copies: list[tuple[Any, Any]]  # each buffer once, however many modules share it, and a copy of it


class ModuleBuffers:
    """Hold a module's buffers, such as the running statistics of batch norm, and its modules' training mode.

    One copy of the buffers is taken, never of the parameters. There is nothing to seed.
    """

    kind = "buffers"

    def __init__(self, name: str, module: torch.nn.Module) -> None:
        self.name = name
        self.subject = module

    def take(self) -> BuffersValue:
        # _buffers, since only the table itself tells of None buffers and keeps its order when it is put back.
        modules = [(module, module.training, dict(module._buffers)) for module in self.subject.modules()]
        buffers = {id(buffer): buffer for _, _, table in modules for buffer in table.values() if buffer is not None}
        with torch.no_grad():
            return BuffersValue(modules, [(buffer, buffer.detach().clone()) for buffer in buffers.values()])

    def put(self, value: BuffersValue) -> None:
        for module, training, table in value.modules:
            module.training = training
            module._buffers.clear()
            module._buffers.update(table)
        for buffer, copy in value.copies:
            # torch refuses to write to an inference tensor outside of inference mode, but not the other way round.
            with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                # Through .data, autograd's version counter stays as it is, and backward() behind the block works.
                if buffer.layout is not torch.strided:
                    buffer.data = copy.clone()
                elif buffer.shape == copy.shape:
                    once = _each_place_once(buffer)
                    buffer.data[once].copy_(copy[once])
                else:  # resized by the body
                    buffer.data = copy.clone()

    def seed(self, seed: int) -> None:
        """Do nothing: buffers are not random."""


def _each_place_once(buffer: torch.Tensor) -> tuple[slice, ...]:
    """Return an index that has of an expanded buffer each place once: torch refuses to write one several times."""
    return tuple(slice(0, 1 if stride == 0 else None) for stride in buffer.stride())
