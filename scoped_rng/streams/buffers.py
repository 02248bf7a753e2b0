"""What a scope holds of a module: its buffers, and its modules' training mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.utils._python_dispatch as python_dispatch
from torch.nn.parameter import is_lazy

from .registry import put_all

__all__ = ["BuffersValue", "ModuleBuffers", "ModuleTable", "copies_of", "put_copies", "without_modes"]


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
            for name in self.buffers:  # deleted, and then set to something that is no buffer
                for table in (self.module._parameters, self.module._modules, vars(self.module)):
                    table.pop(name, None)
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
        return BuffersValue(tables, copies_of(buffers.values()))

    def put(self, value: BuffersValue) -> None:
        put_all([*(table.put for table in value.tables), partial(put_copies, value.copies)])

    def seed(self, seed: int) -> None:
        """Do nothing: buffers are not random."""


def copies_of(tensors: Iterable[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return each tensor and a copy of it."""
    with without_modes():
        return [(tensor, tensor.detach().clone()) for tensor in tensors]


def put_copies(copies: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Make each tensor what its copy is, behind autograd's back."""
    with without_modes():
        put_all([partial(_put_copy, tensor, copy) for tensor, copy in copies])


def _put_copy(tensor: torch.Tensor, copy: torch.Tensor) -> None:
    # torch refuses to write to an inference tensor outside of inference mode.
    with torch.inference_mode() if tensor.is_inference() else contextlib.nullcontext():
        _put_data(tensor, copy)


def _put_data(tensor: torch.Tensor, copy: torch.Tensor) -> None:
    # Through .data, autograd's version counter stays as it is, and backward() behind the block works.
    alike = tensor.shape == copy.shape and tensor.dtype == copy.dtype and tensor.device == copy.device
    if alike and tensor.layout is torch.strided:
        # Of an expanded buffer each place once: torch refuses to write one several times.
        once = tuple(slice(0, 1 if stride == 0 else None) for stride in tensor.stride())
        tensor.data[once].copy_(copy[once])
    else:  # resized or cast by the body, or sparse
        tensor.data = copy.clone()


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
