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

from .timing import Batch, interleave, machine, ratio, versions

__all__ = ["add_arguments", "run"]

BYTES = 100_000_000
GOAL = 2.0
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.complex64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its command."""
    parser.add_argument("--rounds", type=_positive, default=20, metavar="N", help="rounds (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the tensors are (default: %(default)s)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return int(text)


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
    print(", ".join(f"{name} {version}" for name, version in versions(("scoped-rng", "torch", "numpy")).items()))
    print(machine())
    print(f"Medians of {options.rounds} rounds, garbage collector off; {torch.get_num_threads()} threads")
    print("\nTwo equal ones of 100 MB; ratio: first_difference / torch.equal, or np.array_equal")
    print(f"{'':40}{'ms':>8}{'ratio':>8}{'goal':>8}")
    measured = []
    for dtype in DTYPES:
        for contiguous in (True, False):
            tensors = pair(dtype, contiguous, options.device)
            timings = interleave({"theirs": equal(*tensors), "ours": bitwise(*tensors)}, rounds=options.rounds)
            name = f"{str(dtype).removeprefix('torch.')}, {'contiguous' if contiguous else 'transposed'}"
            measured.append(show(name, timings, GOAL))
    for kind in ("float32", "complex128"):
        show(
            f"NumPy {kind}",
            interleave(array_batches(np.ones(BYTES // np.dtype(kind).itemsize, kind)), rounds=options.rounds),
        )
    print(f"\n{sum(it <= GOAL for it in measured)} of {len(measured)} goals met")


def show(name: str, timings: dict[str, list[float]], goal: float | None = None) -> float:
    quotient = ratio(timings["ours"], timings["theirs"])
    tail = "" if goal is None else f"{goal:8.2f}  {'met' if quotient <= goal else 'MISSED'}"
    print(f"{name:40}{median(timings['ours']) / 1000:8.2f}{quotient:8.3f}{tail}")
    return quotient
