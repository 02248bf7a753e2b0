"""The file of a trace: what is written comes back, lazily, and nothing else does."""

from __future__ import annotations

import gc
import os
import re
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from scoped_rng.errors import ScopedRngError
from scoped_rng.trace import Record, Source, Trace, TraceFormatError
from scoped_rng.trace import file as tracefile
from scoped_rng.trace.file import Writer

LINE = Source("train.py", 7, "main")


def draft(op: str = "aten::add", **changes: Any) -> Any:
    fields = {
        "op": op,
        "inputs": [1, 2**64 - 1],
        "scalars": "1, alpha=2",
        "outputs": [3],
        "place": ("encoder.0", LINE),
        "backward": False,
        "opaque": False,
        "streams": {"python": 5},
        "entropy": None,
        "unwritten": {1: 0},
    }
    return tuple({**fields, **changes}.values())


def written(path: Path, *drafts: Any) -> Trace:
    writer = Writer(path)
    for one in drafts or (draft(),):
        writer.add(one)
    writer.close()
    return Trace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.trace"


def test_a_record_comes_back_as_it_was_written(path: Path) -> None:
    trace = written(path, draft(), draft("aten::mul", backward=True, opaque=True, entropy=LINE, place=("", None)))
    assert list(trace) == [
        Record(0, "aten::add", (1, 2**64 - 1), "1, alpha=2", (3,), "encoder.0", "forward", LINE, {"python": 5}, None,
               {1: 0}, False),
        Record(1, "aten::mul", (1, 2**64 - 1), "1, alpha=2", (3,), "", "backward", None, {"python": 5}, LINE, {1: 0},
               True),
    ]  # fmt: skip


text = st.text(st.characters(), max_size=20)
word = st.integers(0, 2**64 - 1)
line = st.builds(Source, text.filter(bool), st.integers(0, 2**32 - 1), text)
drafts = st.tuples(
    text,
    st.lists(word, max_size=5),
    text,
    st.lists(word, max_size=5),
    st.tuples(text, st.none() | line),
    st.booleans(),
    st.booleans(),
    st.dictionaries(text, word, max_size=3),
    st.none() | line,
    st.dictionaries(st.integers(0, 2**32 - 1), word, max_size=3),
)


