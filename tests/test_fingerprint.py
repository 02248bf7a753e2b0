"""What stands for a tensor in a trace tells apart whatever differs by a bit."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from scoped_rng.trace import fingerprint as module
from scoped_rng.trace.fingerprint import device_hash, fingerprint, shape_fingerprint

pytestmark = pytest.mark.filterwarnings("ignore:B?Complex(Half|32) support is experimental")
DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)
PLAIN = [dtype for dtype in DTYPES if not str(dtype).startswith(("torch.q", "torch.bits"))]


def filled(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor whose bytes count up; bool has two values alone."""
    tensor = torch.empty(shape, dtype=dtype)
    raw = np.arange(tensor.nbytes, dtype=np.uint8) if dtype is not torch.bool else np.arange(tensor.nbytes) % 2
    tensor.untyped_storage().copy_(torch.from_numpy(raw.astype(np.uint8)).untyped_storage())
    return tensor


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_every_dtype_has_a_fingerprint_that_a_bit_changes(dtype: torch.dtype) -> None:
    tensor = filled(dtype, (2, 3))
    before = fingerprint(tensor)
    assert fingerprint(filled(dtype, (2, 3))) == before
    last = tensor.untyped_storage().nbytes() - 1
    tensor.untyped_storage()[last] = tensor.untyped_storage()[last] ^ 1
    assert fingerprint(tensor) != before


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_the_dtype_is_part_of_it(dtype: torch.dtype) -> None:
    others = {fingerprint(filled(other, (0,))) for other in PLAIN if other is not dtype}
    assert fingerprint(filled(dtype, (0,))) not in others


def test_the_shape_is_part_of_it() -> None:
    shapes = [(6,), (2, 3), (3, 2), (1, 6), (6, 1), (1, 2, 3), (0,), (0, 1), (1, 0), (0, 0), ()]
    found = {fingerprint(torch.zeros(shape)) for shape in shapes}
    assert len(found) == len(shapes)


def test_permutations_do_not_collide() -> None:
    found = {fingerprint(torch.tensor(values)) for values in itertools.permutations([0.0, 1.0, 2.0, 3.0, 4.0])}
    assert len(found) == 120


