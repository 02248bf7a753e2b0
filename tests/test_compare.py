"""``first_difference``: bit for bit, in anything that nests, with the path to where it is."""

from __future__ import annotations

import argparse
import array
import ast
import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import functools
import math
import operator
import random
import re
import struct
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from scoped_rng import deterministic
from scoped_rng.compare import Difference, first_difference

DTYPES = sorted({it for it in vars(torch).values() if isinstance(it, torch.dtype)}, key=str)
NOON = datetime.datetime(2020, 1, 1, 12, tzinfo=datetime.timezone.utc)
PLAIN_DTYPES = [dtype for dtype in DTYPES if not str(dtype).startswith("torch.q")]
COMPLEX32 = "ignore:B?Complex(Half|32) support is experimental:UserWarning"
INVARIANTS = "ignore:Sparse invariant checks are implicitly disabled:UserWarning"
QUANTIZED = "ignore:torch.quantize_per_tensor:UserWarning"
SPARSE = "ignore:Sparse (CSR|CSC) tensor support is in beta state:UserWarning"


def found(first: Any, second: Any, **options: Any) -> Difference:
    difference = first_difference(first, second, **options)
    assert difference is not None
    reverse = first_difference(second, first, **options)
    assert reverse is not None
    assert (reverse.what, reverse.count, reverse.ulps) == (difference.what, difference.count, difference.ulps)
    return difference


def raw(count: int, dtype: torch.dtype, flip: int | None = None) -> torch.Tensor:
    """Return ``count`` elements with known bytes, one bit of one element flipped."""
    data = torch.arange(count * dtype.itemsize, dtype=torch.uint8)
    if flip is not None:
        data[flip * dtype.itemsize] ^= 1
    return data.view(dtype)


# Tensors


@pytest.mark.filterwarnings(COMPLEX32)
@pytest.mark.parametrize("dtype", PLAIN_DTYPES, ids=str)
def test_one_bit_of_one_element_of_any_dtype_is_found(dtype: torch.dtype) -> None:
    first, second = raw(12, dtype).reshape(3, 4), raw(12, dtype, flip=6).reshape(3, 4)
    assert first_difference(first, raw(12, dtype).reshape(3, 4)) is None
    difference = found(first, second)
    assert (difference.what, difference.index, difference.count, difference.total) == ("bits", (1, 2), 1, 12)
    assert first_difference(first[1, 2], raw(12, dtype)[6]) is None
    assert found(first[1, 2], second[1, 2]).index == ()


@pytest.mark.filterwarnings(COMPLEX32)
@pytest.mark.parametrize("dtype", PLAIN_DTYPES, ids=str)
def test_empty_tensors_of_any_dtype_are_the_same(dtype: torch.dtype) -> None:
    assert first_difference(torch.empty(0, 3, dtype=dtype), torch.empty(0, 3, dtype=dtype)) is None


@pytest.mark.parametrize(
    ("dtype", "ulps"),
    [
        (torch.float64, 1),
        (torch.float32, 1),
        (torch.float16, 1),
        (torch.bfloat16, 1),
        (torch.float8_e4m3fn, 1),
        (torch.float8_e5m2, 1),
        (torch.float8_e4m3fnuz, 1),
        (torch.complex64, 1),
        (torch.complex128, 1),
        (torch.int32, None),
        (torch.bool, None),
    ],
    ids=str,
)
def test_floats_have_a_distance_and_integers_have_none(dtype: torch.dtype, ulps: int | None) -> None:
    assert found(raw(4, dtype), raw(4, dtype, flip=1)).ulps == ulps


@pytest.mark.parametrize(
    ("first", "second", "ulps"),
    [
        (1.0, 1.0000001192092896, 1),
        (0.0, -0.0, 0),
        (1e-45, -1e-45, 2),
        (3.4028234663852886e38, float("inf"), 1),
        (float("-inf"), float("inf"), 2 * 0x7F800000),
        (float("nan"), 1.0, None),
    ],
)
def test_the_distance_is_counted_in_floats_with_one_zero(first: float, second: float, ulps: int | None) -> None:
    for number in (torch.tensor, np.float32):
        assert found(number(first), number(second)).ulps == ulps


def test_the_distance_of_the_furthest_doubles_is_exact() -> None:
    largest = 1.7976931348623157e308
    assert found(-largest, largest).ulps == 2 * 0x7FEFFFFFFFFFFFFF
    assert (
        found(torch.tensor(-largest, dtype=torch.float64), torch.tensor(largest, dtype=torch.float64)).ulps
        == 2 * 0x7FEFFFFFFFFFFFFF
    )


def test_the_largest_distance_leaves_out_nans() -> None:
    difference = found(torch.tensor([1.0, 2.0, float("nan")]), torch.tensor([1.5, 2.0, 4.0]))
    assert (difference.count, difference.index, difference.ulps) == (2, (0,), 1 << 22)


def test_of_a_complex_number_the_part_further_away_counts() -> None:
    difference = found(torch.tensor([1 + 1j]), torch.tensor([1.0000001192092896 + 1.5j]))
    assert (difference.count, difference.ulps) == (1, 1 << 22)
    assert found(np.array([1 + 1j]), np.array([1 + 1.5j])).ulps == 1 << 51


def test_an_exponent_alone_is_a_float_without_a_sign() -> None:
    first, second = (torch.tensor([bits], dtype=torch.uint8).view(torch.float8_e8m0fnu) for bits in (126, 129))
    assert found(first, second).ulps == 3


