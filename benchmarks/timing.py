"""Time things side by side, and say where it was done."""

from __future__ import annotations

import gc
import os
import platform
import random
import statistics
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from time import perf_counter_ns
from typing import TypeVar

__all__ = ["SLICE", "Batch", "deeper", "interleave", "machine", "processor", "ratio", "versions"]

T = TypeVar("T")
# How many µs a batch takes: long enough for the clock not to matter, and short enough for a busy machine's scheduler to
# let most of them through in one piece. It would interrupt most of the longer ones, and so their median.
SLICE = 500
Batch = Callable[[int], object]
"""Does something as often as it is told, in a loop of its own, so that no call of a function is timed along."""


def interleave(batches: Mapping[str, Batch], *, rounds: int) -> dict[str, list[float]]:
    """Return for each batch its µs per call in every round.

    A round times each batch once, so that whatever slows the machine down for a while slows all of them down; in
    another order each time, since each leaves its traces in the caches for the next. One call comes before each batch,
    untimed, for the same reason.
    """
    timings: dict[str, list[float]] = {name: [] for name in batches}
    calls = {name: max(1, round(SLICE / min(_time(batch, 1) for _ in range(5)))) for name, batch in batches.items()}
    order = list(batches)
    shuffle = random.Random(0).shuffle
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                batches[name](1)
                timings[name].append(_time(batches[name], calls[name]))
    finally:
        if was_enabled:
            gc.enable()
    return timings


def _time(batch: Batch, calls: int) -> float:
    begin = perf_counter_ns()
    batch(calls)
    return (perf_counter_ns() - begin) / 1000 / calls


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median over the rounds of ours / theirs within one round."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def deeper(frames: int, call: Callable[[], T]) -> T:
    """Call ``call`` with so many more frames on the stack."""
    return deeper(frames - 1, call) if frames else call()


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of those of the distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Return the operating system, the processor, how many of it and how busy they are, in one line."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{platform.system()} {platform.machine()}, {processor()}, {os.cpu_count()} logical processors{load}"


def processor() -> str:
    """Return what the processor calls itself."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or "unknown processor"
