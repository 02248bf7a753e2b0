"""How the value of each kind of stream is written as plain data, checked, and read back.

A packed value is a dict of dict, list, str, int, float and bytes; in a state dict the bytes are CPU uint8 tensors.
Checking needs neither the device nor the object: what passes can be put without harm.
"""

from __future__ import annotations

import ctypes
import math
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..dynamo import skipped
from ..errors import StateFormatError, StateMismatchError
from ..streams.buffers import BuffersValue, ModuleTable, without_modes
from ..streams.numpy import EntropySource, NumPyStream
from ..streams.python import PythonStream
from ..streams.registry import Held, Keyed
from .checks import check_gaussian, check_mersenne, check_torch_mersenne, expect, expect_alike, expect_keys
from .plain import decode, encode

__all__ = ["from_tensors", "pack", "to_tensors", "value"]

Plain = dict[str, Any]
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


class PythonCodec:
    """Python's ``random.Random``: 624 words, a position, and a gaussian or none."""

    def pack(self, held: Any, taken: Any) -> Plain:
        version, (*words, position), gaussian = held.as_tuple(taken) if isinstance(held, PythonStream) else taken
        return {
            "version": version,
            "key": struct.pack("<624I", *words),
            "position": position,
            "gaussian": [] if gaussian is None else [gaussian],
        }

    def check(self, plain: Plain) -> None:
        expect_keys(plain, "version", "key", "position", "gaussian")
        expect(plain["version"] == 3, "Python's state is not of version 3")
        check_mersenne(plain["key"], plain["position"])
        check_gaussian(plain["gaussian"])

    def value(self, held: Held, plain: Plain) -> Any:
        words = (*struct.unpack("<624I", plain["key"]), plain["position"])
        return plain["version"], words, plain["gaussian"][0] if plain["gaussian"] else None


class NumPyCodec:
    """NumPy's ``RandomState``: the state of its bit generator, and a gaussian or none."""

    def pack(self, held: Any, taken: Any) -> Plain:
        bits = dict(taken) if isinstance(taken, dict) else held.as_dict(taken)
        gaussian, cached = bits.pop("gauss"), bits.pop("has_gauss")
        return {"bits": _pack_bits(held, bits), "gaussian": [float(gaussian)] if cached else []}

    def check(self, plain: Plain) -> None:
        expect_keys(plain, "bits", "gaussian")
        _unpack_bits(plain["bits"])
        check_gaussian(plain["gaussian"])

    def value(self, held: Any, plain: Plain) -> Any:
        bits, gaussian = _unpack_bits(plain["bits"]), plain["gaussian"]
        if not isinstance(held, NumPyStream):  # the global stream can change its bit generator, a RandomState cannot
            _match(held, "bit generator", bits["bit_generator"], held.bit_generator_name())
        return {**bits, "has_gauss": len(gaussian), "gauss": gaussian[0] if gaussian else 0.0}


class GeneratorCodec:
    """NumPy's ``Generator``: the state of its bit generator, and what it has spawned."""

    def pack(self, held: Any, taken: Any) -> Plain:
        bits, spawning = taken
        return {"bits": _pack_bits(held, bits), "spawning": encode(spawning, held.name)}

    def check(self, plain: Plain) -> None:
        expect_keys(plain, "bits", "spawning")
        _unpack_bits(plain["bits"])
        spawning = decode(plain["spawning"])
        expect(isinstance(spawning, dict), "a Generator's spawn state is not a dict")
        if spawning:
            expect_keys(spawning, "entropy", "spawn_key", "pool_size", "n_children_spawned")
            entropy, key, pool, count = (
                spawning[name] for name in ("entropy", "spawn_key", "pool_size", "n_children_spawned")
            )
            expect(type(pool) is int and 4 <= pool <= 1024, f"a pool of {pool!r} words")
            expect(type(count) is int and 0 <= count < 1 << 32, f"{count!r} children")
            expect(entropy is not None and isinstance(key, (tuple, list)), f"a spawn key of {key!r}")
            np.random.SeedSequence(**spawning)

    def value(self, held: Any, plain: Plain) -> Any:
        bits = _unpack_bits(plain["bits"])
        _match(held, "bit generator", bits["bit_generator"], held.bit_generator_name())
        return bits, decode(plain["spawning"])


