"""What recording a trace costs, side by side with the plain step and with torch's own DebugMode with tensor hashes.

A step is forward, backward and the optimizer. In every round each contender makes a few steps of a model of its own,
all in one process with the garbage collector off. Times are medians over the rounds, a ratio is the median of the
ratios within the rounds. The first recorded op is timed in fresh interpreters, from the import of scoped_rng.trace on.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from scoped_rng.trace import record

from .table import Row, Section, add_rounds, report
from .timing import ratio

__all__ = ["add_arguments", "run"]

PROCESSES = 9
STEPS = 3
PLAIN, EMPTY, OURS = "the plain step", "under an empty dispatch mode", "under record()"
THEIRS, ALIKE = "under DebugMode, tensor hashes", "… with modules and lines too"
Step = Callable[[], object]
Contender = tuple[Step, Callable[[], contextlib.AbstractContextManager[Any]]]


def convolutional() -> Step:
    """Return a step of a small convolutional net."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(32 * 7 * 7, 10),
    )
    images, labels = torch.rand(32, 1, 14, 14), torch.randint(10, (32,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return partial(step, model, optimizer, images, labels)


class Reader(nn.Module):
    """A small transformer that says something about each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        said: torch.Tensor = self.head(self.encoder(self.embed(tokens))).mean(1)
        return said


def transformer() -> Step:
    """Return a step of a small transformer."""
    model = Reader()
    tokens, labels = torch.randint(100, (8, 32)), torch.randint(10, (8,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    return partial(step, model, optimizer, tokens, labels)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, given: torch.Tensor, wanted: torch.Tensor) -> None:
    loss = nn.functional.cross_entropy(model(given), wanted)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


class EmptyMode(TorchDispatchMode):
    """Pass every op on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def debug_mode(alike: bool) -> Iterator[None]:
    mode = import_module("torch.utils._debug_mode").DebugMode
    with mode(record_nn_module=alike, record_stack_trace=alike) as recording, mode.log_tensor_hashes(hash_inputs=True):
        yield
        del recording


def interleave(contenders: Mapping[str, Contender], *, rounds: int) -> dict[str, list[float]]:
    """Return for each contender its µs per step in every round, what opens and closes around the steps left out."""
    timings: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    shuffle = random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                step, around = contenders[name]
                with around():
                    step()  # untimed, since each contender leaves its traces in the caches for the next
                    begin = perf_counter_ns()
                    for _ in range(STEPS):
                        step()
                    timings[name].append((perf_counter_ns() - begin) / 1000 / STEPS)
    finally:
        gc.enable()
    return timings


def compare(name: str, make: Callable[[], Step], goal: float, options: argparse.Namespace) -> Section:
    """Time a step, plain and recorded."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace")
        contenders: dict[str, Contender] = {
            PLAIN: (make(), contextlib.nullcontext),
            EMPTY: (make(), EmptyMode),
            OURS: (make(), partial(record, path)),
            THEIRS: (make(), partial(debug_mode, False)),
            ALIKE: (make(), partial(debug_mode, True)),
        }
        absent = {}
        for theirs in (THEIRS, ALIKE):
            try:
                interleave({theirs: contenders[theirs]}, rounds=1)
            except Exception as error:  # a torch without it, or with another
                absent[theirs] = f"fails: {type(error).__name__}"
                del contenders[theirs]
        timings = interleave(contenders, rounds=options.rounds)
        with record(path) as trace:
            contenders[PLAIN][0]()
        ops = len(trace)
    rows = [Row(PLAIN, median(timings[PLAIN]))]
    rows.append(Row(EMPTY, median(timings[EMPTY]), ratio(timings[EMPTY], timings[PLAIN])))
    rows.append(Row(OURS, median(timings[OURS]), ratio(timings[OURS], timings[PLAIN]), goal))
    for theirs in (THEIRS, ALIKE):
        if theirs in absent:
            rows.append(Row(theirs, None, absent=absent[theirs]))
        else:
            rows.append(Row(theirs, median(timings[theirs]), ratio(timings[theirs], timings[PLAIN])))
    # Modules and lines are in every record, so the second row is like for like; the goal is for both.
    for theirs, told in ((THEIRS, "hashes alone"), (ALIKE, "modules and lines too")):
        if theirs not in absent:
            measured = ratio(timings[OURS], timings[theirs])
            rows.append(Row(f"record() / DebugMode, {told}", median(timings[OURS]), measured, 1 / 3))
    return Section(f"{name}, {ops} ops; ratio: this / the plain step", "µs", rows)


FIRST_OP = """
import time, torch, numpy, numpy.random
begin = time.perf_counter()
from scoped_rng.trace import record
with record() as trace:
    torch.ones(2)
    print(1000 * (time.perf_counter() - begin))
"""


def first_op() -> Section:
    """Time the first recorded op of a process, the import of scoped_rng.trace included."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", FIRST_OP]
    runs = [float(subprocess.check_output(command, env=environment)) for _ in range(PROCESSES + 1)]
    rows = [Row("from the import of scoped_rng.trace", median(runs[1:]), None, 50.0)]
    return Section("First recorded op in a process", "ms", rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its command."""
    add_rounds(parser, 100)


def run(options: argparse.Namespace) -> None:
    """Measure, and print the table."""
    torch.set_num_threads(1)
    report(
        [
            compare("A step of a small convolutional net", convolutional, 2.0, options),
            compare("A step of a small transformer", transformer, 3.0, options),
            first_op(),
        ],
        ("scoped-rng", "torch", "numpy", "xxhash"),
        f"Medians of {options.rounds} rounds, side by side in one process, garbage collector off, one torch thread",
        options.json,
    )
