"""What an op reads, and what is known of an op before it runs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .fingerprint import fingerprint, shape_fingerprint, text_hash

__all__ = ["KNOWN", "SCRATCH", "Op", "Read", "Unwritten", "describe", "flat", "written_out"]

Tensor = torch.Tensor
Parameter = torch.nn.Parameter
_NONE: Mapping[int, int] = {}


@dataclass(frozen=True, slots=True)  # whose fields are read in a third of the time of a tuple's
class Op:
    """What is known of an op before it runs."""

    name: str
    is_silent: bool = False  # of torch's own bookkeeping, such as to rebuild what a worker has sent, whenever it comes
    is_collective: bool = False
    draws: bool = False
    reads: bool = True  # False: looks at dtypes and shapes alone
    makes_data: bool = True  # False: what it gives is another view of its input, or unwritten
    makes_memory: bool = False  # and leaves it as it was
    overwrites: frozenset[int | str] = frozenset()  # arguments that are written and not read
    moves: tuple[int, ...] = ()  # arguments of which it decides nothing: what it gives has their bits
    is_partial: bool = False  # writes a part of its first argument
    scratch: int | None = None  # the output that only its own backward reads, and that it does not write whole
    writes: tuple[tuple[int, str], ...] = ()  # all arguments that are written


# What these do is in their names alone: the schema says of all that they write their first argument.
_UNWRITTEN = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "resize_"}
_UNWRITTEN |= {"_empty_affine_quantized", "_empty_per_channel_affine_quantized"}
# These only move bits, those of the arguments at these places; so do all whose names end in _copy, of their first. What
# nobody has written stays so wherever it is moved to, until an op computes with it or decides by it.
_MOVES: dict[str, tuple[int, ...]] = dict.fromkeys(
    {"_pin_memory", "_unsafe_view", "cat", "clone", "constant_pad_nd", "embedding", "flip", "gather", "index"}
    | {"index_fill", "index_select", "masked_fill", "masked_select", "repeat", "roll", "stack", "take", "tril", "triu"},
    (0,),
)
_MOVES |= dict.fromkeys(("as_strided_scatter", "copy", "diagonal_scatter", "select_scatter", "slice_scatter"), (0, 1))
_MOVES |= {"_foreach_copy_": (1,), "copy_": (1,), "where": (1, 2), "index_put": (0, 2), "index_put_": (2,)}
_MOVES |= {"index_copy": (0, 3), "index_copy_": (3,), "scatter": (0, 3), "scatter_": (3,)}
_MOVES |= {"masked_scatter": (0, 2), "masked_scatter_": (2,)}
# These write a part of their first argument, and read none of it.
_PARTLY = {"aten::index_put_", "aten::index_copy_", "aten::index_fill_.int_Scalar", "aten::scatter_.src"}
_PARTLY |= {"aten::scatter_.value", "aten::masked_fill_.Scalar", "aten::masked_fill_.Tensor", "aten::masked_scatter_"}
# And these leave unwritten what they hand to their own backward alone: which output.
_SCRATCH = {"mkldnn_rnn_layer": 3, "_ctc_loss": 1}
_RESHAPE = {"as_strided_", "resize_", "set_", "squeeze_", "swapaxes_", "swapdims_", "t_", "transpose_", "unsqueeze_"}
_FILL = {"bernoulli_", "cauchy_", "copy_", "exponential_", "fill_", "geometric_", "log_normal_", "normal_", "random_"}
_FILL |= {"uniform_", "zero_", "_foreach_copy_", "_foreach_zero_"}
# And of these it does not say it: batch norm changes them in training.
_RUNNING = {"running_mean", "running_var"}


def describe(func: Any) -> Op:
    schema = getattr(func, "_schema", None)
    if schema is None:  # of a higher order
        return _remember(func, Op(str(func)))
    name = func.name()
    space, _, base = name.partition(".")[0].rpartition("::")
    writes, overwrites = [], set()
    for index, argument in enumerate(schema.arguments):
        if argument.name == "noise" and base.startswith("rrelu"):  # for its own backward, and in eval never written
            overwrites |= {index, argument.name}
            continue
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        if is_written or argument.name in _RUNNING:
            writes.append((index, argument.name))
        if is_written and (argument.is_out or (index == 0 and base in _FILL)):
            overwrites |= {index, argument.name}
    is_view = any(given.alias_info is not None and not given.alias_info.is_write for given in schema.returns)
    is_view = is_view or base in _RESHAPE
    makes_memory = base in _UNWRITTEN
    op = Op(
        name,
        space in ("prim", "profiler") or name == "aten::set_.source_Storage_storage_offset",
        space in ("c10d", "_c10d_functional") and base != "wait_tensor",
        torch.Tag.nondeterministic_seeded in func.tags,
        # By lift_fresh, a view, enters what torch.tensor() and torch.from_numpy() make.
        base == "lift_fresh" or not (is_view or makes_memory or base.startswith("new_") or base.endswith("_like")),
        not (is_view or makes_memory),
        makes_memory,
        frozenset(overwrites),
        () if "reduce" in name else _moves(space, base),
        name in _PARTLY,
        _SCRATCH.get(base),
        tuple(writes),
    )
    return _remember(func, op)


def _moves(space: str, base: str) -> tuple[int, ...]:
    if space == "quantized" and base.endswith("_prepack"):
        return 0, 1  # weight and bias, into another order
    return _MOVES.get(base) or ((0,) if base.endswith("_copy") else ())


# By identity, since torch hashes an op in Python. There are a few thousand of them, and each is kept.
KNOWN: dict[int, tuple[Op, Any]] = {}


def _remember(func: Any, op: Op) -> Op:
    KNOWN[id(func)] = op, func
    return op


SCRATCH = -1  # in the place of a record, of memory that only its own backward reads


class Unwritten(dict[int, tuple[Any, int, list[tuple[int, int]]]]):
    """The memory that no op has written yet, by its storage: which record has made it, and which bytes are written."""

    def add(self, tensor: Tensor, index: int) -> None:
        owner = storage_of(tensor)
        key = id(owner)
        self[key] = weakref.ref(owner, lambda _: self.pop(key, None)), index, []

    def made(self, tensor: Tensor) -> int | None:
        """Return the record that made the memory of a tensor, if no op has written it."""
        found = self.get(id(storage_of(tensor)))
        if found is None:
            return None
        _, index, written = found
        if written:
            begin, end = _extent(tensor)
            if any(first <= begin and end <= last for first, last in written):
                return None
        return index

    def write(self, tensor: Tensor) -> None:
        """Note memory that has been written, and forget what has been written whole."""
        owner = storage_of(tensor)
        found = self.get(id(owner))
        if found is None:
            return
        if owner is tensor or tensor.nbytes >= owner.nbytes():
            del self[id(owner)]
        elif tensor.is_contiguous():
            _, _, written = found
            begin, end = _extent(tensor)
            apart = [(first, last) for first, last in written if last < begin or end < first]
            joined = [(begin, end), *(each for each in written if each not in apart)]
            begin, end = min(first for first, _ in joined), max(last for _, last in joined)
            written[:] = [*apart, (begin, end)]
            if end - begin >= owner.nbytes():
                del self[id(owner)]


def _extent(tensor: Tensor) -> tuple[Any, Any]:
    """Return from where to where in its storage a tensor reaches, in bytes."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin, size = tensor.storage_offset(), tensor.element_size()
    return begin * size, (begin + last + 1) * size