class EntropyCodec:
    """NumPy's fresh entropy inside a seeded scope: the seed, and how often it was drawn from."""

    def pack(self, held: Held, taken: Any) -> Plain | None:
        _, state = taken
        return None if state is None else {"seed": state[0], "drawn": state[1]}

    def check(self, plain: Plain) -> None:
        expect_keys(plain, "seed", "drawn")
        for number in plain.values():
            expect(type(number) is int and 0 <= number < 1 << 64, "the entropy's seed or count is out of range")

    def value(self, held: Held, plain: Plain) -> Any:
        return EntropySource(plain["seed"]), (plain["seed"], plain["drawn"])


class TorchCodec:
    """A torch generator of any device: its bytes."""

    def pack(self, held: Any, taken: torch.Tensor) -> Plain:
        return {"device": held.device, "bytes": _tensor_bytes(taken)}

    def check(self, plain: Plain) -> None:
        expect_keys(plain, "device", "bytes")
        device, data = plain["device"], plain["bytes"]
        expect(isinstance(device, str) and isinstance(data, bytes), "a torch state is not a device and bytes")
        if device == "cpu":
            torch.Generator().set_state(_tensor(data))  # which checks the length
            check_torch_mersenne(data)
        else:
            expect(0 < len(data) <= 1 << 16, f"a state of {device!r} of {len(data)} bytes")

    def value(self, held: Any, plain: Plain) -> torch.Tensor:
        _match(held, "device", plain["device"], held.device)
        return _tensor(plain["bytes"])


class BuffersCodec:
    """A module's buffers by qualified name, and its modules' training mode."""

    def pack(self, held: Any, taken: BuffersValue) -> Plain:
        copies = {id(buffer): copy for buffer, copy in taken.copies}
        return {
            "buffers": {
                name: {
                    "dtype": str(buffer.dtype).removeprefix("torch."),
                    "shape": list(buffer.shape),
                    "bytes": _tensor_bytes(copies[id(buffer)]),
                }
                for name, buffer in held.subject.named_buffers()
            },
            "training": {name: int(module.training) for name, module in held.subject.named_modules()},
        }

    def check(self, plain: Plain) -> None:
        expect_keys(plain, "buffers", "training")
        expect(isinstance(plain["training"], dict), "the training modes are not a dict")
        for name, mode in plain["training"].items():
            expect(isinstance(name, str) and type(mode) is int and mode in (0, 1), f"a training mode of {mode!r}")
        expect(isinstance(plain["buffers"], dict), "the buffers are not a dict")
        for name, buffer in plain["buffers"].items():
            expect(isinstance(name, str) and isinstance(buffer, dict), f"the buffer {name!r} is not a dict")
            expect_keys(buffer, "dtype", "shape", "bytes")
            expect(isinstance(buffer["bytes"], bytes), f"the buffer {name!r} is not of bytes")
            dtype = getattr(torch, buffer["dtype"], None)
            expect(isinstance(dtype, torch.dtype), f"the buffer {name!r} has the dtype {buffer['dtype']!r}")
            shape = buffer["shape"]
            expect(
                isinstance(shape, list)
                and all(type(size) is int and size >= 0 for size in shape)
                and math.prod(shape) * dtype.itemsize == len(buffer["bytes"]),  # type: ignore[union-attr]
                f"the buffer {name!r} has another number of bytes than its shape and dtype ask for",
            )

    def value(self, held: Any, plain: Plain) -> BuffersValue:
        modules, buffers = dict(held.subject.named_modules()), dict(held.subject.named_buffers())
        _match(held, "modules", list(plain["training"]), list(modules))
        saved = plain["buffers"]
        _match(
            held,
            "buffers",
            [(name, buffer["dtype"], buffer["shape"]) for name, buffer in saved.items()],
            [(name, str(buffer.dtype).removeprefix("torch."), list(buffer.shape)) for name, buffer in buffers.items()],
        )
        tables = [
            ModuleTable.of(module)._replace(training=bool(plain["training"][name])) for name, module in modules.items()
        ]
        with without_modes():
            copies = [
                (buffer, _tensor(saved[name]["bytes"]).view(buffer.dtype).reshape(buffer.shape).to(buffer.device))
                for name, buffer in buffers.items()
            ]
        return BuffersValue(tables, copies)