def test_payloads_of_nan_count() -> None:
    first, second = (torch.tensor(bits).int().view(torch.float32) for bits in (0x7FC00000, 0x7FC00001))
    assert first_difference(first, first.clone()) is None
    assert str(found(first, second)) == "the values: nan (0x7fc00000) against nan (0x7fc00001)"
    packed = [struct.unpack("<d", struct.pack("<Q", bits))[0] for bits in (0x7FF8 << 48, (0x7FF8 << 48) + 1)]
    assert found(*packed).bits == ("0x7ff8000000000000", "0x7ff8000000000001")
    assert found(*map(np.float64, packed)).what == "bits"


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.t().contiguous().t(),
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: t.conj().resolve_conj().conj(),
        lambda t: torch.complex(t.real, -t.imag).conj(),
        lambda t: torch.view_as_complex(torch.stack((t.real, t.conj().imag.neg()), -1)),
    ],
)
def test_memory_layout_and_lazy_conjugation_do_not_count(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensor = torch.randn(3, 4, dtype=torch.complex64)
    assert first_difference(tensor, change(tensor)) is None
    assert first_difference(tensor.conj().imag, tensor.conj().imag.clone()) is None
    assert found(tensor, tensor.conj()).count == 12


def test_expanded_and_transposed_tensors_are_indexed_as_they_are_seen() -> None:
    first = torch.zeros(1, 3).expand(2, 3)
    second = torch.zeros(3, 2).t()
    assert first_difference(first, second) is None
    second[1, 2] = 1
    assert found(first, second).index == (1, 2)


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        (torch.ones(2), torch.ones(2).double(), "dtype"),
        (torch.ones(2), torch.ones(1, 2), "shape"),
        (torch.ones(2), torch.ones(2, device="meta"), "device"),
        (torch.eye(2), torch.eye(2).to_sparse(), "layout"),
        (torch.ones(2), nn.Parameter(torch.ones(2)), "type"),
        (torch.ones(2), np.ones(2, "f"), "type"),
    ],
)
def test_what_a_tensor_is_counts(first: Any, second: Any, what: str) -> None:
    assert found(first, second).what == what


def test_a_difference_of_shape_tells_both() -> None:
    assert str(found([torch.ones(2)], [torch.ones(3, 1)])) == "[0]: shape differs: (2,) against (3, 1)"


def test_gradients_count_on_request() -> None:
    first, second = torch.ones(2), torch.ones(2, requires_grad=True)
    assert first_difference(first, second) is None
    assert found(first, second, grad=True).what == "requires_grad"
    third = torch.ones(2, requires_grad=True)
    third.sum().backward()
    assert first_difference(second, third) is None
    assert str(found([second], [third], grad=True)) == "[0].grad: type differs: NoneType against torch.Tensor"
    assert first_difference(second * 2, third * 2, grad=True) is None  # computed ones have none, nor a warning


@pytest.mark.filterwarnings(INVARIANTS)
def test_coordinates_and_values_of_sparse_tensors_count() -> None:
    first = torch.eye(3).to_sparse()
    assert first_difference(first, first.clone()) is None
    assert found(first, first * 2).path == ".values()"
    assert found(first, torch.eye(3).flip(0).to_sparse()).path == ".indices()"
    twice = torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (1,))
    assert found(twice, twice.coalesce()).path == ".is_coalesced()"


@pytest.mark.filterwarnings(SPARSE, INVARIANTS)
def test_rows_columns_and_values_of_csr_tensors_count() -> None:
    first = torch.eye(3).to_sparse_csr()
    assert first_difference(first, first.clone()) is None
    assert found(first, first * 2).path == ".values()"
    assert found(first, torch.eye(3).flip(0).to_sparse_csr()).path == ".col_indices()"


@pytest.mark.filterwarnings(SPARSE, INVARIANTS)
def test_any_other_layout_is_refused() -> None:
    first = torch.eye(3).to_sparse_csc()
    message = "['x'] cannot be compared: the layout of the tensor is torch.sparse_csc; strided, sparse_coo and sparse_"
    with pytest.raises(TypeError, match=re.escape(message)):
        first_difference({"x": first}, {"x": first.clone()})


def test_nested_tensors_are_refused() -> None:
    first = torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged)
    with pytest.raises(TypeError, match=re.escape("the layout of the tensor is nested; strided")):
        first_difference(first, first.clone())


def test_a_tensor_without_bits_is_refused() -> None:
    message = "the value cannot be compared: a meta or fake tensor has a shape, but no bits; compare real ones"
    with pytest.raises(TypeError, match=message):
        first_difference(torch.ones(2, device="meta"), torch.ones(2, device="meta"))
    with FakeTensorMode():
        first, second = torch.ones(2), torch.ones(2)
        with pytest.raises(TypeError, match=message):
            first_difference(first, second)


def test_real_tensors_are_compared_under_modes_that_would_see_them() -> None:
    first, second = torch.ones(2), torch.tensor([1.0, 2.0])
    with FakeTensorMode(), torch.device("meta"):
        assert found(first, second).index == (1,)


@pytest.mark.filterwarnings(QUANTIZED)
def test_quantized_tensors_are_compared_by_integers_and_scheme() -> None:
    first = torch.quantize_per_tensor(torch.arange(3.0), 0.1, 0, torch.qint8)
    assert first_difference(first, first.clone()) is None
    assert found(first, torch.quantize_per_tensor(torch.arange(3.0), 0.2, 0, torch.qint8)).path == ".int_repr()"
    zeros = [torch.quantize_per_tensor(torch.zeros(3), scale, 0, torch.qint8) for scale in (0.1, 0.2)]
    assert found(*zeros).path == ".q_scale()"
    scales = torch.tensor([0.1, 0.2])
    channels = [
        torch.quantize_per_channel(torch.ones(2, 2), scale, torch.zeros(2), 0, torch.quint8)
        for scale in (scales, scales, scales * 2)
    ]
    assert first_difference(channels[0], channels[1]) is None
    assert found(channels[0], channels[2]).path == ".int_repr()"


def test_what_torch_cannot_do_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def equal(*tensors: torch.Tensor) -> bool:
        raise NotImplementedError("no kernel\nCPU: registered")

    monkeypatch.setattr(torch, "equal", equal)
    with pytest.raises(TypeError, match=r"^\[1\] cannot be compared: torch says: no kernel$"):
        first_difference([0, torch.ones(2)], [0, torch.ones(2)])


class Logging(torch.Tensor):
    """A subclass that would rather not be looked at."""

    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it was looked at")


