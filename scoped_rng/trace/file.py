"""The file of a trace: written as the run goes on, read back lazily.

It begins with eight bytes that tell what it is, and a version. Blocks follow, each with its length and a checksum, and
at the end one that holds the number of records; without it the file was cut off. A block is a row of entries: names,
places, and records that refer to them by number. Nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

import os
import struct
import tempfile
import threading
import weakref
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import TraceFormatError

__all__ = ["Draft", "Place", "Record", "Source", "Trace", "Writer"]

MAGIC, VERSION = b"\x93SRTRACE", 1
_HEADER = struct.Struct("<8sI")
_BLOCK = struct.Struct("<cII")  # B or E, how many bytes follow, their CRC-32
_ENTRY = struct.Struct("<cI")  # N, P or R, how many bytes follow
_NUMBER = struct.Struct("<I")
_COUNT = struct.Struct("<Q")
_PLACE = struct.Struct("<IIIII")  # number; names of the module, the file and the function; line
_RECORD = struct.Struct("<BIIIIIII")  # flags, op, place, place of entropy + 1; inputs, outputs, unwritten, streams
_PAIR = struct.Struct("<IQ")
_BACKWARD, _OPAQUE = 1, 2
_BLOCK_SIZE = 512  # records


class Source(NamedTuple):
    """A line of source code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


class Record(NamedTuple):
    """One op of a run."""

    index: int  # type: ignore[assignment]  # in the place of the method of a tuple
    """Its place in the trace."""
    op: str
    """As torch calls it, such as ``aten::add.Tensor``."""
    inputs: tuple[int, ...]
    """The fingerprint of each tensor that the op read, taken before it ran."""
    scalars: str
    """All its other arguments, written out."""
    outputs: tuple[int, ...]
    """The fingerprint of each tensor that it returned or wrote; of a view or of unwritten memory, of its shape."""
    module: str
    """The path of the module, such as ``encoder.layers.3.dropout``; of the outermost one its class; or nothing."""
    phase: str
    """``forward`` or ``backward``."""
    source: Source | None
    """The line that called it, of the forward op where backward has no line of its own."""
    streams: Mapping[str, int]
    """The fingerprint of the streams that had moved since the record before, and of torch's where the op draws."""
    entropy: Source | None
    """The line that last asked the operating system for NumPy's fresh entropy."""
    unwritten: Mapping[int, int]
    """For each input in memory that no op had written, the index of the record that made it."""
    opaque: bool
    """Whether it is a compiled region, of which only inputs and outputs are known."""


Place = tuple[str, "Source | None"]
Draft = tuple[
    str, Sequence[int], str, Sequence[int], Place, bool, bool, Mapping[str, int], "Source | None", Mapping[int, int]
]
"""What `Writer.add` writes down: op, inputs, scalars, outputs, place, whether backward, whether opaque, streams,
entropy, unwritten."""


@lru_cache(maxsize=256)
def _record_with(numbers: int) -> struct.Struct:
    return struct.Struct(f"{_ENTRY.format}{_RECORD.format[1:]}{numbers}Q")


