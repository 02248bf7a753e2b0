"""What a check across ranks costs beside a bare all_gather of as many bytes, at 2, 4 and 8 processes.

Each process group is started by torchrun on this machine, over gloo. Every rank does the same calls in the same order,
in turns; the medians are those of the slowest rank. More ranks than processors mostly measure the scheduler.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from scoped_rng import capture, deterministic
from scoped_rng.checkpoint import StatefulRng, save_state
from scoped_rng.distributed import assert_distinct, assert_in_sync, sync_state, synced

from .table import Row, Section, add_rounds, report

__all__ = ["add_arguments", "run"]

GOAL = 2.0  # of a bare all_gather
KILOBYTES = 20.0
BARE = "all_gather of 64 bytes"
DISTRIBUTIONS = ("scoped-rng", "torch", "numpy")


def calls() -> dict[str, Callable[[], object]]:
    """Return what is measured, by name."""
    mine = torch.zeros(64, dtype=torch.uint8)
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(16)))

    def enter() -> None:
        with synced():
            pass

    return {
        BARE: lambda: dist.all_gather(gathered, mine),
        "assert_in_sync(), streams alone": assert_in_sync,
        'assert_in_sync(streams="torch")': lambda: assert_in_sync(streams="torch"),
        "assert_in_sync(model), 1,052,672 weights": lambda: assert_in_sync(model),
        "assert_distinct([])": lambda: assert_distinct([]),
        "sync_state()": sync_state,
        "with synced(): pass": enter,
    }


def measure(rounds: int) -> dict[str, list[float]]:
    """Return for each call its µs in every round, on this rank."""
    timings: dict[str, list[float]] = {}
    with deterministic(0):
        todo = calls()
        for number in range(rounds + 5):
            for name, call in todo.items():
                dist.all_reduce(torch.zeros(1))  # all ranks begin together
                begin = time.perf_counter_ns()
                call()
                if number >= 5:
                    timings.setdefault(name, []).append((time.perf_counter_ns() - begin) / 1000)
    return timings


def launch(ranks: int, rounds: int) -> dict[str, list[float]]:
    """Return for each call its µs in every round, on the rank whose median is the largest."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, "-m", __spec__.name, folder, str(rounds)], env=variables, check=True)
        found = [json.loads(file.read_text()) for file in Path(folder).iterdir()]
    return {name: max((each[name] for each in found), key=statistics.median) for name in found[0]}


def rows(timings: dict[str, list[float]]) -> list[Row]:
    """Return a row for each call; the ratio is to the bare collective."""
    bare = statistics.median(timings[BARE])
    goals = {"assert_in_sync(), streams alone": GOAL}
    return [
        Row(name, statistics.median(times), None if name == BARE else statistics.median(times) / bare, goals.get(name))
        for name, times in timings.items()
    ]


def sizes() -> list[Row]:
    """Return the sizes of what is saved, in kB."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rng.pt"
        save_state(file, capture())
        found = {"save_state(path, capture())": file.stat().st_size}
        torch.save(StatefulRng(seed=0).state_dict(), file)
        found["torch.save(StatefulRng().state_dict(), path)"] = file.stat().st_size
    return [Row(name, size / 1000, None, KILOBYTES) for name, size in found.items()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its command."""
    add_rounds(parser, 200)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8], help="(default: 2 4 8)")


def run(options: argparse.Namespace) -> None:
    """Measure, and print the table."""
    sections = [Section(f"{ranks} ranks", "µs", rows(launch(ranks, options.rounds))) for ranks in options.ranks]
    sections.append(Section("A state of this process, without accelerators", "kB", sizes()))
    method = f"Medians over {options.rounds} rounds of the slowest rank; ratio: to the bare all_gather"
    report(sections, DISTRIBUTIONS, method, options.json)


def main(folder: str, rounds: str) -> None:
    """Measure as one of the ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    (Path(folder) / f"{dist.get_rank()}.json").write_text(json.dumps(measure(int(rounds))), encoding="utf-8")
    dist.barrier()  # gloo aborts where one rank is gone while another is still busy
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
