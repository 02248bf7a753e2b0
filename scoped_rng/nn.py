"""Module buffers as something that a scope can hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.utils._python_dispatch as python_dispatch
from torch.nn.parameter import is_lazy

__all__ = ["BuffersValue", "ModuleBuffers", "ModuleTable", "without_modes"]


class ModuleTable(NamedTuple):
    """What one module has besides the contents of its buffers."""

    module: Any
    training: bool
    buffers: dict[str, Any]
    not_persistent: set[str]

    @classmethod
    def of(cls, module: Any) -> ModuleTable:
        """Return the table of ``module`` now."""
        # Only these private ones tell of buffers that are None and of persistence, and keep the order.
        return cls(module, module.training, dict(module._buffers.items()), set(module._non_persistent_buffers_set))

    def put(self) -> None:
        """Make it the table of the module."""
        self.module.training = self.training
        buffers = self.module._buffers
        if isinstance(buffers, dict):  # that of a scripted module cannot change
            buffers.clear()
            buffers.update(self.buffers)
            self.module._non_persistent_buffers_set = set(self.not_persistent)


class BuffersValue(NamedTuple):
    """A module's buffers at one moment."""

    tables: list[ModuleTable]
    copies: list[tuple[Any, Any]]  # each buffer once, however many modules share it, and a copy of it


class ModuleBuffers:
    """Hold a module's buffers, such as the running statistics of batch norm, and its modules' training mode.

    One copy of the buffers is taken, never of the parameters. There is nothing to seed.
    """

    kind = "buffers"

    def __init__(self, name: str, module: torch.nn.Module) -> None:
        self.name = name
        self.subject = module
        lazy = [name for name, buffer in module.named_buffers() if is_lazy(buffer)]
        if lazy:
            raise ValueError(
                f"{self.name} has buffers without a shape yet: {', '.join(lazy)}; run one forward pass before the scope"
            )

    def take(self) -> BuffersValue:
        tables = [ModuleTable.of(module) for module in self.subject.modules()]
        buffers = {id(buffer): buffer for table in tables for buffer in table.buffers.values() if buffer is not None}
        with without_modes():
            return BuffersValue(tables, [(buffer, buffer.detach().clone()) for buffer in buffers.values()])

    def put(self, value: BuffersValue) -> None:
        for table in value.tables:
            table.put()
        for buffer, copy in value.copies:
            with without_modes():
                if buffer.is_inference():  # which torch refuses to write to outside of inference mode
                    torch.inference_mode()(_put_buffer)(buffer, copy)
                else:
                    _put_buffer(buffer, copy)

    def seed(self, seed: int) -> None:
        """Do nothing: buffers are not random."""


def _put_buffer(buffer: torch.Tensor, copy: torch.Tensor) -> None:
    # Through .data, autograd's version counter stays as it is, and backward() behind the block works.
    alike = buffer.shape == copy.shape and buffer.dtype == copy.dtype and buffer.device == copy.device
    if alike and buffer.layout is torch.strided:
        # Of an expanded buffer each place once: torch refuses to write one several times.
        once = tuple(slice(0, 1 if stride == 0 else None) for stride in buffer.stride())
        buffer.data[once].copy_(copy[once])
    else:  # resized or cast by the body, or sparse
        buffer.data = copy.clone()


@contextlib.contextmanager
def without_modes() -> Iterator[None]:
    """Let tensors be read and written as they are, whatever dispatch modes and transforms are active.

    A fake tensor mode refuses real tensors, vmap and grad wrap them, and other modes shall not see what is not the
    user's. torch itself does it with these two, and has nothing public for it.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(getattr(python_dispatch, "_disable_current_modes", contextlib.nullcontext)())
        stack.enter_context(getattr(torch._C, "_DisableFuncTorch", contextlib.nullcontext)())
        yield