class Writer:
    """Write a trace; what is kept in memory does not grow with the number of records."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._file.write(_HEADER.pack(MAGIC, VERSION))
        self._end = _HEADER.size
        self._file.flush()
        self._owner = os.getpid()
        self._lock = threading.RLock()  # autograd runs backward on a thread for each accelerator
        self._written = 0
        self._drafts: list[Draft] = []
        self._definitions: list[bytes] = []  # the names and places that they are the first to use
        self._names: dict[str, int] = {}
        self._places: dict[tuple[str, Source | None], int] = {}

    # An interrupt can come between any two lines. Numbers are written along with what they stand for, so that a
    # definition that comes twice, or is never used, does no harm.
    def _name(self, text: str) -> int:
        number = self._names.get(text)
        if number is None:
            number = len(self._names)
            self._define(b"N", _NUMBER.pack(number) + text.encode("utf-8", "surrogatepass"))
            self._names[text] = number
        return number

    def _place(self, place: tuple[str, Source | None]) -> int:
        number = self._places.get(place)
        if number is None:
            module, source = place
            file, line, function = source or Source("", 0, "")
            number = len(self._places)
            names = self._name(module), self._name(file), self._name(function)
            self._define(b"P", _PLACE.pack(number, *names, line))
            self._places[place] = number
        return number

    def _define(self, kind: bytes, data: bytes) -> None:
        self._definitions.append(_ENTRY.pack(kind, len(data)) + data)

    def add(self, draft: Draft) -> int:
        """Take in a record, to be written along with others, and return its index."""
        with self._lock:
            self._drafts.append(draft)
            index = self._written + len(self._drafts) - 1
            if len(self._drafts) >= _BLOCK_SIZE:
                self._flush()
            return index

    def _flush(self) -> None:
        drafts = self._drafts
        records = [self._record(*draft) for draft in drafts]
        self._put(b"B", b"".join((*self._definitions, *records)))
        self._written, self._drafts, self._definitions = self._written + len(drafts), [], []

    def _record(
        self,
        op: str,
        inputs: Sequence[int],
        scalars: str,
        outputs: Sequence[int],
        place: Place,
        backward: bool,
        opaque: bool,
        streams: Mapping[str, int],
        entropy: Source | None,
        unwritten: Mapping[int, int],
    ) -> bytes:
        rest = scalars.encode("utf-8", "surrogatepass")
        if unwritten or streams:
            pairs = [*unwritten.items(), *((self._name(name), state) for name, state in streams.items())]
            rest = b"".join(_PAIR.pack(*pair) for pair in pairs) + rest
        numbers = len(inputs) + len(outputs)
        return (
            _record_with(numbers).pack(
                b"R",
                _RECORD.size + 8 * numbers + len(rest),
                backward * _BACKWARD | opaque * _OPAQUE,
                self._names.get(op) or self._name(op),
                self._places.get(place) or self._place(place),
                0 if entropy is None else 1 + self._place(("", entropy)),
                len(inputs),
                len(outputs),
                len(unwritten),
                len(streams),
                *inputs,
                *outputs,
            )
            + rest
        )

    def _put(self, kind: bytes, data: bytes) -> None:
        block = _BLOCK.pack(kind, len(data), zlib.crc32(data)) + data
        self._file.seek(self._end)  # over what an interrupt has left half written
        self._file.write(block)
        self._file.flush()  # so that a forked child has nothing left to write
        self._end += len(block)

    def close(self) -> None:
        """Write what is left, and the end."""
        with self._lock:
            if os.getpid() != self._owner:  # a forked child, whose parent goes on writing
                self._file.close()
            if not self._file.closed:
                if self._drafts:
                    self._flush()
                self._put(b"E", _COUNT.pack(self._written))
                self._file.truncate()
                self._file.close()


class _Names:
    """The names and places of a file, as far as it was read."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.places: dict[int, tuple[str, Source | None]] = {}

    def define(self, kind: bytes, data: bytes) -> None:
        if kind == b"N":
            (number,) = _NUMBER.unpack_from(data)
            self.names[number] = data[_NUMBER.size :].decode("utf-8", "surrogatepass")
        elif kind == b"P":
            number, module, file, function, line = _PLACE.unpack(data)
            source = Source(self.names[file], line, self.names[function])
            self.places[number] = self.names[module], source if source.file else None
        else:
            raise ValueError(f"an entry of the kind {kind!r}")

    def record(self, index: int, data: bytes) -> Record:
        flags, op, place, entropy, inputs, outputs, unwritten, streams = _RECORD.unpack_from(data)
        end = _RECORD.size + 8 * (inputs + outputs)
        pairs = end + _PAIR.size * (unwritten + streams)
        if pairs > len(data):
            raise ValueError("a record that is longer than it is")
        numbers = struct.unpack_from(f"<{inputs + outputs}Q", data, _RECORD.size)
        rest = list(_PAIR.iter_unpack(data[end:pairs]))
        module, source = self.places[place]
        return Record(
            index,
            self.names[op],
            numbers[:inputs],
            data[pairs:].decode("utf-8", "surrogatepass"),
            numbers[inputs:],
            module,
            "backward" if flags & _BACKWARD else "forward",
            source,
            {self.names[name]: state for name, state in rest[unwritten:]},
            self.places[entropy - 1][1] if entropy else None,
            dict(rest[:unwritten]),
            bool(flags & _OPAQUE),
        )