class ObjectCodec:
    """Whatever ``getstate()`` of a user's object gives, as long as it is made of plain values."""

    def pack(self, held: Held, taken: Any) -> Plain:
        return {"state": encode(taken, held.name)}

    def check(self, plain: Plain) -> None:
        expect_keys(plain, "state")
        decode(plain["state"])

    def value(self, held: Held, plain: Plain) -> Any:
        return decode(plain["state"])


# Each has `pack(held, taken)`, which gives plain data or None; `check(plain)`, which raises unless it could have come
# from there; `value(held, plain)`, which gives what `put` takes.
CODECS: dict[str, Any] = {
    "python": PythonCodec(),
    "numpy": NumPyCodec(),
    "numpy.generator": GeneratorCodec(),
    "numpy.entropy": EntropyCodec(),
    "torch": TorchCodec(),
    "buffers": BuffersCodec(),
    "object": ObjectCodec(),
}


@skipped
def pack(held: Held) -> Plain | None:
    """Return the value of a stream now as plain data, or None if it has none that can be kept."""
    held = held.held if isinstance(held, Keyed) else held
    codec = CODECS.get(held.kind)
    plain = None if codec is None else codec.pack(held, held.take())
    return None if plain is None else {"kind": held.kind, **plain}


@skipped
def value(held: Held, plain: Plain) -> Any:
    """Return what ``held.put()`` takes to have the packed value."""
    held = held.held if isinstance(held, Keyed) else held
    _match(held, "kind", plain["kind"], held.kind)
    return CODECS[held.kind].value(held, plain)


@skipped
def to_tensors(plain: Any) -> Any:
    """Return a packed value with its bytes as uint8 tensors, nothing shared with it."""
    if isinstance(plain, dict):
        return {key: to_tensors(item) for key, item in plain.items()}
    if isinstance(plain, list):
        return [to_tensors(item) for item in plain]
    return _tensor(plain) if isinstance(plain, bytes) else plain


@skipped
def from_tensors(streams: Any) -> dict[str, Plain]:
    """Return the packed values of a state dict, every one checked.

    Raises:
        StateFormatError: naming the stream and what is wrong with it.
    """
    name: Any = "streams"
    try:
        packed: dict[str, Plain] = _from_tensors(streams)
        expect(isinstance(packed, dict), "is not a dict")
        for name, plain in packed.items():
            expect(isinstance(name, str) and isinstance(plain, dict), "is not a dict")
            kind: Any = plain.get("kind")
            fixed = _FIXED_KINDS.get(name)
            expect(isinstance(kind, str) and kind in CODECS and fixed in (None, kind), f"is of the kind {kind!r}")
            expect(fixed is not None or kind != "numpy.entropy", f"is of the kind {kind!r}")
            CODECS[kind].check({key: item for key, item in plain.items() if key != "kind"})
            expect(name != "torch" or plain["device"] == "cpu", f"is of the device {plain.get('device')!r}")
        positions = sorted(int(match[1]) for match in map(_POSITION.fullmatch, packed) if match)
        name = "also"
        expect(positions == list(range(len(positions))), f"has objects only at the positions {positions}")
    except Exception as error:  # a hostile dict can make any of the checks fail in its own way
        told = f"{name!r}: {error}"
        told = told if len(told) <= 300 else f"{told[:300]}..."
        raise StateFormatError(
            f"the state dict is damaged or foreign: {told}; nothing was changed, load it from a whole checkpoint"
        ) from error
    return packed


