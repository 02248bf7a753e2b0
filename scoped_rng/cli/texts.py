"""What a run has printed or written: where two of them differ, and what of it does not count."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

__all__ = ["byte_that_differs", "cut", "line_that_differs", "steady", "warned"]

_SHOWN = 160  # characters of a line


def line_that_differs(one: Path, other: Path, seen: Callable[[str], str]) -> tuple[int, str, str] | None:
    """Return the first line that differs in what is ``seen`` of it: its number, and both."""
    options: Any = {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"}
    with one.open(**options) as first, other.open(**options) as second:
        for number, (ours, theirs) in enumerate(zip_longest(first, second, fillvalue=""), 1):
            if seen(ours) != seen(theirs):
                return number, ours, theirs
    return None


def byte_that_differs(one: Path, other: Path) -> int:
    """Return where two files that differ first do."""
    with one.open("rb") as first, other.open("rb") as second:
        at = 0
        while (ours := first.read(1 << 16)) == (theirs := second.read(1 << 16)):
            at += len(ours)
    return at + next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )


_VARYING = re.compile(
    r"0x[0-9a-fA-F]{4,}"  # an address
    r"|\b\d{4}-\d\d-\d\d\b"
    r"|\b\d{1,3}:\d\d(:\d\d)?([.,]\d+)?( \d+)?\b"  # a time, and the process that some loggers write behind it
    r"|\b(pid|process|thread)[ =:#]*\d+"
    r"|[\d.?]+ ?([a-zA-Z]+/s\b|s/[a-zA-Z]+)"  # a progress bar's speed
    r"|[\d.]+ ?(ns|us|µs|ms|s|sec|secs|seconds?|min)\b",
    re.IGNORECASE,
)


def steady(line: str) -> str:
    """Return what a terminal would show of a line in the end, without what differs from run to run by its nature."""
    return _VARYING.sub("_", line.rstrip("\r\n").rpartition("\r")[2])


def cut(line: str) -> str:
    """Return a line as it is shown."""
    shown = repr(line)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def warned(stderr: Path) -> list[str]:
    """Return what torch has warned of."""
    with stderr.open(encoding="utf-8", errors="replace") as lines:
        found = (re.search(r"(\S+ does not have a deterministic implementation)", line) for line in lines)
        return list(dict.fromkeys(f"torch warned: {match[1]}; --strict raises there" for match in found if match))
