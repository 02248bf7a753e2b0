"""What a captured state costs and how large it is, beside the same by hand with the public functions.

By hand is what a checkpoint without scoped_rng has: the states of Python, NumPy and torch's CPU generator, put in a
dict and back. Timed in one process, in turns. Sizes are those of whole files; the devices are stand-ins, each with the
16 bytes that a CUDA generator's state has.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from scoped_rng import RngState, capture
from scoped_rng.checkpoint import StatefulRng, load_state, save_state

from .devices import Counter, devices
from .table import Row, Section, add_rounds, report
from .timing import interleave, ratio

__all__ = ["add_arguments", "run"]

KILOBYTES, DEVICE_KILOBYTES = 20.0, 0.016
DEVICES = (0, 1, 8, 64)


def collect() -> dict[str, Any]:
    """Return the states as the public functions give them."""
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}


def put_back(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])


def times(folder: Path, rounds: int) -> Section:
    """Time each operation, and the same by hand where there is one."""
    state, states, here, there = capture(), collect(), folder / "ours", folder / "theirs"
    plain, other = state.state_dict(), capture()
    save_state(here, state)
    torch.save(states, there)
    ours: dict[str, Callable[[], object]] = {
        "capture()": capture,
        "state.restore()": state.restore,
        "state.state_dict()": state.state_dict,
        "RngState.from_state_dict(d)": lambda: RngState.from_state_dict(plain),
        "state == other": lambda: state == other,
        "state.digest()": state.digest,
        "save_state(path, state)": lambda: save_state(here, state),
        "load_state(path)": lambda: load_state(here),
    }
    by_hand: dict[str, Callable[[], object]] = {
        "capture()": collect,
        "state.restore()": lambda: put_back(states),
        "save_state(path, state)": lambda: torch.save(states, there),
        "load_state(path)": lambda: torch.load(there, weights_only=False),  # with True it does not load
    }

    def batch(call: Callable[[], object]) -> Callable[[int], None]:
        def calls(count: int) -> None:
            for _ in range(count):
                call()

        return calls

    rows = []
    named = {("", name): call for name, call in ours.items()} | {("by hand", name): it for name, it in by_hand.items()}
    timings = interleave({" ".join(key): batch(call) for key, call in named.items()}, rounds=rounds)
    for name in ours:
        its, theirs = timings[f" {name}"], timings.get(f"by hand {name}")
        rows.append(Row(name, median(its), None if theirs is None else ratio(its, theirs)))
    return Section("One operation; ratio: this / by hand with the public functions", "µs", rows)


def sizes(folder: Path) -> Section:
    """Return the sizes of what is saved."""
    file = folder / "size"
    rows = []
    for count in DEVICES:
        with devices(count, Counter):
            save_state(file, capture())
        name = f"save_state(path, capture()), {count} devices"
        rows.append(Row(name, file.stat().st_size / 1000, None, KILOBYTES + count * DEVICE_KILOBYTES))
    for name, saved in {
        "torch.save(StatefulRng().state_dict(), path)": StatefulRng(seed=0).state_dict(),
        "torch.save(capture().state_dict(), path)": capture().state_dict(),
        "torch.save(by hand, path)": collect(),
    }.items():
        torch.save(saved, file)
        rows.append(Row(name, file.stat().st_size / 1000))
    return Section("A state in a file", "kB", rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its command."""
    add_rounds(parser, 100)


def run(options: argparse.Namespace) -> None:
    """Measure, and print the table."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as folder:
        sections = [times(Path(folder), options.rounds), sizes(Path(folder))]
    report(
        sections,
        ("scoped-rng", "torch", "numpy"),
        f"Medians of {options.rounds} rounds, side by side in one process, garbage collector off",
        options.json,
    )