def test_a_tensor_subclass_is_compared_by_its_bits_without_its_own_functions() -> None:
    with torch._C.DisableTorchFunctionSubclass():
        first, second, third = (torch.tensor([value]).as_subclass(Logging) for value in (1.0, 1.0, 2.0))
    assert first_difference(first, second) is None
    assert found(first, third).what == "bits"


class Wrapper(torch.Tensor):
    """A subclass that wraps a tensor, as distributed and quantized ones do."""

    inner: torch.Tensor
    unit: str

    @staticmethod
    def __new__(cls, inner: torch.Tensor, unit: str) -> Wrapper:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[no-any-return]

    def __init__(self, inner: torch.Tensor, unit: str) -> None:
        self.inner, self.unit = inner, unit

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["inner"], self.unit

    @classmethod
    def __torch_dispatch__(cls, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it was looked at")


def test_a_wrapper_is_compared_by_what_it_wraps() -> None:
    wrappers = [Wrapper(torch.ones(2), "m"), Wrapper(torch.ones(2), "m"), Wrapper(torch.zeros(2), "m")]
    assert first_difference(wrappers[0], wrappers[1]) is None
    assert found(wrappers[0], wrappers[2]).path == ".inner"
    assert found(wrappers[0], Wrapper(torch.ones(2), "km")).path == ".__tensor_flatten__()[1]"


def test_inference_tensors_are_compared() -> None:
    with torch.inference_mode():
        first, second = torch.ones(2), torch.zeros(2)
    assert found(first, second).count == 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_on_an_accelerator_are_compared_there() -> None:
    first, second = torch.ones(3, device="cuda"), torch.tensor([1.0, 1.0, 2.0], device="cuda")
    assert first_difference(first, first.clone()) is None
    assert (found(first, second).index, found(first, second).ulps) == ((2,), 1 << 23)
    assert found(first, torch.ones(3)).what == "device"


# NumPy


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "u2", "i4", "u8", ">i4", "f2", "f4", ">f4", "f8", "g", "c8", ">c16", "G", "M8[s]", "m8[ns]"]
)
def test_arrays_of_any_kind_of_number(dtype: str) -> None:
    first = np.zeros((3, 4), dtype)
    second = first.copy()
    second[1, 2] = first.dtype.type(1, "s") if first.dtype.kind in "mM" else 1
    assert first_difference(first, first.copy(order="F")) is None
    difference = found(first, second)
    assert (difference.what, difference.index, difference.count, difference.total) == ("bits", (1, 2), 1, 12)
    assert first_difference(first[1, 2], first[0, 0]) is None
    assert found(first[1, 2], second[1, 2]).what == "bits"
    assert found(first, first.astype("S1") if dtype == "?" else first.astype("?")).what == "dtype"


def test_a_signalling_nan_is_compared_without_a_warning() -> None:
    first, second = np.array([0x7F800001, 0], "u4").view("f4"), np.array([0x7FC00001, 0], "u4").view("f4")
    assert found(first, second).bits == ("0x7f800001", "0x7fc00001")
    assert found(first, second).ulps is None


def test_padding_does_not_count() -> None:
    first, second = np.zeros(2, "g"), np.zeros(2, "g")
    if np.finfo("g").nmant == 63:
        second.view("u1")[10] = 1  # of 16 bytes
    assert first_difference(first, second) is None
    kind = np.dtype([("a", "i1"), ("b", "i4")], align=True)
    one, other = np.zeros(2, kind), np.zeros(2, kind)
    other.view("u1")[1] = 1
    assert first_difference(one, other) is None


@pytest.mark.parametrize(
    "dtype", ["U3", "S3", "V5", np.dtypes.StringDType() if hasattr(np.dtypes, "StringDType") else "U"]
)
def test_arrays_of_text_and_bytes(dtype: Any) -> None:
    first, second = np.array(["a", "bcd"], "S5").astype(dtype), np.array(["a", "bce"], "S5").astype(dtype)
    assert first_difference(first, first.copy()) is None
    difference = found(first, second)
    assert difference.path == "[1]" or difference.index == (1,)


@pytest.mark.parametrize("size", [*range(1, 18), 24])
def test_elements_of_any_size_are_compared(size: int) -> None:
    first, second = np.zeros(3, f"V{size}"), np.zeros(3, f"V{size}")
    assert first_difference(first, second) is None
    second.view(np.uint8)[-1] = 1
    difference = found(first, second)
    assert (difference.what, difference.index, difference.count) == ("bits", (2,), 1)


def test_empty_texts_and_arrays() -> None:
    assert first_difference(np.str_(""), np.str_("")) is None
    assert first_difference(np.empty((2, 0), "c16"), np.empty((2, 0), "c16")) is None
    assert first_difference(np.empty(2, "V0"), np.empty(2, "V0")) is None


def test_wide_elements_are_compared_wherever_they_lie() -> None:
    first = np.arange(12, dtype="c16").reshape(3, 4)
    second = first.copy()
    assert first_difference(first.T[::2], second[:, ::2].T.copy()) is None
    second[1, 2] = 7j
    assert found(first.T[::2], second.T[::2]).index == (1, 1)


def test_structured_arrays_are_compared_by_field() -> None:
    kind = [("x", "i4"), ("y", [("z", "f8", 2)])]
    first, second = np.zeros((2, 3), kind), np.zeros((2, 3), kind)
    second["y"]["z"][1, 2, 1] = -0.0
    assert first_difference(first, first.copy()) is None
    assert (found(first, second).path, found(first, second).index) == ("['y']['z']", (1, 2, 1))
    assert found(first[1, 2], second[1, 2]).path == "['y']['z']"


def test_arrays_of_objects_are_compared_by_element() -> None:
    first = np.array([[1, None], ["a", [2.0]]], object)
    second = copy.deepcopy(first)
    assert first_difference(first, second) is None
    second[1, 1][0] = -2.0
    assert found(first, second).path == "[1, 1][0]"


