"""torch's process-wide determinism switches: read, set, put back."""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from .errors import DeterminismWarning, warn
from .streams.registry import put_all

__all__ = ["NAMES", "STRICT", "WARN", "Flags"]

_torch: Any = torch  # for what torch leaves untyped
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
INDUCTOR = "torch._inductor.config"

Values = tuple[bool, bool, bool, bool, bool, bool, "bool | None", "str | None"]
NAMES = (
    "torch.backends.cudnn.deterministic",
    "torch.backends.cudnn.benchmark",
    "torch.backends.mkldnn.deterministic",
    "torch.utils.deterministic.fill_uninitialized_memory",
    "torch.use_deterministic_algorithms",
    "warn_only of torch.use_deterministic_algorithms",
    "torch._inductor.config.deterministic",  # None: not imported
    CUBLAS,  # None: absent
)
"""What `Flags.take` gives, in this order."""


class _Switch(NamedTuple):
    read: Callable[[], bool]
    write: Callable[[bool], Any]


def _switch(core: Any, name: str, owner: Any, attribute: str) -> _Switch:
    # The public attributes are frozen once torch.testing._internal.common_utils has been imported, and cost three times
    # as much, so the functions behind them are used where torch has them.
    read, write = getattr(core, f"_get_{name}", None), getattr(core, f"_set_{name}", None)
    if read is not None and write is not None:
        return _Switch(read, write)
    if hasattr(owner, attribute):
        return _Switch(lambda: bool(getattr(owner, attribute)), lambda value: setattr(owner, attribute, value))
    return _Switch(lambda: False, lambda value: None)  # a torch without this switch


class Flags:
    """Hold the determinism flags as one thing that a scope can take, set and put back."""

    name = "flags"
    kind = ""
    subject: Any = "flags"

    def __init__(self, strict: bool, core: Any = torch._C) -> None:
        self._strict = strict
        switches = (
            _switch(core, "cudnn_deterministic", torch.backends.cudnn, "deterministic"),
            _switch(core, "cudnn_benchmark", torch.backends.cudnn, "benchmark"),
            _switch(core, "mkldnn_deterministic", torch.backends.mkldnn, "deterministic"),
            _switch(
                core, "deterministic_fill_uninitialized_memory", torch.utils.deterministic, "fill_uninitialized_memory"
            ),
        )
        self._read = [switch.read for switch in switches]
        self._write = [switch.write for switch in switches]
        self._algorithms = getattr(core, "_get_deterministic_algorithms", torch.are_deterministic_algorithms_enabled)
        self._warn_only = getattr(
            core, "_get_deterministic_algorithms_warn_only", torch.is_deterministic_algorithms_warn_only_enabled
        )
        # The public setter imports all of inductor on its first call (a second) to set inductor's own switch along.
        self._set_algorithms: Callable[..., Any] = getattr(
            core, "_set_deterministic_algorithms", torch.use_deterministic_algorithms
        )
        self._cuda_is_built = bool(_torch.backends.cuda.is_built())

    def take(self) -> Values:
        """Return the values now in force."""
        cudnn, benchmark, mkldnn, fill = self._read
        return (
            cudnn(),
            benchmark(),
            mkldnn(),
            fill(),
            self._algorithms(),
            self._warn_only(),
            read_inductor() if INDUCTOR in sys.modules else None,
            os.environ.get(CUBLAS) if self._cuda_is_built else None,
        )

    def put(self, value: Values) -> None:
        """Set every flag to the value in ``value``."""
        try:
            self._put_switches(value)
        except BaseException:  # one that cannot be set; the others can, and first all at once, which is faster
            with contextlib.suppress(Exception):
                put_all([*map(partial, self._write, value), partial(self._put_algorithms, value)])
            raise
        finally:
            if self._cuda_is_built and os.environ.get(CUBLAS) != value[7]:
                if value[7] is None:
                    del os.environ[CUBLAS]
                else:
                    os.environ[CUBLAS] = value[7]

    def _put_switches(self, value: Values) -> None:
        cudnn, benchmark, mkldnn, fill = self._write
        cudnn(value[0])
        benchmark(value[1])
        mkldnn(value[2])
        fill(value[3])
        self._put_algorithms(value)

    def _put_algorithms(self, value: Values) -> None:
        try:
            self._set_algorithms(value[4], warn_only=value[5])
        finally:
            if INDUCTOR in sys.modules:
                write_inductor(value[6])

    def seed(self, seed: int) -> None:
        """Make torch deterministic: operations that cannot be warn, or raise if strict. The seed does not matter."""
        strict = self._strict
        if self._cuda_is_built and os.environ.get(CUBLAS) is None:
            # cuBLAS reads the variable once, when torch makes its first handle.
            if not _torch.cuda.is_initialized():
                os.environ[CUBLAS] = ":4096:8"
            elif strict:
                warn(
                    f"CUDA was initialised without {CUBLAS}, so torch refuses cuBLAS calls under strict=True; "
                    f"start the program with {CUBLAS}=:4096:8 in its environment",
                    DeterminismWarning,
                )
        self._put_switches((True, False, True, strict, True, not strict, True, None))


def read_inductor() -> bool | None:
    """Return inductor's own switch, or None where it has none."""
    config: Any = sys.modules[INDUCTOR]
    # The public attribute takes 1 µs to read. What it gives first is what was set, in newer torch for a context.
    override = getattr(vars(config).get("_config", {}).get("deterministic"), "user_override", None)
    if isinstance(override, contextvars.ContextVar):
        override = override.get(None)
    return override if isinstance(override, bool) else getattr(config, "deterministic", None)


def write_inductor(deterministic: bool | None) -> None:
    """Set inductor's own switch, or (None: it was imported since it was read) put it to what inductor starts from."""
    config: Any = sys.modules[INDUCTOR]
    if deterministic is None:
        deterministic = os.environ.get("TORCHINDUCTOR_DETERMINISTIC") == "1"
    if "deterministic" in vars(config).get("_config", ()) or hasattr(config, "deterministic"):
        config.deterministic = deterministic


STRICT, WARN = Flags(strict=True), Flags(strict=False)
