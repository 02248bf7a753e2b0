"""A digest of any value: the same in every process for values in which `first_difference` finds nothing."""

from __future__ import annotations

import contextlib
import copyreg
import enum
import re
import sys
import types
from collections import OrderedDict
from collections.abc import Generator, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from ..compare import array_bits
from ..compare.parts import Label, NoBits, Parts, has_bits, has_identity, parts, state_parts
from ..errors import shown
from ..streams.buffers import without_modes

__all__ = ["Digests", "Row", "digest"]


def digest(data: Any) -> bytes:
    """Return 16 bytes that stand for ``data``, which are bytes or an array."""
    return blake2b(data, digest_size=16).digest()


class Row(NamedTuple):
    """One value somewhere inside: where it is, its digest, and in a few words what it is."""

    place: str  # made of the digests of the keys on the way to it, since what shows a key may hold an address
    parent: str
    path: str
    digest: str
    shown: str
    is_first: bool  # of the paths that lead to this value, and so that of the parts that have rows


class Digests:
    """Digest values one after the other; what they share is read once.

    The digest of a container is made of those of its parts, in no order where the order does not count, and of what is
    a key by value too. Devices do not count either: what is on ``cuda:0`` of one rank is on ``cuda:1`` of the next.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Node] = {}  # by the id of the value, which the node keeps alive
        self._rows: list[tuple[_Step, bytes | None, _Node, bool]] = []

    def of(self, value: Any, name: str) -> bytes:
        """Return the digest of ``value``, whose path begins with ``name``.

        Raises:
            TypeError: there is something inside that cannot be read, named by its path.
        """
        start = _Step(None, name)
        start.key = _encoded(name)
        walks: list[Walk] = [self._walk(start, value, False)]  # a stack, since recursion ends at a thousand levels
        node: Any = None
        with without_modes(), getattr(torch._C, "DisableTorchFunction", contextlib.nullcontext)():
            while walks:
                try:
                    walks.append(self._walk(*walks[-1].send(node)))
                    node = None
                except StopIteration as end:
                    walks.pop()
                    node = end.value
        step, _, _, is_first = self._rows.pop()
        known: bytes = node.digest or _settled(node)
        self._rows.append((step, known, node, is_first))
        return known

    def rows(self) -> list[Row]:
        """Return a row for each value inside, the parts of a container before it."""
        places: dict[_Step | None, bytes] = {None: b""}
        found = []
        for step, known, node, is_first in reversed(self._rows):
            parent = places[step.parent]
            places[step] = place = digest(parent + (step.key if isinstance(step.key, bytes) else _at_hand(step.key)))
            texts = (place.hex(), parent.hex(), step.path(), (known or _at_hand(node)).hex(), _shown(node.value))
            found.append(Row(*texts, is_first))
        return found[::-1]

    def _walk(self, step: _Step, value: Any, in_module: bool) -> Walk:
        """Yield the parts of ``value`` to be sent their nodes, and return its own."""
        node, is_first = self._known.get(id(value)), False
        if node is None:
            is_first = True
            facts, inside = _read(step, value, in_module)
            node = self._known[id(value)] = _Node(value, facts)
            in_module = in_module or isinstance(value, torch.nn.Module)
            for label, item in (inside or {}).values():
                further, form, parts = _Step(step, label), b"", []
                if label.form not in _BY_VALUE or type(label.shown) is str:
                    form = further.key = digest(_encoded(str(label)))
                elif label.form == _KEY:
                    count = len(self._rows)
                    parts.append((yield further, label.shown, in_module))
                    del self._rows[count:]  # what is in a key has no path
                    further.key = parts[0]
                part = yield further, item, in_module
                if label.form == _ITEM:
                    further.key = part
                node.parts.append((form or digest(_encoded(label.form)), (*parts, part)))
            if all(part.digest for _, parts in node.parts for part in parts):
                node.digest = node.made_of({})
        self._rows.append((step, None, node, is_first))
        return node


_KEY, _ITEM = _BY_VALUE = ("[%r]", "{%r}")  # the labels that show a value, which is to be digested as one
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class _Step:
    """One step of the way to a value."""

    def __init__(self, parent: _Step | None, label: Label | str) -> None:
        self.parent, self.label = parent, label
        self.key: bytes | _Node = b""  # what is the same on all ranks that take this step

    def path(self) -> str:
        labels = []
        step: _Step | None = self
        while step is not None:
            labels.append(str(step.label))
            step = step.parent
        return _ADDRESS.sub("", "".join(reversed(labels)))


class _Node:
    """A value, and what it is made of; many paths may lead to it."""

    def __init__(self, value: Any, facts: bytes) -> None:
        self.value, self.facts = value, facts
        self.parts: list[tuple[bytes, tuple[_Node, ...]]] = []  # the digest of each label, and what is there
        self.digest: bytes | None = None  # none where a way from here goes round in a circle

    def made_of(self, known: Mapping[_Node, bytes]) -> bytes:
        """Return the digest of this value if those of its parts are as known, or empty."""
        pairs = [text + b"".join(it.digest or known.get(it, b"") for it in parts) for text, parts in self.parts]
        if not isinstance(self.value, OrderedDict):
            pairs.sort()
        return digest(self.facts + b"".join(pairs))


def _at_hand(node: _Node) -> bytes:
    """Return the digest of a value, without those of its parts that have circles inside."""
    return node.digest or node.made_of({})


def _settled(root: _Node) -> bytes:
    """Return the digest of a value with circles inside: the same whatever is shared, and where a circle is entered.

    As an automaton is minimised: values differ that differ by themselves, or have parts that differ, and so on for as
    long as that tells more of them apart. Then the digests of all of them say what the automaton is.
    """
    nodes = {root: None}
    todo = [root]
    while todo:
        inside = [it for _, parts in todo.pop().parts for it in parts if it.digest is None and it not in nodes]
        nodes.update(dict.fromkeys(inside))
        todo += inside
    known, count = dict.fromkeys(nodes, b""), 0
    while len(set(known.values())) > count:
        count = len(set(known.values()))
        known = {node: node.made_of(known) for node in nodes}
    return digest(known[root] + b"".join(sorted(set(known.values()))))


Walk = Generator[tuple[_Step, Any, bool], _Node, _Node]


def _shown(value: Any) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{value.dtype} of {[] if isinstance(value, torch.Tensor) and is_lazy(value) else list(value.shape)}"
    if isinstance(value, (str, bytes, int, float, complex, type(None))):
        return shown(value)
    return type(value).__qualname__


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _read(step: _Step, value: Any, in_module: bool) -> tuple[bytes, Parts | None]:
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
        raise TypeError(f"{step.path()} cannot be read: {error}") from error
    if inside is None and in_module:
        return name, None  # a lock, say, which `first_difference` passes over there too
    if inside is None or (
        isinstance(value, (set, frozenset)) and any(has_identity(item) for _, item in inside.values())
    ):
        advice = "leave it out"
        if isinstance(value, types.GeneratorType):  # to read it would use it up
            advice = "pass a list of what it gives, or the model itself in place of model.parameters()"
        raise TypeError(
            f"{step.path()} cannot be read: {kind.__qualname__} objects have no state that is the same in every "
            f"process; {advice}"
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
    if isinstance(value, torch.device):
        return _encoded(value.type)
    mesh: Any = getattr(sys.modules.get("torch.distributed.device_mesh"), "DeviceMesh", ())
    if isinstance(value, mesh):
        # A sharded tensor has it, and it knows this rank and its groups: where, as a device does.
        return _encoded(f"{value.mesh_dim_names} {tuple(value.shape)}")
    return None


def _parts(value: Any) -> Parts | None:
    if isinstance(value, types.CodeType):  # which neither copy nor pickle take
        value = {name: getattr(value, name) for name in ("co_code", "co_consts", "co_names", "co_varnames")}
    elif type(value) in copyreg.dispatch_table and parts(value) is None:  # a compiled regular expression, say
        value = copyreg.dispatch_table[type(value)](value)
    inside = parts(value)
    return state_parts(value) if inside is None else inside


def _bits(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return np.ascontiguousarray(array_bits(np.asarray(value)))
    tensor = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy()
