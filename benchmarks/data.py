"""What the scopes of a seeded loader add to a sample of one millisecond, and to shorter and longer ones.

Each sample draws from Python, NumPy and torch, and then works through memory until its time is over, so that what
comes next finds cold caches; every sample has a seed of its own. torch's loader and ours take turns, epoch by
epoch, with workers that persist. A sample notes when it begins and ends. What lies between the end of one and the
beginning of the next in the same process is what loading costs. From batch to batch that is the scope of the batch, the
keys and the collating too; in a worker also waiting for its queues, so that this is counted in the main process alone.
There is nothing else in batches of one. With ``sampler=`` the indices come from one that draws its order itself.
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, get_worker_info

from scoped_rng.data import seeded_loader

from .table import Row, Section, add_rounds, report

__all__ = ["BY_TIME", "add_arguments", "run"]

SAMPLE = 0.001  # seconds
SWEEP = (0.0001, 0.0003, 0.001, 0.003, 0.01)
BY_TIME = "By the time that a sample takes"
SAMPLES = 128
WORKERS = (0, 1, 2)
GOAL = 0.05  # of a sample
DISTRIBUTIONS = ("scoped-rng", "torch", "numpy")


class Timed(Dataset[torch.Tensor]):
    """Take so many seconds for each sample, which is its worker, when it began and when it ended."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.memory = np.zeros((256, 1 << 15))  # 64 MiB, more than most caches hold
        self.row = 0

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        begin = time.perf_counter()
        info = get_worker_info()
        drawn = torch.randn(16) * random.random() + float(np.random.standard_normal())
        while time.perf_counter() < begin + self.seconds:
            self.memory[self.row] += 1
            self.row = (self.row + 1) % len(self.memory)
        sample = torch.empty(3, dtype=torch.float64)
        sample[0] = 0 * drawn[0] if info is None else info.id
        sample[1] = begin
        sample[2] = time.perf_counter()
        return sample


class Gaps:
    """What lies between samples, in µs."""

    def __init__(self) -> None:
        self.in_batch: list[float] = []
        self.between_batches: list[float] = []

    def add(self, loader: Any) -> None:
        """Note the gaps of one epoch."""
        ends: dict[float, float] = {}
        for batch in loader:
            worker, begin, end = batch.T.tolist()
            self.in_batch += [1e6 * (after - before) for before, after in zip(end[:-1], begin[1:], strict=True)]
            if worker[0] in ends:
                self.between_batches.append(1e6 * (begin[0] - ends[worker[0]]))
            ends[worker[0]] = end[-1]


def measure(workers: int, size: int, by_sampler: bool, seconds: float, rounds: int) -> tuple[Gaps, Gaps]:
    """Time torch's loader and ours in turns."""
    recipe: Any = {"batch_size": size, "num_workers": workers, "persistent_workers": workers > 0}
    dataset = Timed(seconds)
    recipe |= {"sampler": RandomSampler(dataset)} if by_sampler else {"shuffle": True}
    loaders: tuple[Any, Any] = DataLoader(dataset, **recipe), seeded_loader(dataset, seed=0, **recipe)
    for loader in loaders:
        list(loader)  # starts the workers
    both = list(zip(loaders, (Gaps(), Gaps()), strict=True))
    order, shuffle = both.copy(), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for loader, gaps in order:
            gaps.add(loader)
    return both[0][1], both[1][1]


def measured_rows(workers: int, size: int, by_sampler: bool, rounds: int) -> list[Row]:
    """Return the rows of one way to load."""
    torchs, ours = measure(workers, size, by_sampler, SAMPLE, rounds)
    where = f"{workers} worker{'s' if workers > 1 else ''}" if workers else "main"
    where += f", batch of {size}{', sampler=' if by_sampler else ''}"
    rows = compare(where, median(torchs.in_batch), median(ours.in_batch)) if size > 1 else []
    if workers == 0:
        rows += compare(f"{where}, all", whole(torchs, size), whole(ours, size))
    return rows


def whole(gaps: Gaps, size: int) -> float:
    """Return what is between samples and a sample's share of what is between batches."""
    between = median(gaps.between_batches) / size
    return between + median(gaps.in_batch) * (size - 1) / size if size > 1 else between


def compare(where: str, torchs: float, ours: float) -> list[Row]:
    """Return torch's row, and ours with what it adds."""
    added = (ours - torchs) / (1e6 * SAMPLE)
    return [Row(f"torch, {where}", torchs), Row(f"seeded_loader, {where}", ours, added, GOAL)]


def by_time(size: int, rounds: int) -> Section:
    """Do it for samples that take more and less, in the main process; the longer they take, the fewer rounds."""
    rows = []
    for seconds in SWEEP:
        times = max(1, min(2 * rounds, round(rounds * SAMPLE / seconds / 3)))
        torchs, ours = (whole(gaps, size) for gaps in measure(0, size, False, seconds, times))
        name = f"{1000 * seconds:g} ms"
        added = (ours - torchs) / (1e6 * seconds)
        rows.append(Row(name, ours - torchs, added, series="added", x=1000 * seconds))
    return Section(f"{BY_TIME}, in batches of {size}; ratio: what ours adds / the sample", "µs", rows)


def _batch_size(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= SAMPLES // 4:
        raise argparse.ArgumentTypeError(f"must be between 1 and {SAMPLES // 4}, got {text}")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its command."""
    add_rounds(parser, 20)
    parser.add_argument("--batch-size", type=_batch_size, default=16, metavar="N", help="(default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Measure, and print the table."""
    warnings.filterwarnings("ignore", "This DataLoader will create")
    size = options.batch_size
    ways = [*((workers, size, False) for workers in WORKERS), (0, size, True), (0, 1, False), (0, 1, True)]
    rows = [row for way in dict.fromkeys(ways) for row in measured_rows(*way, options.rounds)]
    title = "Between two samples of a batch; all: and a sample's share of what is between batches"
    section = Section(f"{title}; ratio: what ours adds / a sample of 1 ms", "µs", rows)
    method = f"Medians over {options.rounds} epochs of {SAMPLES} samples in batches of {options.batch_size}, in turns"
    report([section, by_time(size, options.rounds)], DISTRIBUTIONS, method, options.json)