def test_of_masked_arrays_the_masks_count_and_not_what_they_hide() -> None:
    first = np.ma.MaskedArray([1.0, 2.0, 3.0], mask=[0, 1, 0])
    second = first.copy()
    second.data[1] = 7
    assert first_difference(first, second) is None
    second.mask[0] = True
    assert found(first, second).path == ".mask"
    third = first.copy()
    third[2] = 4
    assert (found(first, third).path, found(first, third).index) == (".data", (2,))
    assert first_difference(np.ma.MaskedArray([1]), np.ma.MaskedArray([1], mask=[0])) is None
    fields = np.ma.zeros(2, [("x", "f8")])
    assert first_difference(fields, fields.copy()) is None


# Python


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        (1, True, "type"),
        (1, 1.0, "type"),
        (1, 2, "value"),
        (0.0, -0.0, "bits"),
        (1j, 2j, "bits"),
        (None, 0, "type"),
        ("a", "b", "value"),
        (b"a", b"b", "value"),
        (bytearray(b"a"), bytearray(b"b"), "value"),
        (int, str, "value"),
        (random, re, "value"),
        (print, len, "value"),
        (range(2), range(3), "value"),
        (torch.device("cpu"), torch.device("meta"), "value"),
        ([1], (1,), "type"),
        ([1], [1, 2], "structure"),
        ({"a": 1}, {"b": 1}, "structure"),
        ({1: 0}, {True: 0}, "structure"),
        ({(1, 2): 0}, {(1.0, 2): 0}, "structure"),
        ({0.0: 0}, {-0.0: 0}, "structure"),
        ({1, 2}, {1, 3}, "structure"),
        ({1}, {True}, "structure"),
        ({frozenset({1})}, {frozenset({True})}, "structure"),
        (collections.deque([1]), collections.deque([2]), "value"),
        (types.MappingProxyType({1: 2}), types.MappingProxyType({1: 3}), "value"),
        (array.array("d", [0.0]), array.array("d", [-0.0]), "value"),
        (decimal.Decimal("1.0"), decimal.Decimal("1.00"), "value"),
        (collections.defaultdict(list), collections.defaultdict(int), "value"),
        (collections.deque([1], 2), collections.deque([1], 3), "value"),
        (datetime.datetime(2020, 1, 1, fold=0), datetime.datetime(2020, 1, 1, fold=1), "value"),
        (datetime.time(1, fold=0), datetime.time(1, fold=1), "value"),
        (NOON, NOON.astimezone(datetime.timezone(datetime.timedelta(hours=1))), "value"),
        (types.SimpleNamespace(x=0.0), types.SimpleNamespace(x=-0.0), "bits"),
        (argparse.Namespace(x=1), argparse.Namespace(x=True), "type"),
        (collections.UserList([0.0]), collections.UserList([-0.0]), "bits"),
        (ValueError(1), ValueError(2), "value"),
        (functools.partial(max, 1), functools.partial(max, 2), "value"),
        (random.Random(1), random.Random(2), "value"),
        (np.random.default_rng(1), np.random.default_rng(2), "value"),
        (np.random.RandomState(1), np.random.RandomState(2), "bits"),
        (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2), "bits"),
        (iter([1]), iter([2]), "value"),
        (object(), object(), None),
        (operator.itemgetter(1), operator.itemgetter(2), "value"),
    ],
)
def test_values_of_python(first: Any, second: Any, what: str | None) -> None:
    difference = first_difference([first], [second])
    assert (difference and difference.what) == what
    # Classes are one of each, some things cannot be copied, and NumPy before 2 copies a generator without its seeds.
    if not isinstance(first, (type, types.ModuleType, types.MappingProxyType, np.random.Generator)):
        assert first_difference([first], [copy.deepcopy(first)]) is None


def test_a_nan_is_the_same_as_one_with_the_same_bits() -> None:
    first, second = ([float("nan"), {float("nan"): decimal.Decimal("nan")}, {float("nan")}] for _ in range(2))
    assert first_difference(first, second) is None
    assert first_difference(array.array("d", [float("nan")]), array.array("d", [float("nan")])) is None


def test_keys_that_are_equal_but_of_other_types_are_told_apart_in_large_dicts_too() -> None:
    first: dict[Any, int] = dict.fromkeys(range(100), 0)
    second = {bool(key) if key < 2 else key: 0 for key in first}
    assert first == second
    assert found(first, second).what == "structure"
    assert first_difference(first, dict(reversed(first.items()))) is None


def test_attributes_of_a_number_count() -> None:
    class Metres(float):
        note = ""

    first, second = Metres(1), Metres(1)
    assert first_difference(first, second) is None
    second.note = "measured"
    assert found(first, second).path == ""


def test_weak_references_are_compared_by_what_they_lead_to() -> None:
    firsts = [Plain(x=1), Plain(x=1), Plain(x=2)]
    references = [weakref.ref(it) for it in firsts]
    assert first_difference(references[0], references[1]) is None
    assert found(references[0], references[2]).path == ".().x"


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Data:
    x: Any
    y: Any = dataclasses.field(default=0, compare=False)
    z: Any = dataclasses.field(init=False)


@dataclasses.dataclass
class Measured:
    value: Any
    note: Any = dataclasses.field(default="", compare=False)


class Plain:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Slots:
    __slots__ = ("x", "y")


class SlotsAndDict(Slots):
    pass


class Odd(Plain):
    """An object with an ``__eq__`` that gives something else than a bool, or raises."""

    def __eq__(self, other: object) -> Any:
        return self.answer()

    __hash__ = None  # type: ignore[assignment]


class Same(Plain):
    def __eq__(self, other: object) -> bool:
        return bool(np.True_)

    __hash__ = None  # type: ignore[assignment]


class State(Plain):
    def __getstate__(self) -> Any:
        return ("state", self.x)

    def __setstate__(self, state: Any) -> None:
        self.x = state[1]


class Named(Plain):
    def __reduce__(self) -> str:
        return "named"


class Made(Plain):
    def __reduce__(self) -> Any:
        return Made, (), None, iter([self.x]), iter([("y", self.y)])

    def append(self, x: Any) -> None:
        self.x = x

    def __setitem__(self, name: str, y: Any) -> None:
        self.y = y


