"""Run a target several times, each in a fresh interpreter under the same seed, and find where the runs differ."""

from __future__ import annotations

import dataclasses
import filecmp
import json
import linecache
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import TraceFormatError
from .advice import advise, advise_on_text
from .children import Ended, Output, Plan, call, run
from .launch import Target
from .texts import byte_that_differs, cut, line_that_differs, steady, warned

if TYPE_CHECKING:
    from ..trace.divergence import Divergence
    from ..trace.file import Record

__all__ = ["Difference", "Parting", "Report", "Run", "check", "strip"]

_CELLS = 64
_CONTEXT = 2  # lines of source above and below

Verdict = Literal["reproducible", "not reproducible", "failed"]
SAME, DIFFERS, NOT_COMPARED = "same", "differs", "not compared"
OPS, PRINTED = "torch ops", ("stdout", "stderr")


@dataclasses.dataclass(frozen=True)
class Run:
    """What became of one run."""

    number: int
    status: int
    seconds: float
    ops: int | None
    """How many torch ops there were; None without a whole trace."""
    found: dict[str, str]
    """How each thing compares with the first run: ``same``, ``differs``, or why it does neither."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Something in which a run differs from the first."""

    run: int
    what: str
    told: str
    first: str | None = None
    second: str | None = None
    advice: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Parting:
    """Where the torch ops of a run part from those of the first."""

    run: int
    kind: str
    told: str
    op: str
    index: int
    phase: str
    module: str
    file: str | None
    line: int | None
    function: str | None
    streams: tuple[str, ...]
    why: str
    source: dict[int, str]
    """The line and those round it."""
    strip: tuple[float, ...]
    """How much differs in each stretch of ops along the run."""
    at: int
    """The stretch in which the runs part."""
    advice: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a check has found."""

    verdict: Verdict
    told: str
    target: str
    args: tuple[str, ...]
    seed: int
    strict: bool
    hash_seed: int | None
    runs: list[Run]
    differences: list[Difference]
    parting: Parting | None
    """Of the first run whose ops differ."""
    failure: str
    """What the first run that failed has written to stderr."""
    notes: tuple[str, ...]
    """What torch has warned of, and what is missing."""

    @property
    def exit_code(self) -> int:
        """0 reproducible, 1 not, 2 the target failed, or could not be compared."""
        return {"reproducible": 0, "not reproducible": 1, "failed": 2}[self.verdict]


def check(plan: Plan, started: Callable[[int], Any] = lambda number: None) -> Report:
    """Run the target as often as planned, and compare every run with the first.

    Args:
        plan: what to run.
        started: called with the number of each run that begins, and with 0 when they are being compared.
    """
    with tempfile.TemporaryDirectory(prefix="scoped_rng-", ignore_cleanup_errors=True) as name:
        folder, ended = Path(name), []
        outputs = [Output(path, folder / f"before{place}") for place, path in enumerate(plan.outputs)]
        for number in range(1, plan.runs + 1):
            started(number)
            ended.append(run(plan, number, folder / str(number), outputs))
        started(0)
        return _Comparison(plan, ended).report()


class _Comparison:
    """Each run against the first."""

    def __init__(self, plan: Plan, ended: list[Ended]) -> None:
        self.plan, self.ended, self.first = plan, ended, ended[0]
        self.script = _script(plan.target)
        self.differences: list[Difference] = []
        self.parting: Parting | None = None
        self.unread: list[int] = []  # runs whose trace is not whole
        self.trouble: list[str] = []  # what cannot be compared, and has to be
        self.notes: list[str] = []

    def report(self) -> Report:
        runs = [self._run(ended) for ended in self.ended]
        failed = [ended for ended in self.ended if ended.status]
        verdict: Verdict = "failed"
        count = "both runs" if len(runs) == 2 else f"all {len(runs)} runs"
        under = f"under seed {self.plan.seed}"
        if self.unread:
            whose = f"run{'s' if len(self.unread) > 1 else ''} {_listed(map(str, self.unread))}"
            whose = "no run" if len(self.unread) == len(runs) else whose
            self._cannot(f"{whose} left {'a' if whose == 'no run' else 'no'} whole trace of torch ops")
        if failed and len({ended.status for ended in self.ended}) == 1:
            self.trouble.clear()  # of which that is reason enough
            told = f"the target failed {under}: it {_ending(failed[0].status)} in {count}"
        elif self.differences:
            verdict = "not reproducible"
            what = list(dict.fromkeys(difference.what for difference in self.differences))
            told = (
                f"not reproducible {under}: {_listed(what)} {'differ' if len(what) > 1 or what == [OPS] else 'differs'}"
            )
        elif self.trouble:
            told = f"not compared {under}: {self.trouble[0]}"
        else:
            verdict = "reproducible"
            told = f"reproducible {under}: {count} agree in {_listed(self._agreed(runs[0]))}"
            told += "; no torch op ran" if runs[0].ops == 0 else ""
        self._note(verdict, runs[0])
        failure = failed[0].folder.joinpath("stderr").read_text(encoding="utf-8", errors="replace") if failed else ""
        plan = self.plan
        return Report(
            verdict=verdict,
            told=told,
            target=str(plan.target),
            args=plan.target.args,
            seed=plan.seed,
            strict=plan.strict,
            hash_seed=plan.hash_seed,
            runs=runs,
            differences=self.differences,
            parting=self.parting,
            failure=failure,
            notes=(*self.notes, *(() if plan.strict else warned(self.first.folder / "stderr"))),
        )

    def _note(self, verdict: Verdict, first: Run) -> None:
        """Tell what the verdict leaves out."""
        if verdict == "not reproducible":
            self.notes += [f"not compared: {why}" for why in dict.fromkeys(self.trouble)]
            if not self.plan.trace:
                self.notes.append("without --no-trace the first torch op that differs is shown, if one does")
        if self.unread and self.trouble:
            self.notes.append(
                "a trace is whole when Python ends by itself, not by os._exit(), os.exec...() or a signal; --no-trace "
                "compares all the rest"
            )
        if verdict == "reproducible" and not first.ops and not self._left(first):
            self.notes.append(
                "that is next to nothing: print what is to be compared, or name the files that it is written to with "
                "--output"
            )

    def _left(self, first: Run) -> bool:
        """Return whether a run has left anything but its exit status and its ops."""
        is_more = not first.found.keys() <= {"exit status", OPS, *PRINTED}
        return is_more or any((self.first.folder / name).stat().st_size for name in PRINTED)

    def _agreed(self, first: Run) -> Iterator[str]:
        """Tell in what the runs agree, and how much it is."""
        for what in first.found:
            if what == OPS:
                if first.ops:
                    yield f"{first.ops:,} torch op{'' if first.ops == 1 else 's'}"
            elif what in PRINTED:
                size = self.first.folder.joinpath(what).stat().st_size
                yield f"{what} ({size:,} bytes)" if size else f"{what} (empty)"
            elif what != "exit status":
                yield what

    def _run(self, ended: Ended) -> Run:
        found = {"exit status": self._status(ended)}
        ops = None
        if self.plan.trace:
            ops, found[OPS] = self._trace(ended)
        for name in PRINTED:
            found[name] = self._text(ended, name, self.first.folder / name, ended.folder / name)
        if self.plan.target.kind == "function" and not ended.status:
            found["return value"] = self._value(ended)
        for name in self.plan.outputs:
            found[name] = self._output(ended, name)
        return Run(ended.number, ended.status, round(ended.seconds, 3), ops, found)

    def _differs(self, ended: Ended, what: str, told: str, shown: Any = (None, None), advice: Any = ()) -> str:
        self.differences.append(Difference(ended.number, what, told, shown[0], shown[1], tuple(advice)))
        return DIFFERS

    def _status(self, ended: Ended) -> str:
        if ended.status == self.first.status:
            return SAME
        one, other = _ending(self.first.status), _ending(ended.status)
        return self._differs(ended, "exit status", "it ended in another way", (one, other))

    def _trace(self, ended: Ended) -> tuple[int | None, str]:
        from ..trace.divergence import first_divergence
        from ..trace.file import Trace

        one, other = self.first.folder / "trace", ended.folder / "trace"
        try:
            ops = len(Trace(other))  # reads all of it
        except (TraceFormatError, FileNotFoundError):
            self.unread.append(ended.number)
            return None, NOT_COMPARED
        if self.first.number in self.unread:
            return ops, NOT_COMPARED
        if filecmp.cmp(one, other, shallow=False):
            return ops, SAME
        found = first_divergence(one, other)
        if found is None:
            return ops, SAME
        if self.parting is None:
            self.parting = self._part(ended, found, *strip(Trace(one), Trace(other)))
        return ops, self._differs(ended, OPS, str(found))

    def _part(self, ended: Ended, found: Divergence, parts: tuple[float, ...], size: int) -> Parting:
        record = found.record
        file, line, function = record.source or (None, None, None)
        return Parting(
            run=ended.number,
            kind=found.kind,
            told=str(found),
            op=record.op,
            index=record.index,
            phase=record.phase,
            module=record.module,
            file=file,
            line=line,
            function=function,
            streams=found.streams,
            why=_why(found, ended.number),
            source=_context(file, line),
            strip=parts,
            at=min(record.index // size, len(parts) - 1),
            advice=tuple(advise(found, self.script)),
        )

    def _text(self, ended: Ended, what: str, one: Path, other: Path) -> str:
        """Compare what the runs have printed, or files that they have written."""
        if filecmp.cmp(one, other, shallow=False):
            return SAME
        plain = line_that_differs(one, other, str)
        masked = line_that_differs(one, other, steady)
        if what == "stderr" and masked is None:
            return "same but for times"
        number, first, second = (masked if what == "stderr" else plain) or (0, "", "")
        if "\0" in first + second:
            return self._differs(ended, what, f"byte {byte_that_differs(one, other)} differs")
        advice = advise_on_text(first, second, None if self.parting else self.script, masked is None)
        return self._differs(ended, what, f"line {number} differs", (cut(first), cut(second)), advice)

    def _value(self, ended: Ended) -> str:
        refused = ended.folder / "result.refused"
        one, other, answer = (self.first.folder / "result", ended.folder / "result", ended.folder / "answer")
        if refused.exists():
            return self._cannot(f"the function returned what cannot be saved, {refused.read_text(encoding='utf-8')}")
        if not one.exists() or not other.exists() or filecmp.cmp(one, other, shallow=False):
            return SAME  # or the first run has failed, which is told as such
        if call("compare", list(map(str, (one, other, answer))), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            return self._cannot("what the function returned cannot be loaded")
        is_known, told = json.loads(answer.read_text(encoding="utf-8")) or (True, "")
        if not is_known:
            return self._cannot(told)
        return self._differs(ended, "return value", told) if told else SAME

    def _output(self, ended: Ended, name: str) -> str:
        one, other = self.first.outputs.get(name), ended.outputs.get(name)
        if one is None and other is None:
            return self._cannot(f"no run wrote {name}; --output takes a path relative to {Path.cwd()}")
        if one is None or other is None:
            return self._differs(ended, name, f"only run {ended.number if one is None else 1} wrote it")
        return self._text(ended, name, one, other)

    def _cannot(self, why: str) -> str:
        self.trouble.append(why)
        return NOT_COMPARED


def _script(target: Target) -> str | None:
    """Return the file of a target, as far as that can be told without importing anything."""
    if target.kind == "script":
        return target.name
    path = Path(*target.name.partition(":")[0].split("."))
    inside = "__init__.py" if target.kind == "function" else "__main__.py"
    return next((str(file) for file in (path.with_suffix(".py"), path / inside) if file.is_file()), None)


def strip(one: Any, other: Any) -> tuple[tuple[float, ...], int]:
    """Return how much differs in each stretch along two traces, and how many ops a stretch is."""
    counts, size, total = [0], 1, 0
    for total, (first, second) in enumerate(zip_longest(one, other), 1):
        if total > size * len(counts):
            if len(counts) == _CELLS:
                counts, size = [sum(counts[i : i + 2]) for i in range(0, _CELLS, 2)], 2 * size
            counts.append(0)
        counts[-1] += _bits(first) != _bits(second)
    sizes = [min(size, total - size * place) or 1 for place in range(len(counts))]
    return tuple(count / size for count, size in zip(counts, sizes, strict=True)), size


def _bits(record: Record | None) -> Any:
    return record and (record.op, record.inputs, record.scalars, record.outputs)


def _why(found: Divergence, run: int) -> str:
    """Tell what brought the difference in."""
    why = {
        "op": "Its output differs while all that it read is the same: the op itself brought the difference in.",
        "stream": "It draws from a torch generator whose state differed before.",
        "input": "What it read differs, and no torch op made that: it came from outside torch.",
        "uninitialised": f"It read memory that no op had written{_place(' since', found.origin)}.",
        "sequence": f"Run {run if found.first is None else 1} alone calls it here{_instead(found)}.",
    }[found.kind]
    if found.kind == "input" and found.first and found.second and found.first.scalars != found.second.scalars:
        why += f" Its other arguments are ({found.first.scalars}) and ({found.second.scalars})."
    if found.streams:
        why += f" Random streams that had parted by then: {', '.join(found.streams)}."
    return why


def _instead(found: Divergence) -> str:
    return _place(", where the other one calls", found.second) if found.first is not None else ""


def _place(before: str, record: Record | None) -> str:
    if record is None:
        return ""
    source = record.source
    return f"{before} {record.op}" + (f" at {Path(source.file).name}:{source.line}" if source is not None else "")


def _context(file: str | None, line: int | None) -> dict[int, str]:
    lines = linecache.getlines(file) if file else []
    around = range(max(1, (line or 0) - _CONTEXT), min(len(lines), (line or 0) + _CONTEXT) + 1)
    return {number: lines[number - 1].rstrip() for number in around}


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    known = {number.value: number.name for number in signal.Signals}
    return f"was killed by {known.get(-status, f'signal {-status}')}"


def _listed(words: Any) -> str:
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last
