"""What an empty scope costs, side by side with what people use in its place.

Everything is timed in one process with the garbage collector off: in every round each contender makes a short batch of
calls. Times are medians over the rounds. A ratio is the median of the ratios within the rounds, not the ratio of the
medians: the two of a round have met the same clock rate and the same neighbours, which the quotient takes out.

Inductor is imported by then, as some of the contenders do it, so that a scope has one switch more to set.

The goals are for the CPU, so accelerators are hidden: some of the contenders would initialise them.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from statistics import median
from typing import Any

import numpy as np
import torch

from scoped_rng import deterministic, isolated

from .table import Row, Section, add_rounds, report
from .timing import SLICE, Batch, deeper, interleave, ratio

__all__ = ["add_arguments", "run"]

_torch: Any = torch  # for what torch leaves untyped
_numpy: Any = np.random  # whose stubs leave out get_bit_generator and set_bit_generator
OURS = "with deterministic(0): pass"
FRAMES = 30
PROCESSES = 9
PEERS = ("pytorch-lightning", "pyro-ppl", "pytorch-seed", "pytorch-ignite", "fastai")
DISTRIBUTIONS = ("scoped-rng", "torch", "numpy", *PEERS)


def ours(calls: int) -> None:
    for _ in range(calls):
        with deterministic(0):
            pass


def naive_recipe(calls: int) -> None:
    """Save, seed, set flags, restore, with the public functions alone, as many a blog has it."""
    for _ in range(calls):
        python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
        cudnn_deterministic, cudnn_benchmark = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
        algorithms = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        torch.cuda.manual_seed_all(0)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            pass
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(cpu)
            torch.backends.cudnn.deterministic = cudnn_deterministic
            torch.backends.cudnn.benchmark = cudnn_benchmark
            torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)


def fork_rng(calls: int) -> None:
    for _ in range(calls):
        with torch.random.fork_rng():
            torch.manual_seed(0)


def seed_calls(calls: int) -> None:
    for _ in range(calls):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)


POOLED: Any = np.random.MT19937(0)  # made once: it costs three scopes


def straight_line(calls: int) -> None:
    """Save, seed and put back the three streams and the flags with the primitive calls, and nothing round them.

    It does less than a scope: a gaussian that NumPy keeps is lost, accelerators, NumPy's fresh entropy and inductor's
    own switch are left alone, and nothing comes back if the body raises.
    """
    core = _torch._C
    get_cudnn_deterministic, set_cudnn_deterministic = core._get_cudnn_deterministic, core._set_cudnn_deterministic
    get_cudnn_benchmark, set_cudnn_benchmark = core._get_cudnn_benchmark, core._set_cudnn_benchmark
    get_mkldnn, set_mkldnn = core._get_mkldnn_deterministic, core._set_mkldnn_deterministic
    get_algorithms, set_algorithms = core._get_deterministic_algorithms, core._set_deterministic_algorithms
    get_warn_only = core._get_deterministic_algorithms_warn_only
    get_fill = core._get_deterministic_fill_uninitialized_memory
    set_fill = core._set_deterministic_fill_uninitialized_memory
    get_python, seed_python, set_python = random.getstate, random.seed, random.setstate
    get_bits, set_bits = _numpy.get_bit_generator, _numpy.set_bit_generator
    pooled, seed_bits = POOLED, POOLED._legacy_seeding
    generator = torch.default_generator
    get_torch, seed_torch, set_torch = generator.get_state, generator.manual_seed, generator.set_state

    for _ in range(calls):
        python = get_python()
        bits = get_bits()
        cpu = get_torch()
        cudnn_deterministic = get_cudnn_deterministic()
        cudnn_benchmark = get_cudnn_benchmark()
        mkldnn = get_mkldnn()
        algorithms = get_algorithms()
        warn_only = get_warn_only()
        fill = get_fill()
        seed_python(0)
        set_bits(pooled)
        seed_bits(0)
        seed_torch(0)
        set_cudnn_deterministic(True)
        set_cudnn_benchmark(False)
        set_mkldnn(True)
        set_algorithms(True, warn_only=True)
        set_fill(False)
        set_python(python)
        set_bits(bits)
        set_torch(cpu)
        set_cudnn_deterministic(cudnn_deterministic)
        set_cudnn_benchmark(cudnn_benchmark)
        set_mkldnn(mkldnn)
        set_algorithms(algorithms, warn_only=warn_only)
        set_fill(fill)


# The peers may be absent, and not all of them are typed: imported by name, what they have is Any.
def lightning() -> Batch:
    isolate_rng = import_module("pytorch_lightning.utilities.seed").isolate_rng
    seed_everything = import_module("pytorch_lightning").seed_everything

    def batch(calls: int) -> None:
        for _ in range(calls):
            with isolate_rng():
                seed_everything(0, verbose=False)

    return batch


def pyro() -> Batch:
    seed = import_module("pyro.poutine").seed

    def batch(calls: int) -> None:
        for _ in range(calls):
            with seed(rng_seed=0):
                pass

    return batch


def pytorch_seed() -> Batch:
    SavedRNG = import_module("pytorch_seed").SavedRNG

    def batch(calls: int) -> None:
        for _ in range(calls):
            with SavedRNG(0):
                pass

    return batch


def ignite() -> Batch:
    manual_seed = import_module("ignite.utils").manual_seed

    @import_module("ignite.engine.deterministic").keep_random_state  # type: ignore[untyped-decorator]
    def seeded() -> None:
        manual_seed(0)

    def batch(calls: int) -> None:
        for _ in range(calls):
            seeded()

    return batch


def fastai() -> Batch:
    no_random = import_module("fastai.torch_core").no_random

    def batch(calls: int) -> None:
        for _ in range(calls):
            with no_random(0):
                pass

    return batch


@dataclass(frozen=True)
class Contender:
    """What the empty scope is compared with."""

    name: str
    make: Callable[[], Batch]  # raises where it is not installed
    goal: float | None = None  # the most that a scope may cost, as a multiple of it
    restores: bool = True  # a gaussian that NumPy or torch keeps


CONTENDERS = (
    Contender("naive recipe: save, seed, flags, restore", lambda: naive_recipe, 0.15),
    Contender("Lightning isolate_rng + seed_everything", lightning, 0.15),
    Contender("torch fork_rng + manual_seed", lambda: fork_rng, 0.30),
    Contender("straight line of its primitive calls", lambda: straight_line, 1.25, restores=False),
    Contender("three seed calls, nothing put back", lambda: seed_calls, restores=False),
    Contender("Pyro poutine.seed", pyro),
    Contender("pytorch_seed.SavedRNG", pytorch_seed),
    Contender("ignite keep_random_state + manual_seed", ignite),
    Contender("fastai no_random", fastai),
)


def enter_reused(calls: int) -> None:
    scope = deterministic(0)
    for _ in range(calls):
        with scope:
            pass


def enter_isolated(calls: int) -> None:
    for _ in range(calls):
        with isolated():
            pass


def enter_isolated_seeded(calls: int) -> None:
    for _ in range(calls):
        with isolated(0):
            pass


def compare(title: str, contenders: Sequence[Contender], options: argparse.Namespace, frames: int = 0) -> Section:
    """Time the empty scope against each of ``contenders`` that can be imported."""
    batches: dict[str, Batch] = {OURS: ours}
    absent = {}
    for contender in contenders:
        try:
            batches[contender.name] = contender.make()
        except ModuleNotFoundError:
            absent[contender.name] = "not installed"
        except Exception as error:  # installed beside a torch that it was not built for, say
            absent[contender.name] = f"fails: {type(error).__name__}"
    timings = deeper(frames, lambda: interleave(batches, rounds=options.rounds))
    rows = [Row(OURS, median(timings[OURS]))]
    for contender in contenders:
        name, goal = contender.name, contender.goal
        if name in absent:
            rows.append(Row(name, None, None, goal, absent[name]))
        else:
            rows.append(Row(name, median(timings[name]), ratio(timings[OURS], timings[name]), goal))
    return Section(f"{title}; ratio: the empty scope / this", "µs", rows)


def compare_with_gaussians(options: argparse.Namespace) -> Section:
    """Do `compare` where NumPy and torch each keep the second gaussian of a pair, which has to be there afterwards."""
    np.random.seed(0)
    np.random.standard_normal()
    torch.manual_seed(0)
    torch.randn(1)
    keeping = [contender for contender in CONTENDERS if contender.restores]
    return compare("NumPy and torch each keep a gaussian", keeping, options)


def compare_forms(options: argparse.Namespace) -> Section:
    """Time the other forms of a scope against the empty ``with deterministic(0)``."""
    batches = {
        OURS: ours,
        "the same scope object each time": enter_reused,
        "isolated()": enter_isolated,
        "isolated(0)": enter_isolated_seeded,
    }
    timings = interleave(batches, rounds=options.rounds)
    rows = [Row(name, median(its), ratio(its, timings[OURS])) for name, its in timings.items()]
    return Section("Other forms; ratio: this / the empty scope", "µs", rows)


FIRST_SCOPE = """
import time, {imports}
begin = time.perf_counter()
import scoped_rng
with scoped_rng.deterministic(0): pass
print(1000 * (time.perf_counter() - begin))
"""


def first_scope(processes: int) -> Section:
    """Time the first scope of a process, the import of scoped_rng included, in fresh interpreters."""
    # An installed package is compiled already; for one in a checkout, the first run keeps what it has compiled.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def measure(imports: str) -> float:
        command = [sys.executable, "-c", FIRST_SCOPE.format(imports=imports)]
        runs = [float(subprocess.check_output(command, env=environment)) for _ in range(processes + 1)]
        return median(runs[1:])

    rows = [
        Row("after import torch, numpy, numpy.random", measure("torch, numpy, numpy.random"), None, 5.0),
        # For information: a NumPy that imports its random module lazily does so in the first scope.
        Row("after import torch, numpy", measure("torch, numpy")),
    ]
    return Section("First scope in a process, with import scoped_rng", "ms", rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark to its command."""
    add_rounds(parser, 200)


def run(options: argparse.Namespace) -> None:
    """Measure, and print the table."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sections = [
        compare("On the main program's stack", CONTENDERS, options),
        compare(f"{FRAMES} frames deeper", CONTENDERS, options, FRAMES),
        compare_forms(options),
        compare_with_gaussians(options),
        first_scope(min(PROCESSES, max(1, options.rounds // 2))),
    ]
    report(
        sections,
        DISTRIBUTIONS,
        f"Medians of {options.rounds} rounds of {SLICE} µs each, side by side in one process, garbage collector off",
        options.json,
    )
