"""A device module as torch expects one of a backend registered under PrivateUse1; CPU generators stand in.

It counts what reaches the device, and refuses what a real one refuses: use in a forked child, and a generator's state
while a graph is recorded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._utils import _LazySeedTracker

from scoped_rng.streams import devices

NAME = "privateuseone"
"""What the backend is called as long as nobody has renamed it."""


class FakeGenerator:
    """A generator of a device: a CPU generator that knows which module it belongs to."""

    def __init__(self, module: FakeModule) -> None:
        self._module = module
        self._generator = torch.Generator()
        self._generator.seed()

    def get_state(self) -> torch.Tensor:
        self._module.check_use()
        return self._generator.get_state()

    def set_state(self, state: torch.Tensor) -> None:
        self._module.check_use()
        self._generator.set_state(state)

    def manual_seed(self, seed: int) -> None:
        self._module.check_use()
        self._generator.manual_seed(seed)

    def seed(self) -> int:
        self._module.check_use()
        return self._generator.seed()

    def initial_seed(self) -> int:
        return self._generator.initial_seed()

    def draw(self) -> float:
        """Draw once, as ``torch.rand((), device=...)`` would."""
        self._module.check_use()
        return draw_from(self._generator)


class FakeModule:
    """The least that a device module may have: functions, one device, and no way to ask whether it is initialised.

    This is also what ``torch.mps`` looks like: no device context, no lazy tracker, no ``default_generators``.
    """

    def __init__(self, count: int = 1) -> None:
        self._generators = [FakeGenerator(self) for _ in range(count)]
        self._process = os.getpid()
        self.forked = False

    def check_use(self) -> None:
        """Raise where a real device would."""
        if self._is_in_bad_fork():
            raise RuntimeError("the device was used in a forked child")

    def device_count(self) -> int:
        return len(self._generators)

    def get_rng_state(self, device: Any = 0) -> torch.Tensor:
        return self._generators[device].get_state()

    def set_rng_state(self, new_state: torch.Tensor, device: Any = 0) -> None:
        self._generators[device].set_state(new_state)

    def manual_seed(self, seed: int) -> None:
        self._generators[0].manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        for generator in self._generators:
            generator.manual_seed(seed)

    def _is_in_bad_fork(self) -> bool:
        return self.forked or os.getpid() != self._process

    # What a test does with a device.

    def draws(self) -> list[float]:
        """Draw once on every device."""
        return [generator.draw() for generator in self._generators]

    def ahead(self, count: int = 3) -> list[list[float]]:
        """Return what the next draws on every device would be, without drawing them."""
        copies = [torch.Generator() for _ in self._generators]
        for copy, generator in zip(copies, self._generators, strict=True):
            copy.set_state(generator._generator.get_state())
        return [[draw_from(copy) for copy in copies] for _ in range(count)]

    def initial_seeds(self) -> list[int]:
        return [generator.initial_seed() for generator in self._generators]


class FakeFunctionsModule(FakeModule):
    """Two devices, reached by functions alone: seeding goes to the current one."""

    def __init__(self, count: int = 2) -> None:
        super().__init__(count)
        self._current = 0

    def current_device(self) -> int:
        return self._current

    def set_device(self, index: int) -> None:
        self._current = index

    @contextmanager
    def device(self, index: int) -> Iterator[None]:
        before, self._current = self._current, index
        try:
            yield
        finally:
            self._current = before

    def manual_seed(self, seed: int) -> None:
        self._generators[self._current].manual_seed(seed)


class FakeGeneratorsModule(FakeFunctionsModule):
    """Two devices whose generators can be had, with all that ``torch.cuda`` has: lazy initialisation and graphs."""

    def __init__(self, count: int = 2, initialized: bool = True) -> None:
        super().__init__(count)
        self.default_generators: tuple[FakeGenerator, ...] = ()
        self._initialized = False
        self._lazy_seed_tracker = _LazySeedTracker()
        self.recording = False
        if initialized:
            self.init()

    def init(self) -> None:
        """Initialise as ``torch.cuda._lazy_init`` does: default seeds first, then the calls that wait."""
        if self._initialized:
            return
        if self._is_in_bad_fork():
            raise RuntimeError("the device was used in a forked child")
        self.default_generators = tuple(self._generators)
        for generator in self.default_generators:
            generator.seed()
        for call in [call for call in self._lazy_seed_tracker.get_calls() if call]:
            call[0]()
        self._initialized = True

    def is_initialized(self) -> bool:
        return self._initialized and not self._is_in_bad_fork()

    def is_current_stream_capturing(self) -> bool:
        return self.recording

    def get_rng_state(self, device: Any = 0) -> torch.Tensor:
        self.init()
        return super().get_rng_state(device)

    def manual_seed(self, seed: int) -> None:
        def call() -> None:
            self.default_generators[self._current].manual_seed(seed)

        if self.is_initialized():
            call()
        else:
            self._lazy_seed_tracker.queue_seed(call, ["a test\n"])

    def manual_seed_all(self, seed: int) -> None:
        def call() -> None:
            for generator in self.default_generators:
                generator.manual_seed(seed)

        if self.is_initialized():
            call()
        else:
            self._lazy_seed_tracker.queue_seed_all(call, ["a test\n"])

    def draws(self) -> list[float]:
        self.init()
        return super().draws()


class FakeLazyBackend:
    """One of torch's own backends that are initialised lazily, on a machine that does not have it.

    torch's own code does everything but reach for a device: ``init()`` runs its real initialisation, with the calls
    that wait for it, on two devices of CPU generators.
    """

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module: Any = getattr(torch, name)
        self.tracker = _LazySeedTracker()
        self._generators = [torch.Generator(), torch.Generator()]
        module, core = self.module, torch._C
        for holder in (module, getattr(module, "random", module)):
            monkeypatch.setattr(holder, "device_count", lambda: 2)
            monkeypatch.setattr(holder, "current_device", lambda: 0)
        if hasattr(module, "is_current_stream_capturing"):
            monkeypatch.setattr(module, "is_current_stream_capturing", lambda: False)
        monkeypatch.setattr(module, "_initialized", False)
        monkeypatch.setattr(module, "_lazy_seed_tracker", self.tracker)
        monkeypatch.setattr(module, "_queued_calls", [])
        monkeypatch.setattr(module, "default_generators", ())
        if name == "cuda":
            monkeypatch.setattr(module, "_cudart", object())
            monkeypatch.setattr(core, "_cuda_getDeviceCount", lambda: 2, raising=False)
        else:
            monkeypatch.setattr(module, "_is_compiled", lambda: True)
        monkeypatch.setattr(core, f"_{name}_init", self._init_devices, raising=False)
        forget_devices(monkeypatch, name)

    def _init_devices(self) -> None:
        for generator in self._generators:
            generator.seed()
        self.module.default_generators = tuple(self._generators)

    def init(self) -> None:
        """Do what the first use of a device does."""
        self.module._lazy_init()

    def draws(self) -> list[float]:
        """Draw once on every device, as ``torch.rand((), device=...)`` would."""
        self.init()
        return [draw_from(generator) for generator in self._generators]

    def ahead(self, count: int = 3) -> list[list[float]]:
        """Return what the next draws on every device would be, without drawing them."""
        assert self.module.is_initialized()
        states = [generator.get_state() for generator in self._generators]
        drawn = [self.draws() for _ in range(count)]
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)
        return drawn

    def pending(self) -> tuple[Any, ...]:
        """Return what waits for the initialisation, each callback as the very object."""
        return self.tracker.manual_seed_all_cb, self.tracker.manual_seed_cb, list(self.tracker.call_order)


def forget_devices(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make the package look anew at a built-in backend, now and when the test has ended."""
    monkeypatch.setattr(devices, "_BUILT_IN", [*devices._BUILT_IN])
    monkeypatch.setattr(devices, "_private_use", [])
    monkeypatch.setattr(devices, "_pending", {})
    for position, backend in enumerate(devices._BUILT_IN):
        if backend.name == name:
            devices._BUILT_IN[position] = devices.Backend(name, getattr(torch, name))


def draw_from(generator: torch.Generator) -> float:
    return float(torch.rand((), dtype=torch.float64, generator=generator))


def seeded_draws(seed: int, count: int = 1) -> list[float]:
    """Return the first draws of a generator with a seed."""
    generator = torch.Generator().manual_seed(seed)
    return [draw_from(generator) for _ in range(count)]
