"""Bit-for-bit comparison of nested results, and where they first differ."""

from __future__ import annotations

import contextlib
import dataclasses
import decimal
import enum
import types
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from ..streams.buffers import without_modes
from .difference import Difference, What, short
from .parts import PLAIN, Label, NoBits, Parts, Path, are_mocks, has_bits, has_identity, parts, path_text, state_parts

__all__ = ["Difference", "first_difference"]


def first_difference(first: Any, second: Any, *, grad: bool = False) -> Difference | None:
    """Return where two nested values first differ, or None if they are the same bit for bit.

    NaN payloads and the sign of zero count, and so does the exact type, of ``True``, ``1`` and ``1.0`` as well as of a
    ``Parameter`` and a tensor. What does not count: how memory is laid out (strides, padding), which objects are
    shared, the order of a dict's keys (an ``OrderedDict``'s does), and attributes that were set on tensors and arrays.

    - Tensors: layout, dtype, shape, device and bits; ``grad=True`` adds ``requires_grad`` and ``.grad``.
    - ``nn.Module``: parameters, buffers and modules by name, training mode, and all other attributes, such as a list
      that is a cache, with what is inside them; but for hooks, and for what nothing can be read of (a lock, a file):
      in a module, that counts as equal. TorchScript's have no other attributes.
    - NumPy arrays and scalars; structured ones by field, those of objects by element; masked ones where they are not
      masked, and their masks.
    - Mappings by key, sequences by position, dataclasses by field, sets by element; the ``default_factory`` and the
      ``maxlen`` of those that have one; functions by code and what they close over; optimizers by parameter groups and
      state; random generators by state; weak references by what they lead to; times by ``fold`` and zone too; a mock by
      its ``mock_calls`` and the attributes that were set on it, not by what it would return.
    - Any other object by its own ``__eq__`` where that gives a bool, else by the state that ``copy`` and ``pickle``
      take of it: its ``__dict__`` and slots, if it does not tell otherwise.

    Args:
        first: any value; values that contain themselves are fine.
        second: the one to compare with it.
        grad: compare whether tensors require a gradient, and their gradients.

    Raises:
        TypeError: a tensor has no bits that could be compared: on the meta device, or of a layout other than strided,
            COO and CSR.

    >>> import torch
    >>> a = {"loss": torch.tensor([0.5, 0.0])}
    >>> first_difference(a, {"loss": torch.tensor([0.5, 0.0])}) is None
    True
    >>> difference = first_difference(a, {"loss": torch.tensor([0.5, -0.0])})
    >>> difference.path, difference.what, difference.index
    ("['loss']", 'bits', (1,))
    >>> print(difference)
    ['loss']: 1 of 2 elements differ, the first at [1]: 0.0 against -0.0, 0 ULPs apart
    """
    # By the ids of what is compared already or just now, and alive, so that no id is used again.
    seen: dict[tuple[int, int, bool], tuple[Any, Any]] = {}
    todo: list[tuple[Path, Any, Any, bool]] = [(None, first, second, False)]
    with without_modes(), getattr(torch._C, "DisableTorchFunction", contextlib.nullcontext)():
        while todo:  # a stack, since recursion ends at a thousand levels
            path, a, b, in_module = todo.pop()
            if a is b or (id(a), id(b), in_module) in seen:
                continue
            seen[id(a), id(b), in_module] = (a, b)
            try:
                found = _compare(a, b, grad)
            except NoBits as error:
                where = short(path_text(path)) or "the value"
                raise TypeError(f"{where} cannot be compared: {error}") from error.__cause__
            if isinstance(found, Difference):
                # A module may hold what has no data to compare. The elements of a set may have some: that is told.
                if in_module and found.what == "incomparable" and not isinstance(a, (set, frozenset)):
                    continue
                return dataclasses.replace(found, path=path_text(path))
            in_module = in_module or isinstance(a, torch.nn.Module)
            todo.extend(((path, label), x, y, in_module) for label, x, y in reversed(found))
    return None