def test_swapped_rows_and_equal_pairs_do_not_collide() -> None:
    tensor = torch.arange(12.0).reshape(4, 3)
    assert fingerprint(tensor) != fingerprint(tensor[[1, 0, 2, 3]])
    pairs = [[1.0, 1.0, 2.0, 2.0], [2.0, 2.0, 1.0, 1.0], [3.0, 3.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]
    assert len({fingerprint(torch.tensor(pair)) for pair in pairs}) == 4


def test_zeros_of_either_sign_and_nans_of_other_bits_differ() -> None:
    bits = torch.tensor([0x7FC00000, 0x7FC00001, 0, -(2**31)], dtype=torch.int32)
    assert len({fingerprint(one) for one in bits.view(torch.float32)}) == 4
    nan = torch.tensor(float("nan"))
    assert fingerprint(nan) == fingerprint(nan.clone())


@pytest.mark.parametrize(
    "view",
    [
        lambda tensor: tensor[1:],
        lambda tensor: tensor[:, 1:],
        lambda tensor: tensor[::2],
        lambda tensor: tensor[:, 2],
        lambda tensor: tensor[3, 2],
        lambda tensor: tensor[1:1],
        lambda tensor: tensor[0].expand(3, 5),
        lambda tensor: tensor.diagonal(),
    ],
)
def test_a_view_is_what_a_copy_of_it_is(view: object) -> None:
    tensor = torch.arange(20.0).reshape(4, 5)
    part = view(tensor)  # type: ignore[operator]
    assert fingerprint(part) == fingerprint(part.clone(memory_format=torch.contiguous_format))


def test_a_transposed_tensor_is_hashed_as_it_lies_with_its_order() -> None:
    square = torch.arange(9.0).reshape(3, 3)
    assert fingerprint(square.t()) != fingerprint(square)
    assert fingerprint(square.t()) == fingerprint(square.clone().t())
    assert fingerprint(square.t()) != fingerprint((square + 1).t())
    images = torch.arange(36.0).reshape(1, 4, 3, 3)
    last = images.to(memory_format=torch.channels_last)
    assert fingerprint(last) == fingerprint(last.clone())
    assert fingerprint(last) != fingerprint((images + 1).to(memory_format=torch.channels_last))


def test_lazy_conjugates_and_negatives_are_what_they_stand_for() -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    assert fingerprint(tensor.conj()) == fingerprint(tensor.conj().resolve_conj())
    assert fingerprint(tensor.conj()) != fingerprint(tensor)
    negative = tensor.conj().imag
    assert negative.is_neg()
    assert fingerprint(negative) == fingerprint(negative.resolve_neg().contiguous())
    assert negative[:1].is_neg()
    assert fingerprint(negative[:1]) == fingerprint(negative[:1].resolve_neg().contiguous())
    assert fingerprint(torch.zeros(0, dtype=torch.complex64)) == fingerprint(torch.zeros(0, dtype=torch.complex64))


SPARSE = {
    "coo": lambda dense: dense.to_sparse(),
    "csr": lambda dense: dense.to_sparse_csr(),
    "csc": lambda dense: dense.to_sparse_csc(),
    "bsr": lambda dense: dense.to_sparse_bsr((2, 2)),
    "bsc": lambda dense: dense.to_sparse_bsc((2, 2)),
}
if torch.backends.mkldnn.is_available():
    SPARSE["mkldnn"] = lambda dense: dense.to_mkldnn()


@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
def test_every_layout_has_a_fingerprint_of_its_own(layout: str) -> None:
    make = SPARSE[layout]
    one, other = torch.eye(4), torch.eye(4).flip(0)
    assert fingerprint(make(one)) == fingerprint(make(one.clone()))
    assert fingerprint(make(one)) != fingerprint(make(other))
    assert fingerprint(make(one)) != fingerprint(make(2 * one))
    assert fingerprint(make(one)) != fingerprint(one)
    assert shape_fingerprint(make(one)) == shape_fingerprint(make(other)) != shape_fingerprint(one)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_are_the_tensors_in_them() -> None:
    def nested(*parts: list[float]) -> torch.Tensor:
        return torch.nested.nested_tensor([torch.tensor(part) for part in parts], layout=torch.strided)

    assert fingerprint(nested([1.0, 2.0], [3.0])) == fingerprint(nested([1.0, 2.0], [3.0]))
    assert fingerprint(nested([1.0, 2.0], [3.0])) != fingerprint(nested([1.0], [2.0, 3.0]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantized_tensors_are_their_numbers_and_their_scales() -> None:
    dense = torch.arange(6.0).reshape(2, 3)

    def whole(scale: float) -> int:
        return fingerprint(torch.quantize_per_tensor(dense, scale, 0, torch.qint8))

    def by_channel(scale: float) -> int:
        scales, zeros = torch.tensor([scale, 1.0]), torch.zeros(2, dtype=torch.int64)
        return fingerprint(torch.quantize_per_channel(torch.zeros(2, 3), scales, zeros, 0, torch.qint8))

    assert whole(1.0) == whole(1.0) != whole(2.0)
    assert by_channel(0.5) == by_channel(0.5) != by_channel(2.0)


def test_a_wrapper_subclass_is_what_it_wraps() -> None:
    def two(value: float) -> TwoTensor:
        return TwoTensor(torch.zeros(2), torch.full((2,), value))

    assert fingerprint(two(1.0)) == fingerprint(two(1.0)) != fingerprint(two(2.0))


def test_tensors_without_memory_are_their_shape() -> None:
    meta = torch.zeros(3, device="meta")
    assert fingerprint(meta) == fingerprint(torch.ones(3, device="meta")) != fingerprint(meta[:2])
    with FakeTensorMode():
        fake = torch.zeros(3)
    assert fingerprint(fake) == shape_fingerprint(torch.zeros(3))


def test_parameters_and_leaves_keep_their_graph() -> None:
    parameter = torch.nn.Parameter(torch.arange(4.0).reshape(2, 2))
    assert fingerprint(parameter) == fingerprint(parameter.detach())
    fingerprint(parameter[:, 1])
    assert parameter.grad_fn is None
    assert parameter._version == 0


def test_what_is_kept_of_shapes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_DESCRIBED", 4)
    monkeypatch.setattr(module, "_described", {})
    for size in range(20):
        fingerprint(torch.zeros(size))
        assert len(module._described) <= 4


def test_fingerprints_are_the_same_in_every_process() -> None:
    assert fingerprint(torch.arange(5)) == 17049667910041603618
    assert fingerprint(torch.arange(6.0).reshape(2, 3).t()) == 16133316713358765214
    assert int(device_hash(torch.arange(5))) == 8568579030391083498


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_a_device_tells_apart_what_differs(one: bytes, other: bytes) -> None:
    def hashed(data: bytes) -> int:
        return int(device_hash(torch.tensor(list(data), dtype=torch.uint8)))

    if len(one) == len(other):
        assert (hashed(one) == hashed(other)) == (one == other)


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_a_device_hashes_every_dtype(dtype: torch.dtype) -> None:
    tensor = filled(dtype, (5, 3))
    before = int(device_hash(tensor))
    last = tensor.untyped_storage().nbytes() - 1
    tensor.untyped_storage()[last] = tensor.untyped_storage()[last] ^ 1
    assert int(device_hash(tensor)) != before


def test_a_device_tells_signs_and_orders_apart() -> None:
    for dtype in (torch.float64, torch.float32, torch.int64):
        signs = [[1, -1, 2, -2], [-1, 1, 2, -2], [-1, 1, -2, 2], [1, -1, -2, 2], [1, 2, -1, -2], [2, -2, 1, -1]]
        assert len({int(device_hash(torch.tensor(sign, dtype=dtype))) for sign in signs}) == 6
    values = itertools.permutations([0.0, 1.0, 2.0, 3.0, 4.0])
    assert len({int(device_hash(torch.tensor(value, dtype=torch.float64))) for value in values}) == 120


def test_a_device_sums_in_chunks_that_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(1003, dtype=torch.int64).view(torch.uint8)[: 8 * 1003 - 3]
    whole = int(device_hash(tensor))
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert int(device_hash(tensor)) == whole


def test_a_device_hashes_what_is_not_aligned() -> None:
    tensor = torch.arange(64, dtype=torch.uint8)
    assert int(device_hash(tensor[3:60])) == int(device_hash(tensor[3:60].clone()))
    assert int(device_hash(tensor[:0])) == 0


def test_on_another_device_eight_bytes_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(torch.Tensor):
        is_cpu = False  # type: ignore[assignment]

    def elsewhere(tensor: torch.Tensor) -> int:
        return fingerprint(tensor.as_subclass(Elsewhere))

    one = torch.arange(8.0)
    assert elsewhere(one) == elsewhere(one.clone()) != elsewhere(one + 1)
    assert elsewhere(one.reshape(2, 4)) != elsewhere(one)
    assert elsewhere(one.reshape(2, 4)[:, 1]) == elsewhere(one.reshape(2, 4)[:, 1].clone())


def test_without_xxhash_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['xxhash'] = None; import scoped_rng.trace.recorder"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = "a trace needs xxhash, which is not installed; install it with: pip install 'scoped-rng[cli]'"
    assert re.search(re.escape(f"ImportError: {message}"), done.stderr)
