"""Rows of what was measured beside their goals, printed and written as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from .timing import machine, versions

__all__ = ["Row", "Section", "add_rounds", "print_section", "report", "write"]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    value: float | None
    ratio: float | None = None
    goal: float | None = None  # of the ratio, or of the value where there is none
    absent: str = ""  # why there is no value
    series: str = ""  # in a figure: the line that this is a point of,
    x: float | None = None  # and where on the axis

    @property
    def is_met(self) -> bool:
        measured = self.value if self.ratio is None else self.ratio
        return measured is not None and self.goal is not None and measured <= self.goal


@dataclass(frozen=True)
class Section:
    """A part of the table."""

    title: str
    unit: str
    rows: list[Row]


def add_rounds(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add the options that benchmarks share: how often, and where to write the numbers."""
    parser.add_argument(
        "--rounds", type=_positive, default=rounds, metavar="N", help="how often each is timed (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE as well")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return int(text)


def report(sections: list[Section], distributions: Iterable[str], method: str, file: Path | None) -> None:
    """Print the tables, with the versions, the machine and how it was measured; write all of it to ``file`` as JSON."""
    found, where = versions(distributions), machine()
    print(", ".join(f"{name} {version}" for name, version in found.items()))
    print(where)
    print(method)
    for section in sections:
        print_section(section)
    rows = [row for section in sections for row in section.rows if row.goal is not None and row.value is not None]
    print(f"\n{sum(row.is_met for row in rows)} of {len(rows)} goals met")
    if file:
        numbers = {"versions": found, "machine": where, "method": method, "sections": [asdict(it) for it in sections]}
        write(numbers, file)


def write(numbers: object, file: Path) -> None:
    """Write what was measured as JSON."""
    file.write_text(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def print_section(section: Section) -> None:
    print(f"\n{section.title}\n{'':45}{section.unit:>8}{'ratio':>8}{'goal':>8}")
    for row in section.rows:
        measured = "" if row.ratio is None else f"{row.ratio:.3f}"
        numbers = row.absent if row.value is None else f"{row.value:8.2f}{measured:>8}"
        goal = "" if row.goal is None else f"{row.goal:8.2f}"
        verdict = "" if row.goal is None or row.value is None else "met" if row.is_met else "MISSED"
        print(f"{row.name:45}{numbers:>16}{goal:>8}  {verdict}".rstrip())