Pairs = list[tuple[Label, Any, Any]]
_UNIQUE = (type, types.ModuleType, enum.Enum)  # what there is one of each, so that another one is different
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _compare(a: Any, b: Any, grad: bool) -> Difference | Pairs:
    """Compare two values but for what is inside them; return a difference, or the pairs inside."""
    if type(a) is not type(b):
        if are_mocks(a, b):
            return _pairs(a, parts(a) or {}, parts(b) or {})
        return Difference("", "type", type(a), type(b))
    # There may be millions in these, so none of the items that are the same gets a label.
    if type(a) in (list, tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [(Label("[%d]", place), x, y) for place, (x, y) in pairs if not _plainly_equal(x, y)]
    if type(a) is dict and all(type(key) in (str, int) for key in (*a, *b)) and a.keys() == b.keys():
        return [(Label("[%r]", key), x, b[key]) for key, x in a.items() if not _plainly_equal(x, b[key])]
    if type(a) in PLAIN or isinstance(a, _UNIQUE):
        return [] if type(a) in PLAIN and a == b else Difference("", "value", a, b, index=_first_place(a, b))
    try:
        difference = _compare_facts(a, b, grad)
        if difference is None and not is_lazy(a):
            difference = _compare_bits(a, b)
        if difference is not None or is_lazy(a):
            return difference or []
        inside, other = parts(a, grad), parts(b, grad)
    except RuntimeError as error:
        if isinstance(a, torch.Tensor):
            raise NoBits(f"torch says: {str(error).partition(chr(10))[0]}") from error
        raise
    if inside is None or other is None:
        equal = _own_equality(a, b)
        if equal is not None:
            return [] if equal else Difference("", "value", a, b)
        inside, other = state_parts(a), state_parts(b)
        if inside is None or other is None:
            return Difference("", "incomparable", a, b)
    return _pairs(a, inside, other)


def _plainly_equal(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and type(a) in PLAIN and a == b)


def _first_place(a: Any, b: Any) -> tuple[int, ...] | None:
    if not isinstance(a, (str, bytes)):
        return None
    differing = (place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return (next(differing, min(len(a), len(b))),)


def _compare_facts(a: Any, b: Any, grad: bool) -> Difference | None:
    facts: tuple[What, ...] = ()
    if isinstance(a, torch.Tensor):
        facts = ("dtype", "device") if is_lazy(a) else ("layout", "dtype", "shape", "device")
        facts += ("requires_grad",) if grad else ()
    elif isinstance(a, (np.ndarray, np.generic)):
        facts = ("dtype", "shape")
    for what in facts:
        first, second = getattr(a, what), getattr(b, what)
        if first != second:
            return Difference("", what, *((tuple(first), tuple(second)) if what == "shape" else (first, second)))
    return None


def _own_equality(a: Any, b: Any) -> bool | None:
    if isinstance(a, decimal.Decimal):  # whose own takes 1.0 for 1.00
        return repr(a) == repr(b)
    own: Any = type(a).__eq__
    if own is object.__eq__:
        return None
    try:
        equal = own(a, b)
    except Exception:
        return None
    return bool(equal) if isinstance(equal, (bool, np.bool_)) else None


def _pairs(a: Any, inside: Parts, other: Parts) -> Difference | Pairs:
    if inside.keys() != other.keys():
        if isinstance(a, (set, frozenset)) and any(has_identity(item) for _, item in inside.values()):
            return Difference("", "incomparable", a, a)
        only_first = tuple(str(label) for key, (label, _) in inside.items() if key not in other)
        only_second = tuple(str(label) for key, (label, _) in other.items() if key not in inside)
        return Difference("", "structure", only_first, only_second)
    if isinstance(a, OrderedDict) and list(inside) != list(other):
        first, second = (tuple(str(label) for label, _ in side.values()) for side in (inside, other))
        return Difference("", "structure", first, second)
    pairs = [(label, item, other[key][1]) for key, (label, item) in inside.items()]
    return [(label, x, y) for label, x, y in pairs if not _plainly_equal(x, y)]


def _compare_bits(a: Any, b: Any) -> Difference | None:
    if not (has_bits(a) and has_bits(b)):
        return None
    if isinstance(a, torch.Tensor):
        return _compare_tensors(*(tensor.detach().resolve_conj().resolve_neg() for tensor in (a, b)))
    return _compare_arrays(np.asarray(a), np.asarray(b))


def _compare_tensors(a: torch.Tensor, b: torch.Tensor) -> Difference | None:
    # As integers: torch.equal itself takes NaN for unequal and the two zeros for equal. No integer is 16 bytes wide.
    wide = a.dtype is torch.complex128
    first, second = (
        (torch.view_as_real(tensor) if wide else tensor).view(_INTEGERS[8 if wide else tensor.dtype.itemsize])
        for tensor in (a, b)
    )
    if torch.equal(first, second):
        return None
    differing = (first != second).any(-1) if wide else first != second
    at = int(differing.flatten().to(torch.uint8).argmax())
    # Not every dtype can be indexed, but integers can.
    sides = (_Side.chunks_of(bits[differing].cpu(), a.dtype) for bits in (first, second))
    return _bits_differ(zip(*sides, strict=True), tuple(a.shape), at)


def _compare_arrays(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> Difference | None:
    first, second = array_bits(a), array_bits(b)
    if np.array_equal(first, second):
        return None
    differing = (first != second).reshape(a.size, -1).any(-1).reshape(a.shape)
    sides = (_Side.chunks_of(array[differing], None) for array in (a, b))
    return _bits_differ(zip(*sides, strict=True), a.shape, int(differing.argmax()))


def array_bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the bits of an array as unsigned integers, without any padding."""
    size = array.dtype.itemsize
    if size in _INTEGERS:
        return array.view(f"u{size}")
    if size == 0:
        return np.zeros(0, np.uint8)
    if array.dtype.kind in "fc" and np.finfo(array.dtype).nmant == 63:  # 10 bytes, and the rest is padding
        parts = 1 if array.dtype.kind == "f" else 2
        return array[..., None].view(np.uint8).reshape(*array.shape, parts, size // parts)[..., :10]
    return array[..., None].view(next(f"u{width}" for width in (8, 4, 2, 1) if size % width == 0))


_CHUNK = 1 << 14  # elements: they stay in a processor's cache, and torch does not wake threads for so few


class _Side(NamedTuple):
    """Some of the elements of one side that differ."""

    value: Any  # of the first one
    bits: np.ndarray[Any, Any]  # by element and, of complex ones, by part
    floats: np.ndarray[Any, Any] | None

    @classmethod
    def chunks_of(cls, elements: Any, dtype: torch.dtype | None) -> Iterator[_Side]:
        for begin in range(0, len(elements), _CHUNK):
            chunk = elements[begin : begin + _CHUNK]
            yield cls.of_array(chunk) if dtype is None else cls.of_tensor(chunk, dtype)

    @classmethod
    def of_tensor(cls, bits: torch.Tensor, dtype: torch.dtype) -> _Side:
        floats, value = None, None
        with contextlib.suppress(RuntimeError):  # what torch cannot print, such as two numbers in a byte
            numbers = torch.view_as_complex(bits.view(torch.float64)) if bits.dim() > 1 else bits.view(dtype)
            value = numbers[0].item()
            if dtype.is_complex:
                bits = torch.view_as_real(numbers).view(_INTEGERS[dtype.itemsize // 2])
            if dtype.is_floating_point or dtype.is_complex:
                floats = (torch.view_as_real(numbers) if dtype.is_complex else numbers).to(torch.float64).numpy()
        unsigned = bits.numpy().view(f"u{bits.dtype.itemsize}")
        return cls(int(unsigned[0]) if value is None else value, unsigned, floats)

    @classmethod
    def of_array(cls, array: np.ndarray[Any, Any]) -> _Side:
        value = array[0] if array.dtype.kind in "mM" else array[0].item()
        array = array.astype(array.dtype.newbyteorder("="))
        kind, size = array.dtype.kind, array.dtype.itemsize
        if kind == "c":
            array = array.view(f"f{size // 2}").reshape(-1, 2)
        floats = array if kind in "fc" and array.dtype.itemsize <= 8 else None
        return cls(value, array_bits(array), floats)


def _bits_differ(chunks: Iterable[tuple[_Side, _Side]], shape: tuple[int, ...], at: int) -> Difference:
    sides: list[_Side] = []
    count, distances = 0, []
    for pair in chunks:
        count += len(pair[0].bits)
        distances.append(_ulps(*pair))
        sides = sides or list(pair)
    first, second = sides
    shown = [
        ", ".join(f"0x{int(bits):0{2 * side.bits.itemsize}x}" for bits in np.atleast_1d(side.bits[0]).flat)
        for side in sides
    ]
    return Difference(
        "",
        "bits",
        first.value,
        second.value,
        index=tuple(int(i) for i in np.unravel_index(at, shape)),
        count=count,
        total=int(np.prod(shape, dtype=np.int64)),
        ulps=max((it for it in distances if it is not None), default=None),
        bits=(shown[0], shown[1]),
    )


def _ulps(first: _Side, second: _Side) -> int | None:
    """Return the largest distance of two floats, counted in floats; both zeros are the same one."""
    if first.floats is None or second.floats is None:
        return None
    known = ~(np.isnan(first.floats) | np.isnan(second.floats))
    if not known.any():
        return None
    top = 1 << 8 * first.bits.itemsize - 1
    x, y = (side.bits[known].astype(np.uint64) for side in (first, second))
    x_sign, y_sign = (np.signbit(floats[known]) for floats in (first.floats, second.floats))  # not each format has one
    x, y = (np.where(sign, bits & np.uint64(top - 1), bits) for sign, bits in ((x_sign, x), (y_sign, y)))
    return int(np.where(x_sign == y_sign, np.where(x > y, x - y, y - x), x + y).max())