class Items(dict):  # type: ignore[type-arg]
    pass


def slots(kind: Any, **values: Any) -> Any:
    it = kind()
    for name, value in values.items():
        setattr(it, name, value)
    return it


def items(note: str) -> Items:
    it = Items(a=1)
    it.note = note  # type: ignore[attr-defined]
    return it


def closing_over(value: Any, default: Any = 0) -> Any:
    return lambda it=default: (it, value)


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        ({"model": [1, {"x": 2}]}, {"model": [1, {"x": 3}]}, "['model'][1]['x']"),
        (Pair(1, 2), Pair(1, 3), ".y"),
        (torch.Size([1, 2]), torch.Size([1, 3]), "[1]"),
        (ast.Name("a"), ast.Name("b"), ".id"),  # which has _fields, and is no tuple
        (Data(1, 2), Data(1, 3), ".y"),
        (Data([1]), Data([2]), ".x[0]"),
        (Plain(x=[1]), Plain(x=[2]), ".x[0]"),
        (slots(Slots, x=1), slots(Slots, x=2), ".x"),
        (slots(SlotsAndDict, x=1, z=1), slots(SlotsAndDict, x=1, z=2), ".z"),
        (items("a"), items("b"), ".note"),
        (State(x=1, y=1), State(x=2, y=1), ".__getstate__()[1]"),
        (Made(x=1, y=1), Made(x=1, y=2), ".__reduce__()[3:][1][0][1]"),
        (Odd(answer=[].copy, x=1), Odd(answer=[].copy, x=2), None),
        (Plain(x=1).__init__, Plain(x=2).__init__, ".__self__.x"),
        (closing_over([1]), closing_over([2]), ".__closure__['value'].cell_contents[0]"),
        (closing_over(1, 2), closing_over(1, 3), ".__defaults__[0]"),
        (functools.partial(print, [1]), functools.partial(print, [2]), ".args[0][0]"),
        (Colour.RED, Colour.BLUE, ""),
    ],
)
def test_the_path_leads_to_the_leaf(first: Any, second: Any, path: str | None) -> None:
    if path is None:
        path = ".x"
        first.answer = second.answer = functools.partial(int, 1)
    assert found([first], [second]).path == f"[0]{path}"
    assert first_difference(first, copy.deepcopy(first)) is None


def test_an_object_is_compared_by_its_own_eq_where_that_gives_a_bool() -> None:
    assert first_difference(Same(x=1), Same(x=2)) is None
    assert first_difference(types.CellType(), types.CellType()) is None
    assert found(types.CellType(1), types.CellType(2)).path == ".cell_contents"
    assert first_difference(Named(x=1), Named(x=2)) is None


def test_a_dataclass_is_compared_by_its_fields_and_not_by_the_eq_that_it_makes() -> None:
    assert Measured(0.0, "a") == Measured(-0.0, "b")
    assert found(Measured(0.0), Measured(-0.0)).path == ".value"
    assert found(Measured(1, "a"), Measured(1, "b")).path == ".note"


def test_where_its_eq_raises_the_state_counts() -> None:
    first, second = Odd(x=1), Odd(x=2)  # neither has the attribute that their __eq__ asks for
    assert found(first, second).path == ".x"
    assert first_difference(slice(torch.ones(2)), slice(torch.ones(2))) is None
    assert found(slice(torch.ones(2)), slice(torch.zeros(2))).what == "bits"


@pytest.mark.parametrize("make", [threading.Lock, lambda: (it for it in ()), random.SystemRandom])
def test_what_cannot_be_compared_is_a_difference_that_says_so(make: Callable[[], Any]) -> None:
    first, second = {"x": make()}, {"x": make()}
    name = f"{type(first['x']).__module__}.{type(first['x']).__qualname__}".removeprefix("builtins.")
    message = (
        f"['x']: {name} objects cannot be compared: they have neither an __eq__ of their own nor a state that can be "
        "read; give the class an __eq__, or leave them out"
    )
    assert str(found(first, second)) == message
    assert first_difference(first, first) is None


class Guarded(Plain):
    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.closed:
            raise TypeError("closed")
        return super().__reduce_ex__(protocol)


def test_what_can_be_read_on_one_side_alone_is_a_difference() -> None:
    assert found(Guarded(closed=True), Guarded(closed=False)).what == "incomparable"
    assert found(types.CellType(), types.CellType(1)).what == "value"


def test_sets_are_compared_by_elements_that_have_a_value() -> None:
    assert first_difference({1, "a", (2.0,)}, {(2.0,), "a", 1}) is None
    tensor = torch.ones(2)
    assert first_difference({tensor, 1}, {1, tensor}) is None
    message = "a set of objects that are equal to themselves alone cannot be compared; make it a list or a dict"
    assert message in str(found({tensor}, {tensor.clone()}))


def test_the_order_of_keys_counts_in_an_ordered_dict_alone() -> None:
    assert first_difference({"a": 1, "b": 2}, {"b": 2, "a": 1}) is None
    first, second = (collections.OrderedDict.fromkeys(keys) for keys in ("ab", "ba"))
    message = "the values: structure differs: the same keys in another order, ['a'], ['b'] against ['b'], ['a']"
    assert str(found(first, second)) == message


def test_keys_that_are_equal_to_themselves_alone_are_matched_by_their_place() -> None:
    first, second = {torch.ones(2): 1, Plain(): 2}, {torch.ones(2): 1, Plain(): 3}
    assert found(first, second).path == "[key 1]"
    assert found({torch.ones(2): 1}, {torch.zeros(2): 1}).path == ".keys()[0]"
    assert first_difference({int: 1, str: 2, print: 3}, {str: 2, print: 3, int: 1}) is None


def test_values_that_contain_themselves_are_fine() -> None:
    first: Any = [1]
    second: Any = [1]
    third: Any = [2]
    for it in (first, second, third):
        it.append({"self": it})
    first, second, third = ([it, it] for it in (first, second, third))
    assert first_difference(first, second) is None
    assert found(first, third).path == "[0][0]"


