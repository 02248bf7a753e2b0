"""How the cost of an empty scope grows: with the stack, devices, streams, nesting, and buffers that it holds.

Devices are CPU generators behind a device module, which is what a scope does on the host for a real one. What is held
beside the global streams is made before the timing. Times are medians over the rounds, point by point.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
from collections.abc import Callable, Iterable
from statistics import median

import torch

from scoped_rng import deterministic, isolated, register_stream, unregister_stream

from .devices import devices
from .scope import fork_rng, naive_recipe, ours
from .table import Row, Section, add_rounds, report
from .timing import Batch, deeper, interleave

__all__ = ["BUFFERS", "DEPTH", "DEVICES", "NESTING", "STREAMS", "add_arguments", "run"]

SCOPE = "deterministic(0)"
DEPTH, DEVICES, STREAMS = "Frames on the stack", "Devices", "Streams of register_stream"
NESTING, BUFFERS = "Scopes open round it", "MB of buffers, also=model"
MEGABYTE = 1_000_000


def points(title: str, at: Iterable[float], measure: Callable[[float], dict[str, float]], unit: str = "µs") -> Section:
    """Measure at each place of the axis."""
    rows = [
        Row(f"{place:g}: {series}", value, series=series, x=place)
        for place in at
        for series, value in measure(place).items()
    ]
    return Section(title, unit, rows)


def medians(batches: dict[str, Batch], rounds: int) -> dict[str, float]:
    return {name: median(its) for name, its in interleave(batches, rounds=rounds).items()}


def by_depth(rounds: int) -> Section:
    contenders: dict[str, Batch] = {
        SCOPE: ours,
        "save, seed, flags, restore by hand": naive_recipe,
        "fork_rng + manual_seed": fork_rng,
    }
    return points(DEPTH, (0, 30, 60, 120), lambda frames: deeper(int(frames), lambda: medians(contenders, rounds)))


def by_devices(rounds: int) -> Section:
    def measure(count: float) -> dict[str, float]:
        with devices(int(count)):
            return medians({SCOPE: ours}, rounds)

    return points(DEVICES, (0, 1, 2, 4, 8, 16), measure)


def by_streams(rounds: int) -> Section:
    def measure(count: float) -> dict[str, float]:
        names = [f"stream {number}" for number in range(int(count))]
        try:
            for name in names:
                register_stream(name, random.Random())
            return medians({SCOPE: ours}, rounds)
        finally:
            for name in names:
                unregister_stream(name)

    return points(STREAMS, (0, 1, 2, 4, 8, 16), measure)


def by_nesting(rounds: int) -> Section:
    def measure(count: float) -> dict[str, float]:
        with contextlib.ExitStack() as stack:
            for _ in range(int(count)):
                stack.enter_context(deterministic(0))
            return medians({SCOPE: ours}, rounds)

    return points(NESTING, (0, 1, 2, 4, 8, 16), measure)


def by_buffers(rounds: int) -> Section:
    def measure(megabytes: float) -> dict[str, float]:
        model = torch.nn.Module()
        buffer = torch.ones(int(megabytes * MEGABYTE) // 4)
        model.register_buffer("buffer", buffer)

        def held(calls: int) -> None:
            for _ in range(calls):
                with isolated(also=model):
                    pass

        def copied(calls: int) -> None:
            for _ in range(calls):
                buffer.copy_(buffer.clone())

        found = medians({"isolated(also=model)": held, "clone and copy_ by hand": copied}, rounds)
        return {name: value / 1000 for name, value in found.items()}

    return points(BUFFERS, (2, 8, 16, 32, 64), measure, "ms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its command."""
    add_rounds(parser, 100)


def run(options: argparse.Namespace) -> None:
    """Measure, and print the table."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    rounds = options.rounds
    sections = [
        by_depth(rounds),
        by_devices(rounds),
        by_streams(rounds),
        by_nesting(rounds),
        by_buffers(max(1, rounds // 5)),
    ]
    report(
        sections,
        ("scoped-rng", "torch", "numpy"),
        f"Medians of {rounds} rounds, garbage collector off, one torch thread",
        options.json,
    )