@given(st.lists(drafts, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_written_comes_back(tmp_path: Path, given: list[Any]) -> None:
    writer = Writer(tmp_path / "trace")
    indices = [writer.add(one) for one in given]
    writer.close()
    trace = Trace(tmp_path / "trace")
    assert indices == list(range(len(given)))
    for record, one in zip(trace, given, strict=True):
        op, inputs, scalars, outputs, (module, source), backward, opaque, streams, entropy, unwritten = one
        assert record[1:6] == (op, tuple(inputs), scalars, tuple(outputs), module)
        assert (record.phase == "backward", record.opaque) == (backward, opaque)
        assert (record.source, record.streams, record.entropy) == (source, streams, entropy)
        assert record.unwritten == unwritten


def test_a_trace_is_a_sequence(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracefile, "_BLOCK_SIZE", 3)
    trace = written(path, *(draft(f"op {index}") for index in range(100)))
    assert len(trace) == 100
    assert [trace[index].op for index in (0, 1, 50, 99, -1)] == ["op 0", "op 1", "op 50", "op 99", "op 99"]
    assert [trace[index].index for index in range(100)] == list(range(100))
    assert [record.op for record in trace[97:]] == ["op 97", "op 98", "op 99"]
    with pytest.raises(IndexError):
        trace[100]
    assert repr(trace) == f"<Trace {path}>"


def test_two_readers_of_one_trace_do_not_disturb_each_other(path: Path) -> None:
    trace = written(path, *(draft(f"op {index}") for index in range(5)))
    one, other = iter(trace), iter(trace)
    assert [next(one).op, next(other).op, trace[4].op, next(one).op] == ["op 0", "op 0", "op 4", "op 1"]


def test_neither_writing_nor_reading_keeps_the_records(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracefile, "_BLOCK_SIZE", 10)
    writer = Writer(path)
    for _ in range(1000):
        writer.add(draft())
        assert len(writer._drafts) < 10
    writer.close()
    assert max(len(data) for _, data in Trace(path)._blocks()) < 1200


def test_the_file_of_a_trace_without_a_path_goes_with_the_trace() -> None:
    trace, writer = Trace.begin(None)
    writer.add(draft())
    trace.end()
    path = trace.path
    assert len(trace) == 1
    assert path.exists()
    del trace, writer
    gc.collect()
    assert not path.exists()


def test_another_process_leaves_the_file_alone(path: Path) -> None:
    path.touch()
    tracefile._unlink(str(path), os.getpid() + 1)
    assert path.exists()


def test_a_trace_is_read_after_its_run(path: Path) -> None:
    trace, _ = Trace.begin(path)
    with pytest.raises(RuntimeError, match="is being recorded; read it after the block of"):
        list(trace)
    trace.end()
    trace.end()
    assert list(trace) == []


def test_threads_write_whole_records(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracefile, "_BLOCK_SIZE", 3)
    writer = Writer(path)

    def write(name: str) -> None:
        for index in range(200):
            writer.add(draft(f"{name} {index}", place=(f"{name} {index}", None)))

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    found = [record.op for record in Trace(path)]
    assert sorted(found) == sorted(f"{name} {index}" for name in "abc" for index in range(200))


def test_a_block_that_was_interrupted_is_written_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(path)
    writer.add(draft())
    file = writer._file

    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

        def write(self, data: bytes) -> None:
            file.write(data[:20])
            raise KeyboardInterrupt

    monkeypatch.setattr(writer, "_file", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        writer._flush()
    monkeypatch.setattr(writer, "_file", file)
    writer.add(draft("aten::mul"))
    writer.close()
    assert [record.op for record in Trace(path)] == ["aten::add", "aten::mul"]


def refused(path: Path, message: str) -> None:
    with pytest.raises(TraceFormatError, match=re.escape(message)) as refusal:
        list(Trace(path))
    assert isinstance(refusal.value, ScopedRngError)
    assert isinstance(refusal.value, ValueError)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("data", [b"", b"\x93SRT", b"import torch\n" * 9, b"\x80\x04\x95" + bytes(40)])
def test_a_foreign_file_is_refused_on_opening(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(TraceFormatError, match="is not a trace: it does not begin as the files that record"):
        Trace(path)


def test_a_newer_version_is_refused(path: Path) -> None:
    written(path)
    path.write_bytes(tracefile.MAGIC + struct.pack("<I", 2) + path.read_bytes()[12:])
    refused(path, "is a trace of version 2, this is for version 1; read it with the scoped_rng that wrote it")


def test_a_file_that_is_not_there_is_an_error_of_the_system(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Trace(path)


def test_a_file_that_was_cut_off_anywhere_is_refused(path: Path) -> None:
    written(path, draft(), draft("aten::mul"))
    whole = path.read_bytes()
    for length in range(12, len(whole)):
        path.write_bytes(whole[:length])
        refused(path, "is damaged: it was cut off before its end, as when the run was killed; record it again")


def test_every_flipped_bit_is_noticed(path: Path) -> None:
    written(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(TraceFormatError):
            list(Trace(path))


def test_more_than_there_should_be_is_refused(path: Path) -> None:
    written(path)
    path.write_bytes(path.read_bytes() + b"x")
    refused(path, "is damaged: its end is not that of its records")


def block(kind: bytes, data: bytes) -> bytes:
    return struct.pack("<cII", kind, len(data), zlib.crc32(data)) + data


def entry(kind: bytes, data: bytes) -> bytes:
    return struct.pack("<cI", kind, len(data)) + data


HEADER = tracefile.MAGIC + struct.pack("<I", 1)
END = block(b"E", struct.pack("<Q", 0))
ONE = block(b"E", struct.pack("<Q", 1))
HOSTILE = {
    "an unknown block": block(b"Z", b"") + END,
    "a count of none": block(b"B", entry(b"R", bytes(29))) + END,
    "an end of another size": block(b"E", b""),
    "half an entry": block(b"B", b"N\0") + END,
    "an entry beyond its block": block(b"B", struct.pack("<cI", b"N", 99)) + END,
    "an unknown entry": block(b"B", entry(b"Z", b"")) + END,
    "a name without a number": block(b"B", entry(b"N", b"")) + END,
    "a name that is not text": block(b"B", entry(b"N", bytes(4) + b"\xff\xfe")) + END,
    "a place of unknown names": block(b"B", entry(b"P", bytes(20))) + END,
    "a record of an unknown op": block(b"B", entry(b"R", bytes(29))) + ONE,
    "a record of billions": block(b"B", entry(b"R", struct.pack("<BIIIIIII", 0, 0, 0, 0, *[2**32 - 1] * 4))) + ONE,
    "a block of gigabytes": struct.pack("<cII", b"B", 2**32 - 1, 0),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused(path: Path, case: str) -> None:
    path.write_bytes(HEADER + HOSTILE[case])
    refused(path, "is damaged")


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_no_bytes_do_anything_but_be_refused(tmp_path: Path, data: st.DataObject) -> None:
    small = st.integers(0, 3) | st.integers(0, 2**32 - 1)
    name = st.builds(lambda number, text: entry(b"N", struct.pack("<I", number) + text), small, st.binary(max_size=9))
    place = st.builds(lambda numbers: entry(b"P", struct.pack("<5I", *numbers)), st.tuples(*[small] * 5))
    head = st.tuples(st.integers(0, 255), *[small] * 7)
    record = st.builds(lambda head, rest: entry(b"R", struct.pack("<B7I", *head) + rest), head, st.binary(max_size=60))
    blocks = st.builds(lambda entries: block(b"B", b"".join(entries)), st.lists(name | place | record, max_size=6))
    ends = st.builds(lambda count: block(b"E", struct.pack("<Q", count)), small)
    content = b"".join(data.draw(st.lists(blocks | st.binary(max_size=20), max_size=3))) + data.draw(ends)
    path = tmp_path / "trace"
    path.write_bytes(HEADER + content)
    try:
        for given in Trace(path):
            assert isinstance(given, Record)
    except TraceFormatError:
        pass


def test_a_file_that_changes_between_two_reads_is_noticed(path: Path) -> None:
    trace = written(path, draft(), draft())
    assert len(trace) == 2
    written(path, draft())
    with pytest.raises(TraceFormatError, match="is damaged: it has changed since it was read first"):
        trace[1]


def fork(body: Callable[[], None]) -> None:
    child = os.fork()
    if child == 0:
        body()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
def test_a_forked_child_cannot_harm_the_file(path: Path) -> None:
    trace, writer = Trace.begin(path)
    writer.add(draft())
    fork(trace.end)
    writer.add(draft())
    trace.end()
    assert len(trace) == 2
