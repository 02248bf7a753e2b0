"""What comparing two equal tensors of 100 MB bit for bit costs, beside torch.equal.

Timed in one process, in turns; a ratio is the median of the ratios within the rounds. ``torch.equal`` compares values,
which takes NaN for unequal and the two zeros for equal; it is the goal for being as fast as memory allows.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

import numpy as np
import torch

from scoped_rng.compare import first_difference

from .table import Row, Section, add_rounds, report
from .timing import Batch, interleave, ratio

__all__ = ["add_arguments", "run"]

BYTES = 100_000_000
GOAL = 2.0
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.complex64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its command."""
    add_rounds(parser, 20)
    parser.add_argument("--device", default="cpu", help="where the tensors are (default: %(default)s)")


def pair(dtype: torch.dtype, contiguous: bool, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two equal tensors of 100 MB, each in memory of its own."""
    numbers = torch.randint(0, 2, (BYTES // dtype.itemsize // 1000, 1000), device=device).to(dtype)
    first, second = numbers, numbers.clone()
    return (first, second) if contiguous else (first.t(), second.t())


def equal(first: torch.Tensor, second: torch.Tensor) -> Batch:
    def batch(calls: int) -> None:
        for _ in range(calls):
            if not torch.equal(first, second):
                raise RuntimeError("they are equal")
            synchronize(first)

    return batch


def bitwise(first: torch.Tensor, second: torch.Tensor) -> Batch:
    def batch(calls: int) -> None:
        for _ in range(calls):
            if first_difference(first, second) is not None:
                raise RuntimeError("they are equal")
            synchronize(first)

    return batch


def synchronize(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def array_batches(array: np.ndarray[Any, Any]) -> dict[str, Batch]:
    """Return the same for two NumPy arrays."""
    other = array.copy()

    def theirs(calls: int) -> None:
        for _ in range(calls):
            np.array_equal(array, other)

    def ours(calls: int) -> None:
        for _ in range(calls):
            first_difference(array, other)

    return {"theirs": theirs, "ours": ours}


def run(options: argparse.Namespace) -> None:
    """Measure, and print the table."""
    rows = []
    for dtype in DTYPES:
        for contiguous in (True, False):
            tensors = pair(dtype, contiguous, options.device)
            timings = interleave({"theirs": equal(*tensors), "ours": bitwise(*tensors)}, rounds=options.rounds)
            name = f"{str(dtype).removeprefix('torch.')}, {'contiguous' if contiguous else 'transposed'}"
            rows.append(row(name, timings, GOAL))
    for kind in ("float32", "complex128"):
        batches = array_batches(np.ones(BYTES // np.dtype(kind).itemsize, kind))
        rows.append(row(f"NumPy {kind}", interleave(batches, rounds=options.rounds), None))
    report(
        [Section("Two equal ones of 100 MB; ratio: first_difference / torch.equal, or np.array_equal", "ms", rows)],
        ("scoped-rng", "torch", "numpy"),
        f"Medians of {options.rounds} rounds, garbage collector off; {torch.get_num_threads()} threads",
        options.json,
    )


def row(name: str, timings: dict[str, list[float]], goal: float | None) -> Row:
    return Row(name, median(timings["ours"]) / 1000, ratio(timings["ours"], timings["theirs"]), goal)
