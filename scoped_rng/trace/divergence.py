"""Where two runs part, and what brought the difference in. Reads traces, and imports neither torch nor numpy."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import Match, SequenceMatcher
from itertools import chain, islice
from typing import Any, Literal

from .file import Record, Source, Trace

__all__ = ["Divergence", "Kind", "first_divergence"]

Kind = Literal["op", "stream", "input", "uninitialised", "sequence"]
_WINDOW = 512  # records on either side in which the runs may both have called others
_MEETING = 32  # so many ops in a row are the same again where they meet


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
        where = f"{found.op} (record {found.index}, {found.phase}{f', in {found.module}' if found.module else ''})"
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
            made = "an op" if self.origin is None else _told(self.origin)
            yield f"it reads what was left in memory that {made} had made and that no op had written whole."
            yield "Use torch.zeros, or write all of it before it is read;"
            yield "unless another thread, NumPy or another library has filled it, which is not recorded."
            if self.streams:
                yield from self._blame()
        elif self.kind == "input":
            yield "something that it reads differs, and no op before it made that: it came from outside torch."
            if self.first is not None and self.second is not None and self.first.scalars != self.second.scalars:
                one, other = self.first.scalars, self.second.scalars
                yield f"It was called with ({one}) in the first run and with ({other}) in the second."
            yield from self._blame()
        else:
            if self.first is not None and self.second is not None:
                yield f"the first run calls it where the second calls {_told(self.second)}; up to there both agree."
            else:
                yield f"only the {'second' if self.first is None else 'first'} run calls it; up to there both agree."
            yield from self._blame()

    def _blame(self) -> Iterator[str]:
        if not self.streams:
            yield (
                "No random stream had parted by then: look for what was read from a file, the order of a directory or "
                "of a set (PYTHONHASHSEED), the time, another thread or process, or a generator made before the "
                "recording."
            )
            return
        several = len(self.streams) > 1
        yield f"The random stream{'s' if several else ''} {' and '.join(self.streams)} had parted by then."
        if "numpy.entropy" in self.streams and self.entropy is not None:
            yield f"NumPy drew entropy from the operating system at {self.entropy}: give that generator a seed."


def _told(record: Record) -> str:
    return record.op if record.source is None else f"{record.op} at {record.source}"


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

    def find(self, others: list[Record], window: list[Record]) -> tuple[int | None, int]:
        """Return after how many records, ``window`` and what follows, the others come, and how many there are."""
        wanted = [_key(record) for record in others[:_MEETING]] + [None] * (len(others) < _MEETING)
        latest: deque[Any] = deque(maxlen=len(wanted))
        place, count = None, -1
        for record in chain(window, self._records, [None]):
            latest.append(record and _key(record))
            count += 1
            if place is None and latest[-1] == wanted[-1] and list(latest) == wanted:
                place = count + 1 - len(wanted)
        return place, count


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
    """Find where the runs meet again, and name the first op that only one of them has.

    They meet where the ops that one calls next come later in the other, which has the ops before that alone; or where
    both have called others in between. The nearest such place counts.
    """
    streams, entropy = _parted(one, two), one.entropy or two.entropy
    if (first is not None and "torch" in first.streams) != (second is not None and "torch" in second.streams):
        streams = tuple(name for name in streams if name != "torch")  # looked at in one of them alone: where it draws
    ours, theirs = one.window(first), two.window(second)
    matcher = SequenceMatcher(None, [_key(record) for record in ours], [_key(record) for record in theirs], False)
    long = [block for block in matcher.get_matching_blocks() if _is_meeting(block, ours, theirs)]
    after_ours, left = one.find(theirs, ours)
    after_theirs, left_of_theirs = two.find(ours, theirs)
    found = [place for place in (after_ours, after_theirs) if place is not None]
    tag, i, j = "replace", 0, 0
    if long and (not found or long[0].a + long[0].b < min(found)):
        tag, i, _, j, _ = next(code for code in matcher.get_opcodes() if code[0] != "equal")
    elif len(found) == 2 and left != left_of_theirs:  # they go round in circles; what is more in all is more here
        tag = "delete" if left > left_of_theirs else "insert"
    elif found:
        tag = "delete" if after_ours == min(found) else "insert"
    return Divergence(
        "sequence",
        None if tag == "insert" or not ours else ours[i],
        None if tag == "delete" or not theirs else theirs[j],
        streams,
        entropy,
    )


def _is_meeting(block: Match, ours: list[Record], theirs: list[Record]) -> bool:
    """Return whether so many ops are the same that they are so not by chance, or all up to the end."""
    ends = (block.a + block.size, block.b + block.size) == (len(ours), len(theirs)) and len(ours) < _WINDOW
    return block.size >= _MEETING or bool(ends and block.size)