def storage_of(tensor: Any) -> Any:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse
        return tensor


class Read:
    """What an op reads: fingerprints of tensors, and the rest written out."""

    __slots__ = ("accumulates", "inputs", "moved", "scalars", "unwritten")

    def __init__(self) -> None:
        self.inputs: list[int] = []
        self.scalars: list[str] = []
        self.unwritten: Mapping[int, int] = _NONE
        self.accumulates = False
        self.moved: int | None = None  # what made the memory that is moved as it is, and not read

    def arguments(self, op: Op, args: Any, kwargs: Mapping[str, Any], memory: Unwritten) -> None:
        """Add all arguments of an op but those that it overwrites."""
        overwrites, reads = op.overwrites, op.reads
        if not memory and not overwrites:
            self.values(args, reads)
        else:
            accumulates = self.accumulates = len(args) > 3 and args[3] is True  # the last argument of index_put_
            if op.is_partial and not accumulates and memory.made(args[0]) is not None:
                overwrites = overwrites | {0}
            for place, value in enumerate(args):
                if place not in overwrites:
                    self.values((value,), reads, memory, place in op.moves and not accumulates)
        for name, value in kwargs.items():
            if type(value) in _NUMBERS:
                self.scalars.append(f"{name}={value!r}")
            elif name not in overwrites:
                count = len(self.scalars)
                self.values((value,), reads, memory)
                if len(self.scalars) > count:
                    self.scalars[count] = f"{name}={self.scalars[count]}"

    def values(self, values: Iterable[Any], reads: bool, memory: Unwritten | None = None, moves: bool = False) -> None:
        """Add some; ``reads`` is false where only the shape of a tensor matters, ``moves`` true where its bits do not.

        This runs for every op, so what is frequent comes first.
        """
        for value in values:
            kind = type(value)
            if kind is Tensor or kind is Parameter or isinstance(value, Tensor):
                made = memory.made(value) if memory and reads else None
                if made is None:
                    self.inputs.append(fingerprint(value) if reads else shape_fingerprint(value))
                elif made == SCRATCH or moves:
                    self.inputs.append(shape_fingerprint(value))
                    self.moved = self.moved if made == SCRATCH else made
                else:
                    self.unwritten = {**self.unwritten, len(self.inputs): made}
                    self.inputs.append(fingerprint(value))
            elif kind in _NUMBERS:
                self.scalars.append(repr(value))
            elif kind is list or kind is tuple:
                if _NUMBERS.issuperset(map(type, value)):
                    self.scalars.append(_cut(repr(value)))
                else:
                    self.values(value, reads, memory, moves)
            else:
                self.scalars.append(written_out(value))


_NUMBERS = {int, float, bool, type(None)}
_PLAIN = (int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
_LONGEST = 200


def written_out(value: Any) -> str:
    if not isinstance(value, _PLAIN):
        return f"<{type(value).__name__}>"  # which has no value that another process would have as well
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… {text_hash(text):016x}"


def flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from flat(value)
        else:
            yield value
