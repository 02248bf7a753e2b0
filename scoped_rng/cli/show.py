"""What a check and the doctor have found, as a terminal shows it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .checking import DIFFERS, SAME, Difference, Parting, Report
from .doctor import Finding

__all__ = ["examined", "progress", "reported", "save_svg"]

_COLOURS = {"reproducible": "bold green", "not reproducible": "bold red", "failed": "bold yellow"}
_SIGNS = {"reproducible": "✔", "not reproducible": "✘", "failed": "!"}
_FILES_SHOWN = 3
_WIDTH = 80


@contextlib.contextmanager
def progress(runs: int) -> Iterator[Callable[[int], None]]:
    """Show which run is under way, on a terminal alone."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    # rich itself takes a log for a terminal where FORCE_COLOR is set, as it is in CI.
    is_seen = sys.stderr is not None and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_seen) as shown:
        task = shown.add_task("")
        yield lambda number: shown.update(
            task, description=f"run {number} of {runs}" if number else "comparing the runs", refresh=True
        )


def save_svg(shown: RenderableType, path: str, title: str) -> None:
    """Write what is shown as a picture, in colours wherever it is shown."""
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(shown)
    console.save_svg(path, title=title)


def reported(report: Report, plain: bool = False) -> RenderableType:
    """Return what is shown of a check.

    Args:
        report: what it has found.
        plain: in ASCII.
    """
    sign = "" if plain else f"{_SIGNS[report.verdict]} "
    parts: list[RenderableType] = [Text(sign + report.told, _COLOURS[report.verdict]), "", _runs(report)]
    if report.parting is not None:
        parts += ["", *_parting(report.parting, plain)]
    shown = [found for found in report.differences if report.parting is None or found.what != "torch ops"]
    first = min((found.run for found in shown), default=0)
    for found in shown:
        if found.run == first:  # the others most often say the same
            parts += ["", *_difference(found)]
    if report.notes:
        parts += ["", *_advised(report.notes)]
    return Group(*parts)


def _runs(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    names = list(report.runs[0].found)
    shown = names[: names.index("stderr") + 1] + [name for name in names if name == "return value"]
    files = [name for name in names if name not in shown]
    shown.remove("exit status")
    for head in ("run", "exit", "seconds"):
        table.add_column(head, justify="right")
    for head in (*shown, *(Path(file).name for file in files[:_FILES_SHOWN])):
        table.add_column(head, overflow="fold")
    if len(files) > _FILES_SHOWN:
        table.add_column("files")
    for run in report.runs:
        cells = []
        for name in (*shown, *files[:_FILES_SHOWN]):
            how = run.found.get(name, "")
            if run.number == 1 and how == SAME:
                how = f"{run.ops:,}" if name == "torch ops" else "-"
            cells.append(Text(how, {SAME: "green", DIFFERS: "red"}.get(how, "dim")))
        if len(files) > _FILES_SHOWN:
            differing = sum(run.found[name] != SAME for name in files)
            cells.append(Text(f"{differing} of {len(files)} differ", "red" if differing else "dim"))
        table.add_row(str(run.number), str(run.status), f"{run.seconds:.1f}", *cells)
    return table


def _parting(found: Parting, plain: bool) -> Iterator[RenderableType]:
    where = f"op {found.index}, {found.phase}" + (f", in {found.module}" if found.module else "")
    yield Text.assemble("run 1 and run ", str(found.run), " part at ", (found.op, "bold red"), f" ({where})")
    yield _strip(found, plain)
    if found.file is not None:
        yield ""
        unread = "" if found.source else ", whose source cannot be read"
        yield Text(f"{_short(found.file)}:{found.line} in {found.function}{unread}", "cyan")
        for number, line in found.source.items():
            is_meant = number == found.line
            mark = f"{'>' if is_meant else ' '} {number:>4} {'|' if plain else '│'} "
            code = (line.expandtabs(4), "bold" if is_meant else "")
            yield Text.assemble((mark, "red" if is_meant else "dim"), code, no_wrap=True, overflow="ellipsis")
    yield ""
    yield Padding(Text(found.why), (0, 0, 0, 2), expand=False)
    yield from _advised(found.advice)


def _strip(found: Parting, plain: bool) -> Text:
    """Return the run as a line, from its first op to the last: what is equal, and what differs."""
    equal, partly, differs, here = "-=#^" if plain else "─▒█▲"
    text = Text("  ")
    for part in found.strip:
        sign, colour = (equal, "green") if part == 0 else (differs, "red") if part == 1 else (partly, "yellow")
        text.append(sign, colour)
    text.append(f"\n  {' ' * found.at}{here}\n", "red")
    legend = (f"  {equal}", "green"), " equal  ", (partly, "yellow"), " partly  ", (differs, "red"), " different"
    return text + Text.assemble(*((part, "") if isinstance(part, str) else part for part in legend))


def _difference(found: Difference) -> Iterator[RenderableType]:
    yield Text.assemble((f"{found.what}: ", "bold"), found.told)
    for run, line in ((1, found.first), (found.run, found.second)):
        if line is not None:
            yield Padding(Text(f"run {run}: {line}"), (0, 0, 0, 2), expand=False)
    yield from _advised(found.advice)


def _advised(advice: tuple[str, ...]) -> Iterator[RenderableType]:
    for line in advice:
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(width=3, justify="right")
        table.add_column()
        table.add_row(Text("->", "cyan"), Text(line))
        yield table


def _short(file: str) -> str:
    try:
        relative = os.path.relpath(file)
    except ValueError:  # on another drive
        return file
    return relative if not relative.startswith(os.pardir) else file


def examined(findings: list[Finding]) -> RenderableType:
    """Return what is shown of what the doctor has found."""
    parts: list[RenderableType] = []
    for group in dict.fromkeys(finding.group for finding in findings):
        parts += ["", Text(group, "bold")]
        for finding in findings:
            if finding.group == group:
                colour = {True: "bold green", False: "bold red", None: "bold"}[finding.good]
                text = Text.assemble(finding.name, ": ", (finding.value, colour), (f"\n  {finding.meaning}", "dim"))
                if finding.fix:
                    text.append(f"\n  -> {finding.fix}", "cyan")
                parts.append(Padding(text, (0, 0, 0, 2), expand=False))
    return Group(*parts[1:])
