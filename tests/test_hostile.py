"""What comes from outside, damaged in every way: a state dict, the file of a state, the file of a trace.

It is refused with the error that the docs name, or it is whole enough to be used; nothing hangs, takes gigabytes or is
executed.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import io
import json
import os
import pickle
import random
import struct
import types
import zipfile
import zlib
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from scoped_rng import RngState, StateFormatError, capture, deterministic
from scoped_rng.checkpoint import load_state, save_state
from scoped_rng.errors import TraceFormatError
from scoped_rng.trace import file as tracefile
from scoped_rng.trace.file import Record, Source, Trace, Writer
from tests import kit
from tests.test_state import JUNK, an_object_of_every_kind, harmless_or_refused, places, reach

PARTS = 8  # so that xdist can share them out
DICTS, NESTS, TRACES, FILES = (100_000, 10_000, 100_000, 10_000)
FEW = 100  # times less without --long

every_part = pytest.mark.parametrize("part", range(PARTS))


def numbers(part: int, count: int, long: bool) -> range:
    """Return the numbers of the cases of a part; each case follows from its number alone."""
    count = count if long else count // FEW
    return range(part * count // PARTS, (part + 1) * count // PARTS)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Let the process have half a gigabyte more than it has, where the system can tell and limit it."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, FileNotFoundError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def refused_for_what_it_is() -> Iterator[None]:
    """Check that what is refused is so in few words, and not because it asked for more memory than there is."""
    try:
        yield
    except (StateFormatError, TraceFormatError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
                raise AssertionError("it took all the memory") from error
            cause = cause.__cause__ or cause.__context__
        if len(str(error)) > 2000:
            raise AssertionError("the message does not end") from error
        raise


# State dicts


class Number(enum.IntEnum):
    """An int that is more than an int."""

    THREE = 3


class Text(str):
    """A str that is more than a str."""

    __slots__ = ()


class Tensor(torch.Tensor):
    """A tensor that is more than a tensor."""


def holds_itself(_: Any) -> Any:
    item: list[Any] = []
    item.append(item)
    return item


def nested(item: Any, depth: int, wrap: Callable[[Any], Any]) -> Any:
    for _ in range(depth):
        item = wrap(item)
    return item


TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    **{
        f"cast to {dtype}": lambda tensor, dtype=dtype: tensor.to(dtype)  # type: ignore[misc]
        for dtype in (
            torch.bool,
            torch.int8,
            torch.int64,
            torch.float16,
            torch.bfloat16,
            torch.float64,
            torch.complex64,
        )
    },
    "float and a little more": lambda tensor: tensor.double() + 2**-40,
    "not a number": lambda tensor: tensor.float() * float("nan"),
    "requires grad": lambda tensor: tensor.float().requires_grad_(),
    "parameter": lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
    "subclass": lambda tensor: tensor.as_subclass(Tensor),
    "sparse": lambda tensor: tensor.to_sparse(),
    "meta": lambda tensor: tensor.to("meta"),
    "every other": lambda tensor: tensor[::2],
    "doubled": lambda tensor: tensor.repeat(2),
    "one, expanded": lambda tensor: tensor[:1].expand(tensor.numel()),
    "huge, expanded": lambda tensor: torch.zeros(1, dtype=torch.uint8).expand(1 << 40),
    "reversed": lambda tensor: tensor.flip(0),
    "a column": lambda tensor: tensor.reshape(-1, 1),
    "a view of a view": lambda tensor: torch.stack([tensor, tensor], 1)[:, 0],
    "conjugated": lambda tensor: tensor.to(torch.complex64).conj(),
    "inference": lambda tensor: torch.inference_mode()(tensor.clone)(),
    "an array": lambda tensor: tensor.numpy(),
    "bytes": lambda tensor: bytes(tensor.tolist()),
    "a list": lambda tensor: tensor.tolist(),
}
INTS: dict[str, Callable[[int], Any]] = {
    "enum": lambda _: Number.THREE,
    "bool": lambda number: bool(number),
    "numpy": lambda number: np.int64(number & 0xFFFF),
    "float": lambda number: float(number & 0xFFFF),
    "text": lambda number: format(number, "x"),
    "negative": lambda number: -number,
    "one more": lambda number: number + 1,
    **{f"2**{bits}": lambda _, bits=bits: 2**bits for bits in (31, 32, 63, 64, 127, 128, 1024, 40_000)},  # type: ignore[misc]
}
FLOATS: dict[str, Callable[[float], Any]] = {
    text: lambda _, text=text: float(text)  # type: ignore[misc]
    for text in ("nan", "inf", "-inf", "-0.0", "1e308", "5e-324")
}
TEXTS: dict[str, Callable[[str], Any]] = {
    "subclass": Text,
    "bytes": lambda text: text.encode("utf-8", "surrogatepass"),
    "empty": lambda _: "",
    "longer": lambda text: text * 1000,
    "surrogate": lambda text: text + "\ud800",
    "null": lambda text: text + "\0",
    "upper case": str.upper,
    **{
        text: lambda _, text=text: text  # type: ignore[misc]
        for text in ("<f8", "O", "V8", "U1000000000", "M8[ns]", "f8,f8", "float32", "uint8", "cpu", "cuda", "meta")
    },
    **{
        text: lambda _, text=text: text
        for text in ("dict", "tuple", "array", "scalar", "int", "None", "PCG64", "MT19937")
    },  # type: ignore[misc]
}
ANYTHING: dict[str, Callable[[Any], Any]] = {
    "holds itself": holds_itself,
    "deep list": lambda item: nested(item, 400, lambda inner: [inner]),
    "deep dict": lambda item: nested(item, 200, lambda inner: {"type": inner}),
    "deep tuples": lambda item: nested(item, 150, lambda inner: {"type": "tuple", "items": [inner]}),
    "deeper": lambda item: nested(item, 5000, lambda inner: [inner]),
    "wide": lambda item: [item] * 100,
    "in a list": lambda item: [item],
    "in a tuple": lambda item: (item,),
    "iterator": lambda item: iter([item]),
}
DICTIONARIES: dict[str, Callable[[dict[Any, Any]], Any]] = {
    "ordered": OrderedDict,
    "user's": UserDict,
    "read only": types.MappingProxyType,
    "pairs": lambda item: list(item.items()),
    "keys": lambda item: list(item),
    "other names": lambda item: {f"{key}\u0661]": inner for key, inner in item.items()},
    "other keys": lambda item: {Text(key): inner for key, inner in item.items()},
    "positions": lambda item: {f"also[{place}]": inner for place, inner in enumerate(item.values())},
    "far positions": lambda item: {f"also[{place * 10**20}]": inner for place, inner in enumerate(item.values())},
    "devices": lambda item: {f"cuda:{place}": inner for place, inner in enumerate(item.values())},
    "one another": lambda item: dict(zip(item, reversed([*item.values()]), strict=True)),
}
CHANGES: list[tuple[type, dict[str, Callable[[Any], Any]]]] = [
    (torch.Tensor, TENSORS),
    (int, INTS),
    (float, FLOATS),
    (str, TEXTS),
    (dict, DICTIONARIES),
]


def changed(item: Any, chance: random.Random) -> tuple[str, Any]:
    """Make something else of an item, of a kind with it; say what."""
    ways = [ANYTHING, *(ways for kind, ways in CHANGES if isinstance(item, kind))][-1 if chance.random() < 0.97 else 0]
    how = chance.choice([*ways])
    with contextlib.suppress(
        RuntimeError, TypeError, ValueError, OverflowError
    ):  # junk of before that cannot be changed
        return how, ways[how](item)
    return how, None


def damage(damaged: Any, whole: Any, paths: list[tuple[Any, ...]], chance: random.Random) -> str:
    """Damage a state dict at one of the places that it had when it was whole; say where and how."""
    *parents, last = path = chance.choice(paths)
    how = chance.choice(["drop", "junk", "swap", "add", "cut", "byte", "word", *["change"] * 7])
    # What is there no more was damaged before.
    with contextlib.suppress(LookupError, TypeError, AttributeError):
        parent = reach(damaged, parents)
        item = parent[last]
        if how == "drop":
            del parent[last]
        elif how == "swap":
            parent[last] = copy.deepcopy(reach(whole, chance.choice(paths)))
        elif how == "add":
            parent["more"] = copy.deepcopy(chance.choice(JUNK))
        elif how in ("cut", "byte", "word") and isinstance(item, torch.Tensor) and item.dtype == torch.uint8:
            at, value = chance.randrange(item.numel()), chance.choice([0, 1, 127, 128, 255])
            if how == "cut":
                parent[last] = item[:at]
            else:
                at -= at % 8 if how == "word" else 0
                item[at : at + (8 if how == "word" else 1)] = value
        elif how == "junk":
            parent[last] = copy.deepcopy(chance.choice(JUNK))
        else:
            how, parent[last] = changed(item, chance)
    return f"{path}: {how}"


@pytest.fixture(scope="module")
def whole() -> Any:
    """A state dict with a stream of every kind."""
    with deterministic(0):
        kit.draws()
        return capture(also=an_object_of_every_kind()).state_dict()


def check_dict(damaged: Any, ambient: Any) -> bool:
    """Check that a dict is refused as the docs say, or read and fit for use; say whether it was read."""
    read = False
    with contextlib.suppress(StateFormatError), refused_for_what_it_is():
        RngState.from_state_dict(damaged)
        harmless_or_refused(damaged)
        read = True
    assert kit.continuation(1) == ambient
    return read


@every_part
def test_a_damaged_state_dict_is_refused_or_harmless(part: int, long: bool, whole: Any) -> None:
    ambient, read, paths = kit.continuation(1), 0, list(places(whole))
    for number in numbers(part, DICTS, long):
        chance = random.Random(number)
        damaged = copy.deepcopy(whole)
        done = [damage(damaged, whole, paths, chance) for _ in range(chance.choice([1, 1, 1, 2, 3, 5]))]
        if chance.random() < 0.02:
            how, damaged = changed(damaged, chance)
            done.append(how)
        try:
            read += check_dict(damaged, ambient)
        except BaseException as error:
            raise AssertionError(f"dict {number}, {done}: {type(error).__name__}: {error}") from error
    assert read


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
LEAVES = PLAIN | st.builds(torch.tensor, st.lists(st.integers(0, 255), max_size=9), dtype=st.just(torch.uint8))
KEYS = st.text(max_size=3) | st.sampled_from(["type", "items", "bytes", "dtype", "shape", "state", "kind"])
NEST = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3)
    | st.tuples(inner, inner)
    | st.dictionaries(KEYS | st.integers() | st.none(), inner, max_size=3)
    | st.builds(lambda kind, inner: {"type": kind, "items": inner}, st.sampled_from(["tuple", "dict", "int"]), inner)
    | st.builds(lambda kind, inner: {"type": kind, "bytes": inner}, st.sampled_from(["bytes", "int", "array"]), inner)
    | st.fixed_dictionaries({
        "type": st.sampled_from(["array", "scalar"]),
        "dtype": st.sampled_from(["<f8", "<u4", "|b1", "<c16", "O", "<U9", "u1,u1", ""]),
        "shape": st.lists(st.integers(-2, 2**62), max_size=3),
        "bytes": inner | st.builds(torch.zeros, st.integers(0, 16), dtype=st.just(torch.uint8)),
    }),
    max_leaves=10,
)  # fmt: skip


@every_part
def test_any_nest_in_the_place_of_anything_is_refused_or_harmless(part: int, long: bool, whole: Any) -> None:
    paths = [(), *places(whole), *[("streams", name, "state") for name in whole["streams"] if "also" in name]]

    @seed(part)
    @settings(max_examples=len(numbers(part, NESTS, long)))
    @given(st.sampled_from(paths), NEST)
    def check(path: tuple[Any, ...], nest: Any) -> None:
        damaged, ambient = copy.deepcopy(whole), kit.continuation(1)
        if path:
            reach(damaged, path[:-1])[path[-1]] = nest
        check_dict(damaged if path else nest, ambient)

    check()


@pytest.mark.parametrize(
    "wrap", [lambda it: [it], lambda it: {"type": "tuple", "items": [it]}], ids=["lists", "tuples"]
)
def test_a_state_of_any_depth_is_refused_or_harmless(wrap: Any, whole: Any) -> None:
    ambient, nest = kit.continuation(1), 3
    for depth in range(600):
        nest = wrap(nest)
        if depth % 17 == 0:
            check_dict({**whole, "streams": {"also[0]": {"kind": "object", "state": nest}}}, ambient)


@pytest.mark.parametrize("version", [10**5000, -(10**5000), [10**5000]], ids=["huge", "negative", "in a list"])
def test_a_version_that_python_cannot_write_is_refused(version: Any, whole: Any) -> None:
    with pytest.raises(StateFormatError, match=r"the state is of version \w+ with a very large number, this is for"):
        RngState.from_state_dict({**whole, "version": version})


def test_a_tensor_that_repeats_its_memory_is_refused_before_it_is_copied(whole: Any) -> None:
    whole = copy.deepcopy(whole)
    whole["streams"]["python"]["key"] = torch.zeros(1, dtype=torch.uint8).expand(1 << 40)
    with pytest.raises(StateFormatError, match=r"'streams': a tensor of more elements than its memory has; nothing"):
        RngState.from_state_dict(whole)


def test_a_message_does_not_repeat_all_that_is_wrong(whole: Any) -> None:
    whole = copy.deepcopy(whole)
    whole["streams"]["python"]["kind"] = "x" * 5000
    with pytest.raises(
        StateFormatError, match=r"'python': is of the kind 'x{100,300}\.\.\.; nothing was changed, load"
    ):
        RngState.from_state_dict(whole)


def test_an_int_that_no_state_writes_is_refused(whole: Any) -> None:
    with pytest.raises(StateFormatError, match=r"'streams': an int of more than 1024 bits; nothing was changed"):
        RngState.from_state_dict({**whole, "streams": {"also[0]": {"kind": "object", "state": 1 << 1024}}})


# Files


class Executed:
    """What makes a folder where it is unpickled by anything that unpickles objects."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def damaged_bytes(data: bytes, chance: random.Random, evil: bytes) -> bytes:
    """Damage bytes at some places."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at, other = (chance.randrange(len(changed) + 1) for _ in range(2))
        size = chance.choice([1, 4, 8, 16, 64, 256])
        how = chance.randrange(8)
        if how == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            del changed[at:]
        elif how == 2:
            del changed[at : at + size]
        elif how == 3:
            changed[at:at] = changed[other : other + size]
        elif how == 4:
            changed[at : at + size] = changed[other : other + size]
        elif how == 5:
            changed[at : at + size] = chance.randbytes(size)
        elif how == 6:  # a length, perhaps
            changed[at : at + 4] = struct.pack("<I", chance.choice([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1]))
        else:
            changed[at:at] = evil
    return bytes(changed)


@pytest.fixture
def evil(tmp_path: Path) -> Iterator[bytes]:
    """Give a pickle that leaves a trace if anything loads it."""
    yield pickle.dumps(Executed(tmp_path / "executed"))
    assert not (tmp_path / "executed").exists()


def test_the_evil_pickle_would_be_noticed(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Executed(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


# The files of traces


def a_trace(path: Path, count: int) -> bytes:
    writer = Writer(path)
    for index in range(count):
        line = Source(f"file{index % 3}.py", index, "main")
        place = (f"layer.{index % 5}", line if index % 4 else None)
        numbers = [index * 2**50 + 1] * (index % 4)
        streams = {"python": index} if index % 3 else {}
        unwritten = {0: index - 1} if index % 7 == 6 else {}
        entropy = line if index % 5 == 4 else None
        writer.add(
            (
                f"aten::op{index % 9}",
                numbers,
                "1, 2",
                numbers[:2],
                place,
                index % 2 == 1,
                index % 8 == 7,
                streams,
                entropy,
                unwritten,
            )
        )
    writer.close()
    *blocks, end = blocks_of(path.read_bytes())
    entries = [entry for _, data in blocks for entry in entries_of(data)]
    return sealed([*((b"B", b"".join(entries[at : at + 20])) for at in range(0, len(entries), 20)), end])


def blocks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    blocks, at = [], 12
    while at < len(data):
        kind, length, _ = struct.unpack_from("<cII", data, at)
        blocks.append((kind, data[at + 9 : at + 9 + length]))
        at += 9 + length
    return blocks


def entries_of(data: bytes) -> list[bytes]:
    entries, at = [], 0
    while at < len(data):
        length = 5 + struct.unpack_from("<I", data, at + 1)[0]
        entries.append(data[at : at + length])
        at += length
    return entries


def sealed(blocks: list[tuple[bytes, bytes]]) -> bytes:
    """Return a file of blocks whose lengths and checksums are right, whatever is in them."""
    return (
        tracefile.MAGIC
        + struct.pack("<I", tracefile.VERSION)
        + b"".join(struct.pack("<cII", kind, len(data), zlib.crc32(data)) + data for kind, data in blocks)
    )


def damaged_trace(whole: bytes, chance: random.Random, evil: bytes) -> bytes:
    """Damage the file of a trace, most often with all checksums put right."""
    blocks = blocks_of(whole)
    how = chance.randrange(8)
    if how == 0:
        return damaged_bytes(whole, chance, evil)
    if how == 1:  # blocks in another order, twice or not at all
        return sealed(chance.choices(blocks, k=chance.randrange(len(blocks) + 2)) + blocks[-1:])
    if how == 2:
        count = chance.choice([0, 1, 2**32, 2**63, 2**64 - 1])
        return sealed([*blocks[:-1], (b"E", struct.pack("<Q", count))])
    at = chance.randrange(len(blocks))
    kind, data = blocks[at]
    data = damaged_bytes(data, chance, evil)
    if kind == b"B" and how > 4:  # a word of an entry, so that entries stay entries
        data = damaged_entries(blocks[at][1], chance)
    blocks[at] = kind, data
    return sealed(blocks)


def damaged_entries(data: bytes, chance: random.Random) -> bytes:
    changed, starts = bytearray(data), [0]
    for entry in entries_of(data):
        starts.append(starts[-1] + len(entry))
    for start in chance.choices(starts, k=chance.choice([1, 2, 4])):
        offset = start + chance.choice([1, 5, 6, 9, 10, 13, 14, 17, 18, 21, 22, 25, 26, 30, 34])
        word = struct.pack("<I", chance.choice([0, 1, 2, 3, 5, 9, 2**16, 2**31, 2**32 - 1, chance.randrange(2**32)]))
        if offset + 4 <= len(changed):
            changed[offset : offset + 4] = word
    return bytes(changed)


@every_part
def test_a_damaged_trace_is_refused_or_read(part: int, long: bool, tmp_path: Path, evil: bytes) -> None:
    path = tmp_path / "trace"
    whole, read = a_trace(path, 40), 0
    for number in numbers(part, TRACES, long):
        chance = random.Random(number)
        path.write_bytes(damaged_trace(whole, chance, evil))
        try:
            read += check_trace(path, chance)
        except BaseException as error:
            raise AssertionError(f"trace {number}: {type(error).__name__}: {error}") from error
    assert read


def check_trace(path: Path, chance: random.Random) -> bool:
    """Check that a file is refused as the docs say, or that every way to read it gives the same records."""
    records = None
    with contextlib.suppress(TraceFormatError), refused_for_what_it_is():
        trace = Trace(path)
        records = list(trace) if chance.random() < 0.8 else [trace[index] for index in range(len(trace))]
    if records is None:
        return False
    assert len(trace) == len(records)
    for record in records:
        assert isinstance(record, Record)
        assert isinstance(record.op + record.scalars + record.module + str(record.source) + record.phase, str)
    assert trace[:] == records
    return True


# The files of states


@every_part
def test_a_damaged_file_of_a_state_is_refused_or_the_same(part: int, long: bool, tmp_path: Path, evil: bytes) -> None:
    path, state = tmp_path / "rng.pt", capture(also=random.Random(1))
    save_state(path, state)
    whole, ambient, same = path.read_bytes(), kit.continuation(1), 0
    for number in numbers(part, FILES, long):
        chance = random.Random(number)
        path.write_bytes(damaged_file(whole, chance, evil))
        try:
            with contextlib.suppress(StateFormatError), refused_for_what_it_is():
                assert load_state(path) == state
                same += 1
            assert kit.continuation(1) == ambient
        except BaseException as error:
            raise AssertionError(f"file {number}: {type(error).__name__}: {error}") from error
    assert same or not long


def damaged_file(whole: bytes, chance: random.Random, evil: bytes) -> bytes:
    """Damage the file of a state, or what is in it with all checksums of the archive put right."""
    how = chance.randrange(4)
    if how == 0:
        return damaged_bytes(whole, chance, evil)
    if how == 1:  # the text of the state, which has a digest
        content = torch.load(io.BytesIO(whole), weights_only=True)
        text = damaged_bytes(content["state"].encode(), chance, b'{"base64":"!"}').decode("latin-1")
        data = io.BytesIO()
        torch.save({**content, "state": text}, data)
        return data.getvalue()
    data = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(data, "w") as new:
        names = old.namelist()
        damaged = chance.choice([name for name in names if name.endswith(("data.pkl", "version", "byteorder"))])
        for name in names:
            content = old.read(name)
            if name == damaged:
                content = evil if how == 2 and chance.random() < 0.1 else damaged_bytes(content, chance, evil)
            new.writestr(name, content)
    return data.getvalue()


def test_what_json_makes_of_a_state_is_refused(whole: Any) -> None:
    plain = json.loads(json.dumps(whole, default=torch.Tensor.tolist))
    with pytest.raises(StateFormatError, match=r"^the state dict is damaged or foreign: 'python': "):
        RngState.from_state_dict(plain)
