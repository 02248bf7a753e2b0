"""Where two runs part, and what brought the difference in. Reads traces, and imports neither torch nor numpy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from typing import Literal

from .file import Record, Source, Trace

__all__ = ["Divergence", "Kind", "first_divergence"]

Kind = Literal["op", "stream", "input", "uninitialised", "sequence"]
_WINDOW = 512  # records on either side in which the same ops are looked for again


@dataclass(frozen=True)
class Divergence:
    """The first place where two runs part. ``str()`` of it is a paragraph to act on."""

    kind: Kind
    """What brought the difference in.

    - ``op``: the op itself, whose output differs while all that it read is the same;
    - ``stream``: the torch generator that the op draws from, whose state differed before;
    - ``input``: something outside torch, which the op is the first to read;
    - ``uninitialised``: memory that no op had written when this one read it;
    - ``sequence``: nothing that was recorded; only one of the runs calls this op here.
    """
    first: Record | None
    """The op in the first run; None where only the second has it."""
    second: Record | None
    """The op in the second run; None where only the first has it."""
    streams: tuple[str, ...] = ()
    """Which streams of random numbers had parted by then: ``python``, ``numpy``, ``numpy.entropy``, ``torch``."""
    entropy: Source | None = None
    """The line that drew NumPy's fresh entropy from the operating system, where that stream had parted."""
    origin: Record | None = None
    """For ``uninitialised``, the op in the first run that made the memory."""

    @property
    def record(self) -> Record:
        """The op to look at: that of the first run, or else of the second."""
        found = self.first or self.second
        assert found is not None
        return found

    def __str__(self) -> str:
        found = self.record
        where = f"{found.op} (record {found.index}, {found.phase}"
        where += f", in {found.module})" if found.module else ")"
        if found.source is not None:
            where += f" at {found.source}"
        return f"the runs part at {where}: {' '.join(self._why())}"

    def _why(self) -> Iterator[str]:
        found = self.record
        if self.kind == "op":
            yield "its output differs while all its inputs agree, so the op itself brought the difference in."
            if found.opaque:
                yield "It is a compiled region, which is opaque: run without torch.compile to see the op inside."
            else:
                yield (
                    "Ask for deterministic algorithms with deterministic(seed), which the program must not switch off, "
                    "and give torch the same number of threads in every run: torch.set_num_threads(1), say."
                )
        elif self.kind == "stream":
            yield (
                "it draws from a torch generator whose state differed before. Something reseeded it, such as "
                "torch.seed(), or drew from it outside of what is recorded, such as another thread."
            )
        elif self.kind == "uninitialised":
            made = f" at {self.origin.source}" if self.origin is not None and self.origin.source is not None else ""
            yield (
                f"it reads memory that no op had written{f': {self.origin.op}{made}' if self.origin else ''}. "
                "Use torch.zeros, or write all of it before it is read."
            )
            if self.streams:
                yield f"If NumPy or another library has filled it: {self._blame()}"
        elif self.kind == "input":
            yield "something that it reads differs, and no op before it made that: it came from outside torch."
            if self.first is not None and self.second is not None and self.first.scalars != self.second.scalars:
                yield f"Its other arguments are ({self.first.scalars}) and ({self.second.scalars})."
            yield self._blame()
        else:
            only = "the second run alone" if self.first is None else "the first run alone"
            if self.first is not None and self.second is not None:
                yield f"the first run calls it where the second calls {self.second.op}"
                yield f"at {self.second.source}." if self.second.source is not None else "."
            else:
                yield f"{only} calls it; up to there both agree."
            yield self._blame()

    def _blame(self) -> str:
        if "numpy.entropy" in self.streams and self.entropy is not None:
            drew = f" NumPy drew entropy from the operating system at {self.entropy}: give that generator a seed."
        else:
            drew = ""
        if self.streams:
            return f"Random streams that had parted by then: {', '.join(self.streams)}.{drew}"
        return (
            "No random stream had parted by then: look for a file or the order of a directory, the time, the order of "
            "a set (PYTHONHASHSEED), another thread or process, or a generator made before the recording."
        )


class _Run:
    """One of the two runs: the records ahead, and the streams as they were last seen."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._records = iter(trace)
        self.streams: dict[str, int] = {}
        self.entropy: Source | None = None

    def next(self) -> Record | None:
        record = next(self._records, None)
        if record is not None:
            self.streams.update(record.streams)
            self.entropy = record.entropy or self.entropy
        return record

    def window(self, record: Record | None) -> list[Record]:
        return [] if record is None else [record, *islice(self._records, _WINDOW - 1)]


def first_divergence(a: Trace | str | os.PathLike[str], b: Trace | str | os.PathLike[str]) -> Divergence | None:
    """Return where two runs first part, or None if every op of theirs agrees.

    Args:
        a: a trace that `record` has made, or the path of one.
        b: the other.

    Raises:
        TraceFormatError: a file is damaged, cut off, or not a trace.

    >>> import torch
    >>> from scoped_rng.trace import first_divergence, record
    >>> with record() as a:
    ...     _ = torch.ones(3) + 1
    >>> with record() as b:
    ...     _ = torch.ones(3) + 2
    >>> first_divergence(a, a) is None
    True
    >>> first_divergence(a, b).kind
    'input'
    """
    one, two = (_Run(trace if isinstance(trace, Trace) else Trace(trace)) for trace in (a, b))
    while True:
        first, second = one.next(), two.next()
        if first is None and second is None:
            return None
        if first is None or second is None or first.op != second.op:
            return _sequence(one, two, first, second)
        if first.inputs != second.inputs or first.scalars != second.scalars:
            if _key(first) != _key(second):
                return _sequence(one, two, first, second)
            return _input(one, two, first, second)
        if first.outputs != second.outputs:
            drawn = [name for name in ("torch", "generator") if first.streams.get(name) != second.streams.get(name)]
            return Divergence("stream" if drawn else "op", first, second, tuple(drawn))


def _key(record: Record) -> tuple[object, ...]:
    """Return what makes a record the same op of the program, in whatever folder the program lies."""
    source = None if record.source is None else record.source[1:]
    return record.op, record.phase, record.module, source


def _parted(one: _Run, two: _Run) -> tuple[str, ...]:
    names = [name for name in dict.fromkeys((*one.streams, *two.streams)) if name != "generator"]
    return tuple(name for name in names if one.streams.get(name) != two.streams.get(name))


def _input(one: _Run, two: _Run, first: Record, second: Record) -> Divergence:
    pairs = zip(first.inputs, second.inputs, strict=False)  # which may be of different numbers
    for position, (ours, theirs) in enumerate(pairs):
        if ours != theirs and position in first.unwritten:
            origin = one.trace[first.unwritten[position]]
            return Divergence("uninitialised", first, second, _parted(one, two), origin=origin)
        if ours != theirs:
            break
    return Divergence("input", first, second, _parted(one, two), one.entropy or two.entropy)


def _sequence(one: _Run, two: _Run, first: Record | None, second: Record | None) -> Divergence:
    """Find where the runs meet again, and name the first op that only one of them has."""
    streams, entropy = _parted(one, two), one.entropy or two.entropy
    ours, theirs = one.window(first), two.window(second)
    matcher = SequenceMatcher(None, [_key(record) for record in ours], [_key(record) for record in theirs], False)
    tag, i, _, j, _ = next(code for code in matcher.get_opcodes() if code[0] != "equal")
    return Divergence(
        "sequence",
        None if tag == "insert" else ours[i],
        None if tag == "delete" else theirs[j],
        streams,
        entropy,
    )