class Trace(Sequence[Record]):
    """The records of a run, read from their file as they are asked for.

    `record` makes one; ``Trace(path)`` opens the file of an earlier run.

    Raises:
        TraceFormatError: the file is not a trace, or of another version; on reading, that it is damaged or cut off.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._writer: Writer | None = None
        self._index: tuple[_Names, list[int], list[int], int] | None = None
        with self.path.open("rb") as file:
            self._check_header(file)

    @classmethod
    def begin(cls, path: str | os.PathLike[str] | None) -> tuple[Trace, Writer]:
        """Return the trace of a run that begins now, and what writes it; without a path its file goes when it goes."""
        trace = cls.__new__(cls)
        if path is None:
            handle, name = tempfile.mkstemp(prefix="scoped_rng-", suffix=".trace")
            os.close(handle)
            weakref.finalize(trace, _unlink, name, os.getpid())
            path = name
        trace.path, trace._index, trace._writer = Path(path), None, Writer(Path(path))
        return trace, trace._writer

    def end(self) -> None:
        """Finish the file of a run that has ended."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __repr__(self) -> str:
        return f"<Trace {self.path}>"

    def __iter__(self) -> Iterator[Record]:
        names, index = _Names(), 0
        for _, data in self._blocks():
            for record in self._records(names, index, data):
                yield record
                index += 1

    def __len__(self) -> int:
        return self._indexed()[3]

    def __getitem__(self, index: Any) -> Any:
        names, firsts, offsets, count = self._indexed()
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(count))]
        place = range(count)[index]  # which knows negative ones, and when to raise
        block = bisect_right(firsts, place) - 1
        with self.path.open("rb") as file:
            file.seek(offsets[block])
            _, data = self._block(file)
            for record in self._records(names, firsts[block], data):
                if record.index == place:
                    return record
        raise self._damaged("it has changed since it was read first")

    def _indexed(self) -> tuple[_Names, list[int], list[int], int]:
        """Return all names, the first index and the offset of each block, and the number of records."""
        if self._index is None:
            names, firsts, offsets, count = _Names(), [], [], 0
            for offset, data in self._blocks():
                firsts.append(count)
                offsets.append(offset)
                for _ in self._records(names, count, data):
                    count += 1
            self._index = names, firsts, offsets, count
        return self._index

    def _check_header(self, file: BinaryIO) -> None:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or header[:8] != MAGIC:
            raise TraceFormatError(f"{self.path} is not a trace: it does not begin as the files that record() writes")
        version = _HEADER.unpack(header)[1]
        if version != VERSION:
            raise TraceFormatError(
                f"{self.path} is a trace of version {version}, this is for version {VERSION}; read it with the "
                "scoped_rng that wrote it, or record it again"
            )

    def _damaged(self, how: str) -> TraceFormatError:
        return TraceFormatError(f"{self.path} is damaged: {how}; record it again")

    def _block(self, file: BinaryIO) -> tuple[bytes, bytes]:
        head = file.read(_BLOCK.size)
        left = os.fstat(file.fileno()).st_size - file.tell()
        kind, length, checksum = _BLOCK.unpack(head) if len(head) == _BLOCK.size else (b"", 0, 0)
        if not kind or length > left:  # so that no more is read than there is
            raise self._damaged("it was cut off before its end, as when the run was killed")
        data = file.read(length)
        if kind not in (b"B", b"E") or zlib.crc32(data) != checksum:
            raise self._damaged("a checksum is wrong")
        return kind, data

    def _blocks(self) -> Iterator[tuple[int, bytes]]:
        """Read the blocks one after the other, and check that they are all."""
        if self._writer is not None:
            raise RuntimeError(f"{self!r} is being recorded; read it after the block of record()")
        with self.path.open("rb") as file:
            self._check_header(file)
            count = 0
            while True:
                offset = file.tell()
                kind, data = self._block(file)
                if kind == b"E":
                    break
                count += sum(kind == b"R" for kind, _ in self._entries(data))
                yield offset, data
            if data != _COUNT.pack(count) or file.read(1):
                raise self._damaged("its end is not that of its records")

    def _entries(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        position = 0
        while position < len(data):
            if position + _ENTRY.size > len(data):
                raise self._damaged("an entry is cut off")
            kind, length = _ENTRY.unpack_from(data, position)
            position += _ENTRY.size + length
            if position > len(data):
                raise self._damaged("an entry is cut off")
            yield kind, data[position - length : position]

    def _records(self, names: _Names, index: int, data: bytes) -> Iterator[Record]:
        for kind, entry in self._entries(data):
            try:
                if kind != b"R":
                    names.define(kind, entry)
                    continue
                record = names.record(index, entry)
            except (struct.error, KeyError, ValueError) as error:
                raise self._damaged(f"{type(error).__name__}: {error}") from None
            yield record
            index += 1


def _unlink(path: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child
        Path(path).unlink(missing_ok=True)