_FIXED_KINDS = {"python": "python", "numpy": "numpy", "numpy.entropy": "numpy.entropy", "torch": "torch"}
_POSITION = re.compile(r"also\[(\d+)\]")


def _from_tensors(item: Any) -> Any:
    if isinstance(item, Mapping):
        expect(all(type(key) is str for key in item), "a dict with keys that are not str")
        return {key: _from_tensors(inner) for key, inner in item.items()}
    if isinstance(item, list):
        return [_from_tensors(inner) for inner in item]
    if isinstance(item, torch.Tensor):
        with without_modes():
            memory = item.untyped_storage().nbytes()
            expect(item.numel() * item.element_size() <= memory, "a tensor of more elements than its memory has")
            return _from_tensor(item.detach().cpu())
    expect(type(item) in (str, int, float), f"a {type(item).__name__}")
    expect(type(item) is not int or item.bit_length() <= 1024, "an int of more than 1024 bits")  # as `encode` writes
    return item


def _from_tensor(tensor: torch.Tensor) -> bytes:
    if tensor.dtype != torch.uint8:  # a cast made it float, say: bring it back where that is exact
        exact = tensor.to(torch.uint8)
        expect(torch.equal(exact.to(tensor.dtype), tensor), f"a tensor of {tensor.dtype} is not of whole bytes")
        tensor = exact
    expect(tensor.dim() == 1, f"a tensor of {tensor.dim()} dimensions")
    return _tensor_bytes(tensor)


def _pack_bits(held: Held, state: Plain) -> Any:
    if state["bit_generator"] not in _BIT_GENERATORS:
        raise TypeError(
            f"the state of {held.name!r} is of the bit generator {state['bit_generator']}, which is not NumPy's own; "
            "a scope can hold it, but a state cannot"
        )
    return encode(state, held.name)


def _unpack_bits(plain: Any) -> Plain:
    """Return the state dict of a bit generator, checked against a fresh one's."""
    state = decode(plain)
    expect(isinstance(state, dict) and state.get("bit_generator") in _BIT_GENERATORS, "an unknown bit generator")
    scratch = getattr(np.random, state["bit_generator"])(0)
    expect_alike(state, scratch.state)
    if state["bit_generator"] == "MT19937":
        check_mersenne(state["state"]["key"].astype("<u4").tobytes(), state["state"]["pos"])
    expect(state.get("buffer_pos", 0) <= 4 and state.get("has_uint32", 0) <= 1, "a position is out of range")
    expect(state.get("uinteger", 0) < 1 << 32, "a word is out of range")
    expect("inc" not in state["state"] or state["state"]["inc"] % 2 == 1, "an increment is even")
    scratch.state = state
    return dict(state)


def _match(held: Held, what: str, saved: Any, here: Any) -> None:
    if saved != here:
        raise StateMismatchError(
            f"{held.name!r} is of another {what} in the state: {saved!r}, here it is {here!r}; "
            "give the same objects, in the same order, as when the state was captured"
        )


def _tensor(data: bytes) -> torch.Tensor:
    with without_modes():
        if not data:
            return torch.empty(0, dtype=torch.uint8, device="cpu")
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _tensor_bytes(tensor: torch.Tensor) -> bytes:
    with without_modes():
        tensor = tensor.detach().cpu().contiguous()
        # Not .numpy(), which lacks some dtypes.
        size = tensor.numel() * tensor.element_size()
        return ctypes.string_at(tensor.data_ptr(), size) if size else b""
