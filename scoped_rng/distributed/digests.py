"""A digest of any value: the same in every process for values in which `first_difference` finds nothing."""

from __future__ import annotations

import contextlib
import enum
import reprlib
import types
from collections import OrderedDict
from collections.abc import Generator
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from ..compare import array_bits
from ..compare.parts import NoBits, Parts, Path, has_bits, has_identity, parts, path_text, state_parts
from ..streams.buffers import without_modes

__all__ = ["Digests", "Row", "digest"]


def digest(data: Any) -> bytes:
    """Return 16 bytes that stand for ``data``, which are bytes or an array."""
    return blake2b(data, digest_size=16).digest()


class Row(NamedTuple):
    """One value somewhere inside: the way to it, its digest, and in a few words what it is."""

    path: str
    digest: str
    shown: str


class Digests:
    """Digest values one after the other; what they share is read once.

    The digest of a container is made of those of its parts, in no order where the order does not count. Devices do not
    count either: what is on ``cuda:0`` of one rank is on ``cuda:1`` of the next.
    """

    def __init__(self) -> None:
        # What is known of objects by their id; they are kept alive, so that no id is used again.
        self._known: dict[int, tuple[Any, bytes]] = {}
        self._open: dict[int, int] = {}
        self._rows: list[tuple[Path, bytes, Any]] = []

    def of(self, value: Any, name: str) -> bytes:
        """Return the digest of ``value``, whose path begins with ``name``.

        Raises:
            TypeError: there is something inside that cannot be read, named by its path.
        """
        path: Path = (None, name)
        walks, known = [self._walk(path, value, False)], None  # a stack, since recursion ends at a thousand levels
        with without_modes(), getattr(torch._C, "DisableTorchFunction", contextlib.nullcontext)():
            while walks:
                try:
                    walks.append(self._walk(*walks[-1].send(known)))  # type: ignore[arg-type]
                    known = None
                except StopIteration as end:
                    walks.pop()
                    known = end.value
        return known  # type: ignore[return-value]

    def rows(self) -> list[Row]:
        """Return a row for each value inside, the parts of a container before it."""
        return [Row(path_text(path), known.hex(), _shown(value)) for path, known, value in self._rows]

    def _walk(self, path: Path, value: Any, in_module: bool) -> Walk:
        """Yield the parts of ``value`` to be sent their digests, and return its own."""
        found = self._known.get(id(value))
        if found is None:
            if id(value) in self._open:  # it contains itself
                return digest(b"up %d" % (len(self._open) - self._open[id(value)]))
            facts, inside = _read(path, value, in_module)
            if inside is None:
                found = (value, digest(facts))
            else:
                self._open[id(value)] = len(self._open)
                in_module = in_module or isinstance(value, torch.nn.Module)
                pairs = []
                for label, item in inside.values():
                    pairs.append(digest(_encoded(str(label))) + (yield (path, label), item, in_module))
                del self._open[id(value)]
                if not isinstance(value, OrderedDict):
                    pairs.sort()
                found = (value, digest(facts + b"".join(pairs)))
            self._known[id(value)] = found
        self._rows.append((path, found[1], value))
        return found[1]


Walk = Generator[tuple[Path, Any, bool], bytes, bytes]


def _shown(value: Any) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{value.dtype} of {[] if isinstance(value, torch.Tensor) and is_lazy(value) else list(value.shape)}"
    if isinstance(value, (str, bytes, int, float, complex, type(None))):
        return reprlib.repr(value)
    return type(value).__qualname__


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _read(path: Path, value: Any, in_module: bool) -> tuple[bytes, Parts | None]:
    """Return what a value is by itself, and what is inside it, or None if that is all."""
    kind = type(value)
    name = _encoded(f"{kind.__module__}.{kind.__qualname__}\0")
    plain = _plain(value)
    if plain is not None:
        return name + plain, None
    try:
        if isinstance(value, torch.Tensor):
            if is_lazy(value):
                return name + _encoded(str(value.dtype)), None
            name += _encoded(f"{value.layout} {value.dtype} {list(value.shape)}\0")
        elif isinstance(value, (np.ndarray, np.generic)):
            name += _encoded(f"{value.dtype.str} {list(value.shape)}\0")
        if has_bits(value):
            return name + digest(_bits(value)), None
        inside = _parts(value)
    except (NoBits, RuntimeError) as error:
        raise TypeError(f"{path_text(path)} cannot be read: {error}") from error
    if inside is None and in_module:
        return name, None  # a lock, say, which `first_difference` passes over there too
    if inside is None or (
        isinstance(value, (set, frozenset)) and any(has_identity(item) for _, item in inside.values())
    ):
        raise TypeError(
            f"{path_text(path)} cannot be read: {kind.__qualname__} objects have no state that is the same in every "
            "process; leave it out"
        )
    return name, inside


def _plain(value: Any) -> bytes | None:
    """Return the bytes of a value that has nothing inside, or None if it may have."""
    if value is None:
        return b""
    if type(value) in (bool, int):
        return b"%x" % value  # not in decimals: Python refuses to write thousands of them
    if type(value) in (str, bytes):
        return value if isinstance(value, bytes) else _encoded(value)
    if isinstance(value, type):
        return _encoded(f"{value.__module__}.{value.__qualname__}")
    if isinstance(value, (types.ModuleType, enum.Enum)):
        return _encoded(value.__name__ if isinstance(value, types.ModuleType) else str(value.name))
    return _encoded(value.type) if isinstance(value, torch.device) else None


def _parts(value: Any) -> Parts | None:
    if isinstance(value, types.CodeType):  # which neither copy nor pickle take
        value = {name: getattr(value, name) for name in ("co_code", "co_consts", "co_names", "co_varnames")}
    inside = parts(value)
    return state_parts(value) if inside is None else inside


def _bits(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return np.ascontiguousarray(array_bits(np.asarray(value)))
    tensor = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy()
