"""What stands for a tensor in a trace: 64 bits of its dtype, its shape and all its bits, in order."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["data_hash", "device_hash", "fingerprint", "shape_fingerprint", "text_hash"]

_torch: Any = torch  # for what torch leaves untyped
_C: Any = torch._C
try:
    from xxhash import xxh3_64_intdigest as data_hash
except ImportError as error:
    raise ImportError(
        "a trace needs xxhash, which is not installed; install it with: pip install 'scoped-rng[cli]'"
    ) from error

Bytes = type[ctypes.Array[ctypes.c_char]]
_described: dict[Any, tuple[int, Bytes | None, int, bool]] = {}
_MOST_DESCRIBED = 1 << 16


def fingerprint(tensor: torch.Tensor) -> int:
    """Return 64 bits that differ where dtype, shape or any bit of ``tensor`` differ, also in order alone.

    A tensor in main memory is hashed where it lies, without a copy; what is transposed in the order of memory, with
    that order in the hash. On a device it is hashed there and eight bytes come back.
    """
    try:
        seed, kind, _, is_one = _described[tensor.dtype, tensor.shape, tensor.stride()]
    except (KeyError, RuntimeError):  # not seen yet; sparse, which has no strides
        seed, kind, _, is_one = _describe(tensor)
    if kind is None or not tensor.is_cpu or not (type(tensor) in _plain_types or _is_plain(type(tensor))):
        return _slow(tensor, seed)
    if is_one and tensor.is_neg():  # else it is the imaginary part of complex numbers, and does not lie together
        return _slow(tensor, seed)
    address = tensor.data_ptr()
    return data_hash(kind.from_address(address), seed) if address else seed


def _is_plain(kind: Any) -> bool:
    """Return whether tensors of a type have memory of their own, and do not wrap others."""
    return bool(kind.__torch_dispatch__ is _torch.Tensor.__torch_dispatch__)


_plain_types = {torch.Tensor, torch.nn.Parameter}


def text_hash(text: str) -> int:
    """Return 64 bits of a text."""
    return data_hash(text.encode("utf-8", "surrogatepass"))


def shape_fingerprint(tensor: torch.Tensor) -> int:
    """Return 64 bits of the dtype and shape alone."""
    try:
        return _described[tensor.dtype, tensor.shape, tensor.stride()][2]
    except (KeyError, RuntimeError):
        return _describe(tensor)[2]


def _describe(tensor: torch.Tensor) -> tuple[int, Bytes | None, int, bool]:
    """Return what `fingerprint` has to know, and keeps.

    The hash of all but the data, the array type that covers those if they lie together, the hash of the shape, and
    whether it is one element.
    """
    text = f"{tensor.dtype} {'nested' if tensor.is_nested else tuple(tensor.shape)} {tensor.layout}"
    shape = text_hash(text)
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_complex():
        return shape, None, shape, False
    steps = [(step, size) for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]
    expected, together = 1, True
    for step, size in sorted(steps):
        together = together and step == expected
        expected *= size
    together = together or not tensor.numel()
    if together and not tensor.is_contiguous():
        text += f" {steps}"
    known = text_hash(text), ctypes.c_char * tensor.nbytes if together else None, shape, tensor.numel() == 1
    if len(_described) >= _MOST_DESCRIBED:
        _described.clear()
    _described[tensor.dtype, tensor.shape, tensor.stride()] = known
    return known


def _slow(tensor: Any, seed: int) -> int:
    # No dispatch mode, ours or the user's, shall see how a tensor is taken apart.
    with torch.no_grad(), _C._DisableTorchDispatch():
        if hasattr(tensor, "__tensor_flatten__"):
            names, _ = tensor.__tensor_flatten__()
            return _joined((getattr(tensor, name) for name in names), seed)
        if tensor.is_meta or not _is_plain(type(tensor)):  # fake, or a wrapper that does not tell what it wraps
            return seed
        if tensor.layout is torch.sparse_coo:
            return _joined((tensor._indices(), tensor._values()), seed)
        if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
            return _joined((tensor.crow_indices(), tensor.col_indices(), tensor.values()), seed)
        if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
            return _joined((tensor.ccol_indices(), tensor.row_indices(), tensor.values()), seed)
        if tensor.layout is not torch.strided:  # mkldnn's own
            return _joined((tensor.to_dense(),), seed)
        if tensor.is_nested:
            return _joined(tensor.unbind(), seed)
        if tensor.is_quantized:
            if tensor.qscheme() is torch.per_tensor_affine:
                scales = torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64)
                return _joined((tensor.int_repr(), scales), seed)
            by_channel = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
            return _joined((tensor.int_repr(), *by_channel), seed)
        plain = tensor.resolve_neg().resolve_conj().contiguous()
        if plain.is_cpu:
            address = plain.data_ptr()
            return data_hash((ctypes.c_char * plain.nbytes).from_address(address), seed) if address else seed
        return data_hash(int(device_hash(plain)).to_bytes(8, "little", signed=True), seed)


def _joined(parts: Iterable[torch.Tensor], seed: int) -> int:
    return data_hash(b"".join(fingerprint(part).to_bytes(8, "little") for part in parts), seed)


_CHUNK = 1 << 22  # words at a time, which bounds what the arithmetic takes on the device
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


def device_hash(tensor: torch.Tensor) -> torch.Tensor:
    """Return 64 bits of the data of a contiguous tensor as a tensor on its device.

    Each word is mixed with its position as in SplitMix64, and the results are summed modulo 2**64: integer arithmetic,
    so exact in whatever order a device adds. Mixing comes before the sum, since a weighted sum of the words themselves
    would miss two flipped signs.
    """
    flat = tensor.reshape(-1).view(torch.uint8)
    odd = flat.numel() % 8
    whole, rest = flat[: flat.numel() - odd], flat[flat.numel() - odd :]
    if whole.storage_offset() % 8:
        whole = whole.clone()
    words = whole.view(torch.int64)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, words.numel(), _CHUNK):
        total = total + _mixed(words[start : start + _CHUNK], start)
    return total + _mixed(rest.to(torch.int64), words.numel()) if odd else total


def _mixed(words: torch.Tensor, start: int) -> torch.Tensor:
    position = torch.arange(start + 1, start + 1 + words.numel(), dtype=torch.int64, device=words.device)
    mixed = _splitmix(position * _GOLDEN)
    return _splitmix(mixed ^ words).sum()


def _splitmix(words: torch.Tensor) -> torch.Tensor:
    # The shifts of signed words drag the sign along, which the masks take off.
    words = (words ^ ((words >> 30) & 0x3_FFFF_FFFF)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    words = (words ^ ((words >> 27) & 0x1F_FFFF_FFFF)) * (0x94D049BB133111EB - (1 << 64))
    return words ^ ((words >> 31) & 0x1_FFFF_FFFF)
