"""What a decorated function, coroutine or generator costs, beside the empty block.

A suspension is one step: the scope is put in force, and all that it holds is taken out again. Timed in one process, in
turns; a ratio is the median of the ratios within the rounds. The peers' decorated functions are beside them, which put
less back; they have nothing for what is suspended.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import types
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import import_module
from statistics import median
from typing import Any

import numpy as np
import torch

from scoped_rng import deterministic, fixed_seed

from .scope import OURS, ours
from .table import Row, Section, add_rounds, report
from .timing import Batch, interleave, ratio

__all__ = ["add_arguments", "run"]

GOAL = 2.0  # empty scopes, for a suspension
DISTRIBUTIONS = ("scoped-rng", "torch", "numpy", "pytorch-ignite")


@fixed_seed
def function() -> None:
    pass


class Holder:
    @fixed_seed
    def method(self) -> None:
        pass


@fixed_seed
def generate() -> Iterator[None]:
    while True:
        yield


@types.coroutine
def suspend() -> Iterator[None]:
    yield


@fixed_seed
async def coroutine() -> None:
    while True:
        await suspend()


@fixed_seed
async def generate_async() -> AsyncIterator[None]:
    while True:
        yield


def calling(function: Callable[[], object]) -> Batch:
    """Return a batch of calls."""

    def batch(calls: int) -> None:
        for _ in range(calls):
            function()

    return batch


def stepping(steps: Any) -> Batch:
    """Return a batch of steps of a generator or coroutine; the first, which starts it, is left out."""
    steps.send(None)

    def batch(calls: int) -> None:
        send = steps.send
        for _ in range(calls):
            send(None)

    return batch


def stepping_async() -> Batch:
    """Return a batch of steps of an async generator, which suspends at its yields alone."""
    steps = generate_async()

    def batch(calls: int) -> None:
        for _ in range(calls):
            with contextlib.suppress(StopIteration):
                steps.__anext__().__await__().__next__()

    batch(1)
    return batch


def fork_rng() -> Batch:
    @torch.random.fork_rng()
    def seeded() -> None:
        torch.manual_seed(0)

    return calling(seeded)


def ignite() -> dict[str, Batch]:
    try:
        manual_seed = import_module("ignite.utils").manual_seed
    except ModuleNotFoundError:
        return {}

    @import_module("ignite.engine.deterministic").keep_random_state  # type: ignore[untyped-decorator]
    def seeded() -> None:
        manual_seed(0)

    return {"ignite @keep_random_state, the function seeds": calling(seeded)}


def measure(title: str, contenders: dict[str, Batch], rounds: int, goal: float | None = None) -> Section:
    """Time each beside the empty scope."""
    timings = interleave({OURS: ours, **contenders}, rounds=rounds)
    rows = [
        Row(name, median(its), ratio(its, timings[OURS]), None if name == OURS else goal)
        for name, its in timings.items()
    ]
    return Section(f"{title}; ratio: this / the empty scope", "µs", rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its command."""
    add_rounds(parser, 200)


def run(options: argparse.Namespace) -> None:
    """Measure, and print the table."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    stale = stepping(generate())
    np.random.seed(0)  # which gives the ambient stream another seed sequence than what is suspended has
    sections = [
        measure(
            "A suspension under @fixed_seed",
            {
                "of a generator": stepping(generate()),
                "of a coroutine": stepping(coroutine()),
                "of an async generator": stepping_async(),
                "of a generator, once np.random.seed was called": stale,
            },
            options.rounds,
            GOAL,
        ),
        measure(
            "A call under @fixed_seed, and under the peers",
            {
                "of a function": calling(function),
                "of a method": calling(Holder().method),
                "of a function that is decorated twice": calling(fixed_seed(deterministic(0)(lambda: None))),
                "@fork_rng(), the function seeds torch": fork_rng(),
                **ignite(),
            },
            options.rounds,
        ),
    ]
    report(
        sections,
        DISTRIBUTIONS,
        f"Medians of {options.rounds} rounds, side by side in one process, garbage collector off",
        options.json,
    )