def test_two_that_contain_each_other_are_fine() -> None:
    first: Any = []
    second: Any = [first]
    first.append(second)
    assert first_difference(first, second) is None


def test_deep_nesting_is_fine() -> None:
    first: Any = 0
    second: Any = 1
    for _ in range(5_000):
        first, second = [first], [second]
    assert found(first, second).path == "[0]" * 5_000


def test_what_is_shared_many_times_is_compared_once() -> None:
    first: Any = [0.0]
    second: Any = [0.0]
    for _ in range(100):
        first, second = [first, first], [second, second]
    assert first_difference(first, second) is None


def test_an_error_of_a_mapping_goes_on() -> None:
    class Broken(collections.UserDict[Any, Any]):
        def __iter__(self) -> Any:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match=r"^broken$"):
        first_difference(Broken(), Broken())


# torch's own objects


def test_modules_are_compared_by_name() -> None:
    first = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    second = copy.deepcopy(first)
    assert first_difference({"model": first}, {"model": second}) is None
    second(torch.ones(3, 2))
    assert found({"model": first}, {"model": second}).path == "['model'].1.running_mean"
    second = copy.deepcopy(first)
    second[0].eval()
    assert found(first, second).path == ".0.training"
    second = copy.deepcopy(first)
    second[2].p = 0.25
    assert found(first, second).path == ".2.p"
    with torch.no_grad():
        second[0].bias[1] += 1
    assert (found(first, second).path, found(first, second).index) == (".0.bias", (1,))
    second[0].bias = None
    assert str(found(first, second)) == ".0: structure differs: only the first has .bias"
    second[0] = nn.Bilinear(2, 2, 2)
    assert found(first, second).what == "type"


def test_of_parameters_and_buffers_the_first_that_is_told_is_that_of_the_first_module() -> None:
    first = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    second = copy.deepcopy(first)
    with torch.no_grad():
        second[0].weight += 1
    second[0].running_mean += 1
    second[1].weight.data += 1
    assert found(first, second).path == ".0.weight"
    second[0].weight.data -= 1
    assert found(first, second).path == ".0.running_mean"
    second[0].running_mean -= 1
    assert found(first, second).path == ".1.weight"


def test_buffers_that_are_not_persistent_and_generators_of_a_module_count() -> None:
    first = nn.Module()
    first.register_buffer("cache", torch.zeros(2), persistent=False)
    first.rng = np.random.default_rng(0)
    first.lock = threading.Lock()  # which nobody can compare
    second = nn.Module()
    second.register_buffer("cache", torch.zeros(2), persistent=False)
    second.rng = np.random.default_rng(0)
    second.lock = threading.Lock()
    assert first_difference(first, second) is None
    second.rng.random()
    assert found(first, second).path == ".rng.bit_generator.state['state']['state']"
    second.cache += 1
    assert found(first, second).path == ".cache"


