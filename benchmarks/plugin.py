"""What the pytest plugin costs a suite of empty tests, side by side with plain pytest and with pytest-randomly.

Each run is a pytest of its own. What is compared is the processor time of the process, user and system, since the time
on the clock is that of the neighbours too; every round runs each contender once, in another order each time. A ratio is
the median of the ratios within the rounds.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from .table import Row, Section, add_rounds, report
from .timing import ratio

__all__ = ["add_arguments", "run"]

DISTRIBUTIONS = ("scoped-rng", "pytest", "pytest-randomly", "torch", "numpy")
ALONE = "-p no:cacheprovider -p no:xdist -p no:asyncio -p no:anyio -p no:rerunfailures -p no:cov -p no:hypothesispytest"
PLAIN, OURS, RANDOMLY, SEEDED, LEAKS = (
    "plain pytest",
    "the plugin without options",
    "pytest-randomly",
    "--rng-seed=0",
    "--rng-seed=0 --rng-leaks=warn",
)
CONTENDERS = {
    PLAIN: "-p no:scoped_rng -p no:randomly",
    OURS: "-p no:randomly",
    RANDOMLY: "-p no:scoped_rng",
    SEEDED: "-p no:randomly --rng-seed=0",
    LEAKS: "-p no:randomly --rng-seed=0 --rng-leaks=warn",
}
EMPTY = "".join(f"def test_{number}():\n    pass\n" for number in range(2000))
ONE = "def test_one():\n    pass\n"


def seconds(suite: Path, options: str) -> float:
    """Return the processor time that pytest takes for a suite."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "pytest", "-q", *ALONE.split(), *options.split(), str(suite)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=suite.parent)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(title: str, source: str, names: list[str], rounds: int) -> Section:
    """Run a suite under each contender in turns."""
    timings: dict[str, list[float]] = {name: [] for name in names}
    order = list(names)
    shuffle = random.Random(0).shuffle
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder, "test_empty.py")
        suite.write_text(source)
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                timings[name].append(seconds(suite, CONTENDERS[name]))
    rows = [Row(name, median(timings[name])) for name in names]
    against = [(OURS, PLAIN, 1.02), (SEEDED, RANDOMLY, 1.15), (LEAKS, PLAIN, None)]
    for ours, theirs, goal in against:
        if ours in timings and theirs in timings:
            value = median(timings[ours])
            rows.append(Row(f"{ours} / {theirs}", value, ratio(timings[ours], timings[theirs]), goal))
    return Section(title, "s", rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, 5)


def run(options: argparse.Namespace) -> None:
    """Measure, and print the table."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    everyone = list(CONTENDERS)
    report(
        [
            measure("2,000 empty tests", EMPTY, everyone, options.rounds),
            measure(
                "2,000 empty tests, in a module that imports torch", "import torch\n" + EMPTY, everyone, options.rounds
            ),
            measure("One empty test: the start-up", ONE, [PLAIN, OURS], 3 * options.rounds),
        ],
        DISTRIBUTIONS,
        f"Processor time, medians of {options.rounds} rounds",
        options.json,
    )
