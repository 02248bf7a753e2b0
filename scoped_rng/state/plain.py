"""Nestings of plain Python values and NumPy arrays, written with what a state dict may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import StateFormatError

__all__ = ["decode", "encode"]


def encode(item: Any, name: str) -> Any:
    """Write a nesting of plain Python values and NumPy arrays with the values that a packed value may hold."""
    if type(item) is int and item.bit_length() > 1024:  # torch.load(weights_only=True) reads no more than 255 bytes
        return {"type": "int", "bytes": item.to_bytes(item.bit_length() // 8 + 1, "little", signed=True)}
    if type(item) in (str, int, float):
        return item
    if isinstance(item, list):
        return [encode(inner, name) for inner in item]
    if item is None or isinstance(item, bool):
        return {"type": str(item)}
    if isinstance(item, bytes):
        return {"type": "bytes", "bytes": item}
    if isinstance(item, tuple):
        return {"type": "tuple", "items": [encode(inner, name) for inner in item]}
    if isinstance(item, Mapping):
        return {"type": "dict", "items": [[encode(key, name), encode(inner, name)] for key, inner in item.items()]}
    if isinstance(item, (np.ndarray, np.generic)) and item.dtype.kind in "biufc":
        little = np.asarray(item, dtype=item.dtype.newbyteorder("<"))
        return {
            "type": "array" if isinstance(item, np.ndarray) else "scalar",
            "dtype": little.dtype.str,
            "shape": list(little.shape),
            "bytes": little.tobytes(),
        }
    raise TypeError(
        f"the state of {name!r} holds {type(item).__name__} {item!r}, which cannot be written as plain data; its "
        "getstate() must give None, bool, int, float, str, bytes, tuple, list, dict or NumPy arrays of numbers"
    )


def decode(item: Any) -> Any:
    """Read back what `encode` gave."""
    if isinstance(item, list):
        return [decode(inner) for inner in item]
    if not isinstance(item, dict):
        return item
    kind = item["type"]
    fields: list[Any] = [item[name] for name in _FIELDS[kind]]
    if len(item) != 1 + len(fields):
        raise StateFormatError(f"a value of the type {kind!r} with the keys {', '.join(map(str, item))}")
    if not fields:
        return {"None": None, "True": True, "False": False}[kind]
    data, wanted = fields[-1], list if kind in ("tuple", "dict") else bytes
    if not issubclass(type(data), wanted):
        raise StateFormatError(f"a value of the type {kind!r} with a {type(data).__name__} in it")
    if kind == "tuple":
        return tuple(decode(inner) for inner in data)
    if kind == "dict":
        return {decode(key): decode(inner) for key, inner in data}
    if kind == "bytes":
        return data
    if kind == "int":
        return int.from_bytes(data, "little", signed=True)
    dtype = np.dtype(fields[0])
    if dtype.kind not in "biufc":
        raise StateFormatError(f"an array of {dtype}")
    array = np.frombuffer(data, dtype).astype(dtype.newbyteorder("=")).reshape(fields[1])
    return array[()] if kind == "scalar" else array


_FIELDS: dict[str, tuple[str, ...]] = {
    "None": (),
    "True": (),
    "False": (),
    "tuple": ("items",),
    "dict": ("items",),
    "bytes": ("bytes",),
    "int": ("bytes",),
    "array": ("dtype", "shape", "bytes"),
    "scalar": ("dtype", "shape", "bytes"),
}