class History(nn.Module):
    """A module that keeps something, as caches and replay buffers do."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.kept = kept


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        ([b"a"], [b"b"], "[0]"),
        ((1, [2.0]), (1, [-2.0]), "[1][0]"),
        ({"k": [torch.zeros(2)]}, {"k": [torch.ones(2)]}, "['k'][0]"),
        (collections.deque([1], 3), collections.deque([2], 3), "[0]"),
        ({1}, {2}, ""),
        (Data(1), Data(2), ".x"),
        (Pair(1, 2), Pair(1, 3), ".y"),
        (torch.Size([1, 2]), torch.Size([1, 3]), "[1]"),
        (ast.Name("a"), ast.Name("b"), ".id"),  # which has _fields, and is no tuple
        (Plain(x=[1]), Plain(x=[2]), ".x[0]"),
        ([nn.Linear(1, 1), History([1])], [None, History([2])], "[0]"),
        (History([History([1])]), History([History([2])]), ".kept[0].kept[0]"),
        (closing_over([1]), closing_over([2]), ".__closure__['value'].cell_contents[0]"),
        (np.random.MT19937(1), np.random.MT19937(2), ".state['state']['key']"),
    ],
)
def test_whatever_a_module_keeps_in_its_attributes_counts(first: Any, second: Any, path: str) -> None:
    assert found([History(first)], [History(second)]).path == f"[0].kept{path}"


def test_what_has_no_data_is_passed_over_in_modules_alone() -> None:
    first, second = ([threading.Lock(), {"stream": (it for it in ())}] for _ in range(2))
    assert first_difference(History(first), History(second)) is None
    assert found([History(first), first], [History(second), second]).path == "[1][0]"  # seen in a module before
    assert found(History([*first, 1]), History([*second, 2])).path == ".kept[2]"
    assert found(History({torch.ones(1)}), History({torch.zeros(1)})).what == "incomparable"


def of_all_kinds() -> nn.Module:
    model = nn.Sequential(nn.LSTM(2, 2), nn.TransformerEncoderLayer(2, 1, 4), nn.EmbeddingBag(2, 2), nn.LazyLinear(2))
    model[0].hook = model[0].register_forward_hook(print)
    model[1].parent = weakref.ref(model)
    model[2].own = [model, model.forward, math.sin, threading.Lock(), re.compile("a"), weakref.WeakValueDictionary()]
    model[2].again = nn.utils.spectral_norm(nn.Linear(2, 2))
    model.compile(backend="eager")
    return model


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature", "ignore::FutureWarning")
def test_a_module_is_the_same_as_its_copy_and_as_another_made_alike() -> None:
    with deterministic(0):
        first = of_all_kinds()
    with deterministic(0):
        second = of_all_kinds()
    assert first_difference(first, second, grad=True) is None
    first[2].own = second[2].own = None  # a lock cannot be copied
    assert first_difference(first, copy.deepcopy(first)) is None


def test_a_compiled_module_is_compared_by_the_module_in_it() -> None:
    first, second, third = (torch.compile(History([kept]), backend="eager") for kept in (1, 1, 2))
    assert first_difference(first, copy.deepcopy(first)) is None
    assert first_difference(first, second) is None
    assert found(first, third).path == "._orig_mod.kept[0]"


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_module_is_compared_by_its_parameters() -> None:
    linear = nn.Linear(2, 2)
    first, second = (torch.jit.script(copy.deepcopy(linear)) for _ in range(2))
    assert first_difference(first, second) is None
    torch.nn.init.zeros_(second.bias)
    assert found(first, second).path == ".bias"


def test_a_module_under_two_names_is_compared_by_each() -> None:
    shared = nn.Linear(1, 1)
    assert first_difference(nn.Sequential(shared, shared), nn.Sequential(shared, copy.deepcopy(shared))) is None


def test_mocks_are_compared_by_their_calls_and_attributes() -> None:
    for kind in (mock.Mock, mock.MagicMock, mock.NonCallableMock):
        first = kind()
        second = copy.deepcopy(first)
        assert first_difference(first, second) is None
        first.send.now([1], x=2)
        assert found(first, second).path == ".mock_calls"
        second.send.now([1], x=3)
        assert found(first, second).path == ".mock_calls[0][2]['x']"
        assert first_difference(copy.deepcopy(first), copy.deepcopy(first)) is None  # whose calls are not copied
        second = kind()
        second.send.now([1], x=2)
        second.note = [1]
        assert str(found(first, second)) == "the values: structure differs: only the second has .note"
    assert found(mock.Mock(), mock.MagicMock()).what == "type"
    assert first_difference(mock.Mock(spec=torch.Tensor), mock.Mock(spec=torch.Tensor)) is None


def test_gradients_of_a_module_count_on_request() -> None:
    first = nn.Linear(2, 2)
    second = copy.deepcopy(first)
    second(torch.ones(1, 2)).sum().backward()
    assert first_difference(first, second) is None
    assert found(first, second, grad=True).path == ".weight.grad"


def test_lazy_modules_are_compared_by_what_is_known_of_them() -> None:
    first = nn.LazyLinear(3)
    assert first_difference(first, copy.deepcopy(first)) is None
    assert found(first, nn.LazyLinear(3, dtype=torch.float64)).what == "dtype"


def test_optimizers_are_compared_by_groups_and_state_and_so_a_copy_is_the_same() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    other = copy.deepcopy(optimizer)
    assert first_difference(optimizer, other) is None
    list(other.state.values())[1]["exp_avg"][0] = 7
    assert found(optimizer, other).path == ".state[key 1]['exp_avg']"
    other.param_groups[0]["lr"] = 1.0
    assert found(optimizer, other).path == ".param_groups[0]['lr']"


def test_children_that_a_generator_has_spawned_count() -> None:
    first, second = np.random.default_rng(0), np.random.default_rng(0)
    second.spawn(1)
    assert found(first, second).path == ".bit_generator.seed_seq.state['n_children_spawned']"
    assert first_difference(np.random.Generator(np.random.MT19937()), 0) is not None
    legacy = [np.random.MT19937() for _ in range(2)]
    for bits in legacy:
        bits._legacy_seeding(0)
    assert first_difference(*legacy) is None


# Messages


def test_two_classes_of_the_same_name_are_called_that() -> None:
    first, second = (type("Local", (), {})() for _ in range(2))
    message = (
        f"the values: type differs: two classes of the same name, {__name__}.Local; make the class once, or compare "
        "what its objects hold"
    )
    assert str(found(first, second)) == message


def test_a_long_path_is_told_by_its_ends() -> None:
    first: Any = [0]
    second: Any = [1]
    for _ in range(1_000):
        first, second = [first], [second]
    difference = found({"x": first}, {"x": second})
    assert len(difference.path) == 5 + 3 * 1_001
    assert str(difference) == f"['x']{'[0]' * 18}[ ... {'[0]' * 20}: 0 against 1"
    assert len(str(found({"k" * 1_000: 1}, {"l" * 1_000: 1}))) < 400


def test_decimals_that_are_equal_but_written_otherwise_are_shown() -> None:
    message = "[0]: Decimal('1.0') against Decimal('1.00')"
    assert str(found([decimal.Decimal("1.0")], [decimal.Decimal("1.00")])) == message


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "c8", "c16"])
def test_the_count_and_the_distance_are_those_of_all_chunks(kind: str) -> None:
    first = np.arange(1.0, 50_001).astype("f2" if kind == "f2" else "f4").clip(max=2048).astype(kind)
    second = first.copy()
    second[[1, 20_000]] = np.nan
    second[[2, 30_000, -1]] *= np.array([-1, 2, 4], kind)
    expected = found(first[-1:], second[-1:]).ulps
    for one, other in ((first, second), (torch.from_numpy(first), torch.from_numpy(second))):
        difference = found(one, other)
        assert (difference.count, difference.index) == (5, (1,))
        assert difference.ulps == found(first[2:3], second[2:3]).ulps
        assert found(one[3:], other[3:]).ulps == expected
        assert found(one * 0, one * 0 + 1).count == 50_000


def test_a_text_is_shown_where_it_differs() -> None:
    first, second = ["x" * 500 + "abc"], ["x" * 500 + "abd"]
    assert str(found(first, second)) == ("[0]: differs from position 502 on: 'xxxxxxxxabc' against 'xxxxxxxxabd' there")
    long = "x" * 500 + "abc" + "y" * 50
    assert str(found(long, long.replace("c", "d"))) == (
        f"the values: differs from position 502 on: 'xxxxxxxxabc{'y' * 19}' against 'xxxxxxxxabd{'y' * 19}' there"
    )
    assert found("a", "ab").index == (1,)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([0] * 3, [0] * 8, "the values: structure differs: only the second has [3], [4], [5] and 2 more"),
        ([0] * 3, [0] * 7, "the values: structure differs: only the second has [3], [4], [5] and 1 more"),
        ((0,) * 3, (0,) * 6, "the values: structure differs: only the second has [3], [4], [5]"),
        (
            {"a": 1, "b": 2},
            {"a": 1, "c": 2},
            "the values: structure differs: only the first has ['b'], only the second has ['c']",
        ),
        ([1.0], [1.5], "[0]: 1.0 against 1.5, 2251799813685248 ULPs apart"),
        ([1.0], [1.0000000000000002], "[0]: 1.0 against 1.0000000000000002, 1 ULP apart"),
        ([1], [2.0], "[0]: type differs: int against float"),
        ([Colour.RED], [1], f"[0]: type differs: {__name__}.Colour against int"),
        ({(10**5000,): 1}, {(10**5000,): 2}, "[<tuple>]: 1 against 2"),
        (
            torch.tensor([0.0, 1.0, 2.0]),
            torch.tensor([0.0, 1.5, 2.0000002384185791]),
            "the values: 2 of 3 elements differ, the first at [1]: 1.0 against 1.5, at most 4194304 ULPs apart",
        ),
    ],
)
def test_the_message_tells_what_differs(first: Any, second: Any, message: str) -> None:
    assert str(found(first, second)) == message


@pytest.mark.parametrize("value", [10**20, "a b" * 50, b"a b" * 50], ids=["int", "str", "bytes"])
def test_plain_values_that_are_equal_are_the_same_wherever_they_are_kept(value: Any) -> None:
    other = eval(repr(value))
    assert other is not value
    assert first_difference(value, other) is None
    assert first_difference({(value,): value}, {(other,): other}) is None


def test_integers_that_are_too_long_to_be_written_are_told_of() -> None:
    assert str(found(10**5000, 10**5001)) == "the values: <int> against <int>"


def test_a_difference_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        found(1, 2).path = "x"  # type: ignore[misc]


# Properties


def _in_array(value: Any) -> np.ndarray[Any, Any]:
    array = np.empty(2, object)
    array[1] = value
    return array


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=3),
    st.binary(max_size=3),
)
ARRAYS = hnp.arrays(
    st.one_of(hnp.scalar_dtypes(), hnp.array_dtypes(max_size=3)), hnp.array_shapes(min_dims=0, min_side=0, max_side=3)
)
TENSORS = st.builds(
    lambda dtype, shape, offset: raw(int(np.prod(shape, dtype=int)) + offset, dtype)[offset:].reshape(shape),
    st.sampled_from(PLAIN_DTYPES),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 2),
)
KEYS = st.one_of(st.integers(), st.text(max_size=3), st.floats(), st.booleans(), st.tuples(st.integers(), st.floats()))
NESTED = st.recursive(
    st.one_of(SCALARS, ARRAYS, TENSORS),
    lambda inside: st.one_of(
        st.lists(inside, max_size=3),
        st.tuples(inside, inside),
        st.dictionaries(KEYS, inside, max_size=3),
        st.builds(Pair, inside, inside),
        st.builds(Data, inside, inside),
        st.builds(lambda x: Plain(x=x), inside),
        st.builds(_in_array, inside),
    ),
    max_leaves=8,
)


@pytest.mark.filterwarnings(COMPLEX32)
@given(NESTED)
def test_a_deep_copy_is_the_same(value: Any) -> None:
    assert first_difference(value, copy.deepcopy(value)) is None
    assert first_difference([value], [value], grad=True) is None


@pytest.mark.filterwarnings(COMPLEX32)
@given(NESTED, NESTED)
def test_a_difference_is_found_from_both_sides_and_can_be_told(first: Any, second: Any) -> None:
    one, other = first_difference(first, second), first_difference(second, first)
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.what == other.what
        assert str(one)
        assert str(other)


@pytest.mark.filterwarnings(COMPLEX32)
@given(st.data())
def test_one_flipped_bit_is_found_at_its_path_and_index(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(PLAIN_DTYPES))
    shape = data.draw(st.lists(st.integers(1, 3), max_size=3))
    size = int(np.prod(shape, dtype=int))
    place, bit = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 8 * dtype.itemsize - 1))
    content = data.draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
    first = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    second = first.clone()
    second[place * dtype.itemsize + bit // 8] ^= 1 << bit % 8
    one, other = (it.view(dtype).reshape(shape) for it in (first, second))
    path = ""
    for step in data.draw(st.lists(st.sampled_from(["list", "dict", "pair", "object", "array"]), max_size=4)):
        wrap, step_path = {
            "list": (lambda it: [0, it], "[1]"),
            "dict": (lambda it: {"k": it, 1: 2}, "['k']"),
            "pair": (lambda it: Pair(1, it), ".y"),
            "object": (lambda it: Plain(x=it), ".x"),
            "array": (_in_array, "[1]"),
        }[step]
        one, other, path = wrap(one), wrap(other), step_path + path
    difference = found(one, other)
    assert (difference.path, difference.what, difference.count) == (path, "bits", 1)
    assert difference.index == tuple(np.unravel_index(place, shape))


@given(ARRAYS, st.data())
def test_one_flipped_bit_of_an_array_is_found(first: np.ndarray[Any, Any], data: st.DataObject) -> None:
    assume(first.size and first.dtype.itemsize and first.dtype.names is None and first.dtype.kind not in "gG")
    assume(not (first.dtype.kind in "fc" and first.dtype.itemsize > 16 // (1 + (first.dtype.kind == "f"))))
    place = data.draw(st.integers(0, first.nbytes - 1))
    content = bytearray(first.tobytes())
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    second = np.frombuffer(bytes(content), np.uint8).view(first.dtype).reshape(first.shape)
    assert found(first, second).index == tuple(np.unravel_index(place // first.dtype.itemsize, first.shape))


@given(st.floats(width=32), st.floats(width=32))
def test_the_distance_is_the_number_of_steps_to_the_next_float(first: float, second: float) -> None:
    assume(first != second and first == first and second == second)
    ulps = found(np.float32(first), np.float32(second)).ulps
    assert ulps is not None
    toward = np.float32(first)
    for _ in range(min(ulps, 100)):
        assert toward != np.float32(second)
        toward = np.nextafter(toward, np.float32(second))
    assert (toward == np.float32(second)) == (ulps <= 100)
