"""What decides here whether runs repeat, what each of it means, and whether scopes do what they promise."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

__all__ = ["Finding", "examine", "is_well"]


class Finding(NamedTuple):
    """One thing that was looked at."""

    group: str
    name: str
    value: str
    meaning: str
    fix: str = ""
    good: bool | None = None
    """None where neither is."""


def examine() -> list[Finding]:
    """Look at everything: versions, devices, threads, flags, variables; and check that scopes work."""
    return [*_versions(), *_devices(), *_threads(), *_flags(), *_variables(), *_checks()]


def is_well(findings: list[Finding]) -> bool:
    """Return whether every live check has passed."""
    return all(finding.good for finding in findings if finding.group == CHECKS)


CHECKS = "live checks"


def _versions() -> Iterator[Finding]:
    yield Finding(
        "versions",
        "Python",
        f"{platform.python_version()} on {platform.platform()}",
        "results repeat on the same machine with the same versions",
    )
    meanings = {
        "scoped-rng": "this package",
        "torch": "kernels, and so the last bits of results, change with it",
        "numpy": "the numbers of default_rng() may change with it",
        "xxhash": "check --trace needs it",
    }
    for name, meaning in meanings.items():
        try:
            yield Finding("versions", name, importlib.metadata.version(name), meaning)
        except importlib.metadata.PackageNotFoundError:
            fix = "pip install 'scoped-rng[cli]'" if name == "xxhash" else "it runs from a folder of source files"
            yield Finding("versions", name, "not installed", meaning, fix)


def _devices() -> Iterator[Finding]:
    torch = _torch()
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("devices", "cpu", capability, "vectors of another width sum in another order", "ATEN_CPU_CAPABILITY")
    for name in _accelerators():
        module = getattr(torch, name)
        for index in range(module.device_count()):
            shown = module.get_device_name(index) if hasattr(module, "get_device_name") else "available"
            yield Finding("devices", f"{name}:{index}", shown, "a scope covers it once it is initialised")
    if torch.backends.cudnn.is_available():
        yield Finding("devices", "cudnn", str(torch.backends.cudnn.version()), "its algorithms change with it")


def _torch() -> Any:
    import torch  # whose backends leave much untyped

    return torch


def _accelerators() -> list[str]:
    torch = _torch()
    return [name for name in ("cuda", "xpu", "mps", "mtia") if getattr(torch, name).is_available()]


def _threads() -> Iterator[Finding]:
    torch = _torch()
    sums = "sums of floats depend on it; a scope does not set it"
    count = torch.get_num_threads()
    yield Finding("threads", "torch.get_num_threads()", str(count), sums, f"torch.set_num_threads({count}) keeps it")
    between = "how many ops torch.jit runs at once"
    yield Finding("threads", "torch.get_num_interop_threads()", str(torch.get_num_interop_threads()), between)


_FLAGS = {
    "torch.backends.cudnn.deterministic": "False lets cuDNN use algorithms that add in any order",
    "torch.backends.cudnn.benchmark": "True picks the algorithm that is fastest this time",
    "torch.backends.mkldnn.deterministic": "the same for oneDNN on the CPU",
    "torch.utils.deterministic.fill_uninitialized_memory": "fills torch.empty, as --strict does; else it is as it was",
    "torch.use_deterministic_algorithms": "False lets torch use algorithms that add in any order",
    "warn_only of torch.use_deterministic_algorithms": "warn, or raise, where there is no deterministic algorithm",
    "torch._inductor.config.deterministic": "the same for what torch.compile makes; None: not imported",
}


def _flags() -> Iterator[Finding]:
    from .. import deterministic
    from ..flags import NAMES, WARN

    outside = dict(zip(NAMES, WARN.take(), strict=True))
    with deterministic(0):
        inside = dict(zip(NAMES, WARN.take(), strict=True))
    for name, meaning in _FLAGS.items():
        now, then = outside[name], inside[name]
        fix = "" if now == then else f"deterministic(seed) sets {then}"
        yield Finding("flags", name, str(now), meaning, fix)
    import torch

    precision = "TF32 and other short formats round more; they repeat all the same"
    yield Finding("flags", "torch.get_float32_matmul_precision()", torch.get_float32_matmul_precision(), precision)


_VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": (
        "without it cuBLAS may add in any order; it is read when CUDA starts",
        "a scope sets :4096:8 before that, scoped-rng run before torch is imported",
    ),
    "PYTHONHASHSEED": (
        "decides the order of sets of str and bytes; another one in each process unless set",
        "PYTHONHASHSEED=0, or sort",
    ),
    "OMP_NUM_THREADS": ("how many threads share a sum", "set it where the number of cores may change"),
    "MKL_NUM_THREADS": ("the same for MKL", "set it where the number of cores may change"),
    "MKL_CBWR": ("has MKL give the same on other processors", "MKL_CBWR=COMPATIBLE, which is slower"),
    "ATEN_CPU_CAPABILITY": ("the width of torch's vectors", "ATEN_CPU_CAPABILITY=default is the same everywhere"),
    "TORCHINDUCTOR_DETERMINISTIC": ("1 starts inductor with its deterministic switch on", ""),
    "NVIDIA_TF32_OVERRIDE": ("0 switches TF32 off in all of NVIDIA's libraries", ""),
    "NCCL_ALGO": ("fixes the algorithm, and so the order, in which NCCL adds over ranks", "such as NCCL_ALGO=Ring"),
}


def _variables() -> Iterator[Finding]:
    for name, (meaning, fix) in _VARIABLES.items():
        value = os.environ.get(name)
        yield Finding("variables", name, "not set" if value is None else value, meaning, "" if value else fix)
    randomised = "on" if sys.flags.hash_randomization else "off"
    yield Finding("variables", "hash randomisation", randomised, "of this process, as PYTHONHASHSEED has decided")


def _checks() -> Iterator[Finding]:
    for device in ("cpu", *_accelerators()):
        for name, check in _LIVE.items():
            try:
                passed, told = check(device), ""
            except Exception as error:  # whatever is wrong here is what the doctor was asked for
                passed, told = False, f": {type(error).__name__}: {error}"
            value = "yes" if passed else f"no{told}"
            fix = "" if passed else "please report it, with this page"
            yield Finding(CHECKS, f"{name} ({device})", value, _MEANINGS[name], fix, passed)


def _dropout(device: str) -> bool:
    import torch

    from .. import deterministic

    layer, x, drawn = torch.nn.Dropout(0.5), torch.ones(1000, device=device), []
    for _ in range(2):
        with deterministic(0):
            drawn.append(layer(x))
    return torch.equal(*drawn) and not torch.equal(drawn[0], x)


def _initialisation(device: str) -> bool:
    import torch

    from .. import deterministic

    layers = []
    for _ in range(2):
        with deterministic(0):
            layers.append(torch.nn.Linear(16, 16, device=device))
    return torch.equal(layers[0].weight, layers[1].weight) and torch.equal(layers[0].bias, layers[1].bias)


def _untouched(device: str) -> bool:
    import torch

    from .. import capture, deterministic
    from ..flags import WARN

    before = capture(), WARN.take()
    with deterministic(0):
        torch.rand(8, device=device)
    return before == (capture(), WARN.take())


_LIVE: dict[str, Callable[[str], bool]] = {
    "dropout repeats": _dropout,
    "initialisation repeats": _initialisation,
    "streams outside untouched": _untouched,
}
_MEANINGS = {
    "dropout repeats": "two forwards under one seed agree to the bit",
    "initialisation repeats": "two layers made under one seed agree to the bit",
    "streams outside untouched": "streams and flags are after a scope what they were before",
}
