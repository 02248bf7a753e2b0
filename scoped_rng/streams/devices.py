"""The generators of accelerators, through torch's device-module interface.

CUDA, XPU, MTIA, MPS and a registered PrivateUse1 backend go one way: a backend that is initialised has a stream for
each device, one that is not has its pending seed. Nothing here initialises a backend.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch

from .registry import put_all

__all__ = ["check_devices", "device_streams"]


_PENDING_SEED = [0]  # what a backend that is initialised within a scope starts from


class ModuleGenerator:
    """A device's generator by the functions of its module, for backends without ``default_generators`` (MPS, say)."""

    def __init__(self, name: str, module: Any, index: int) -> None:
        missing = [name for name in ("get_rng_state", "set_rng_state", "manual_seed") if not hasattr(module, name)]
        if missing:
            raise RuntimeError(
                f"the device module of {name!r} lacks {', '.join(missing)}, which a scope needs (and torch's "
                "fork_rng as well); add them to the module, or leave the devices out: devices=[]"
            )
        self._module, self._index = module, index

    def get_state(self) -> Any:
        return self._module.get_rng_state(self._index)

    def set_state(self, state: Any) -> None:
        self._module.set_rng_state(state, self._index)

    def manual_seed(self, seed: int) -> None:
        # MPS has no such context: its one device is always the current one.
        current = self._module.device(self._index) if hasattr(self._module, "device") else contextlib.nullcontext()
        with current:
            self._module.manual_seed(seed)


class DeviceStream:
    """Hold the default generator of one device.

    A child that is forked inside a scope must not touch the parent's device when it leaves the block: nothing is done.
    """

    kind = "torch"

    def __init__(self, backend: Backend, index: int) -> None:
        self.name = f"{backend.name}:{index}"
        self.subject = (backend.name, index)
        self.device = backend.name
        self._in_bad_fork = backend.in_bad_fork
        # The generators themselves, where there are: no change of the current device, and no stack is formatted.
        generators = getattr(backend.module, "default_generators", ())
        self._generator: Any = generators[index] if generators else ModuleGenerator(backend.name, backend.module, index)

    def take(self) -> Any:
        return None if self._in_bad_fork() else self._generator.get_state()

    def put(self, value: Any) -> None:
        if not self._in_bad_fork():
            self._generator.set_state(value)

    def seed(self, seed: int) -> None:
        if not self._in_bad_fork():
            self._generator.manual_seed(seed)


class PendingSeeds:
    """Hold the seeds that wait for backends to be initialised, of several backends as one thing.

    torch keeps them in a private ``_lazy_seed_tracker`` of each backend: the calls that it makes on initialisation, and
    their order. The public functions can add to it, but not read or clear it.
    """

    name = "pending seeds"
    kind = ""
    subject: Any = _PENDING_SEED

    def __init__(self, backends: Iterable[Backend]) -> None:
        self._waiting = [
            (backend, backend.tracker, *backend.queued) for backend in backends if backend.tracker is not None
        ]

    def take(self) -> Any:
        return _PENDING_SEED[0], [
            (
                tracker.manual_seed_all_cb,
                tracker.manual_seed_cb,
                tracker.call_order,
                # Initialised since the scope was entered, and taken out at a suspension.
                [(stream, stream.take()) for stream in backend.streams()] if backend.is_initialized() else None,
            )
            for backend, tracker, _, _ in self._waiting
        ]

    def put(self, value: Any) -> None:
        _PENDING_SEED[0], waiting = value
        puts: list[Callable[[], Any]] = []
        for (backend, tracker, _, _), (seed_all, seed, order, streams) in zip(self._waiting, waiting, strict=True):
            tracker.manual_seed_all_cb, tracker.manual_seed_cb, tracker.call_order = seed_all, seed, order
            if streams is not None:
                puts += [partial(stream.put, state) for stream, state in streams]
            elif backend.is_initialized():  # meanwhile, by the body
                puts.append(partial(backend.run_pending, order))
        put_all(puts)

    def seed(self, seed: int) -> None:
        _PENDING_SEED[0] = seed
        for backend, tracker, queued, order in self._waiting:
            tracker.manual_seed_all_cb, tracker.manual_seed_cb, tracker.call_order = queued, None, order
            if backend.is_initialized():  # since the scope was entered, and it is seeded again
                for stream in backend.streams():
                    stream.seed(seed)


class Backend:
    """One kind of accelerator: whether it is initialised, and its devices' streams."""

    def __init__(self, name: str, module: Any) -> None:
        self.name, self.module = name, module
        self.in_bad_fork: Callable[[], bool] = getattr(module, "_is_in_bad_fork", lambda: False)
        # MPS and small backends have no such function: they are ready as soon as they are there.
        self.is_initialized: Callable[[], bool] = getattr(module, "is_initialized", self._is_there)
        # A tracker is of use only with the generators that it seeds.
        tracked = hasattr(module, "default_generators")
        self.tracker: Any = getattr(module, "_lazy_seed_tracker", None) if tracked else None
        # torch has the caller's stack in the place of this text.
        call = (self.seed_pending, ["a seed that scoped_rng has queued for a block\n"])
        self.queued = (call, [call])
        self._is_capturing: Callable[[], bool] = getattr(module, "is_current_stream_capturing", lambda: False)
        self._streams: list[DeviceStream] = []

    def _is_there(self) -> bool:
        return not self.in_bad_fork() and int(self.module.device_count()) > 0

    def streams(self) -> list[DeviceStream]:
        """Return the streams of all devices of an initialised backend."""
        if self._is_capturing():
            raise RuntimeError(
                f"a scope was opened or a state captured while {self.name} records a graph, when the generators' "
                "states cannot be read; open the scope round the capture, or leave the devices out: devices=[]"
            )
        if not self._streams:
            self._streams = [DeviceStream(self, index) for index in range(self.module.device_count())]
        return self._streams

    def seed_pending(self) -> None:
        """Seed every device with the seed of the scope; torch calls this while it initialises the backend."""
        for generator in self.module.default_generators:
            generator.manual_seed(_PENDING_SEED[0])

    def run_pending(self, order: Any) -> None:
        """Do what torch would have done if the backend had been initialised outside of the scope."""
        for generator in self.module.default_generators:
            generator.seed()  # as torch does for a device that nobody has seeded
        for call in order:
            if call:
                call[0]()


_BUILT_IN = [Backend(name, getattr(torch, name)) for name in ("cuda", "xpu", "mtia") if hasattr(torch, name)]
if torch.backends.mps.is_available():
    _BUILT_IN.append(Backend("mps", torch.mps))
_private_use: list[Backend] = []
_private_use_name: Callable[[], str] = torch._C._get_privateuse1_backend_name
_torch_names = vars(torch)
_pending: dict[tuple[Backend, ...], list[Any]] = {}


def _backends() -> list[Backend]:
    """Return the built-in backends and the one that is registered under PrivateUse1, at any time and under any name."""
    module = _torch_names.get(_private_use_name())
    if module is None:
        return _BUILT_IN
    if not _private_use or _private_use[-1].module is not module:
        _private_use[:] = [*_BUILT_IN, Backend(_private_use_name(), module)]
    return _private_use


def default_generators() -> list[Any]:
    """Return the generators that the accelerators' global functions draw from."""
    return [generator for backend in _backends() for generator in getattr(backend.module, "default_generators", ())]


def check_devices(devices: Any) -> tuple[torch.device, ...] | None:
    """Return the devices that ``devices=`` names, or None for all that are initialised.

    Args:
        devices: None, or a list or tuple of ``"cuda:1"``, ``torch.device`` and ints (of the current accelerator).

    Raises:
        TypeError: it is something else.
        ValueError: torch knows no such device, or it is the CPU.
    """
    if devices is None:
        return None
    if not isinstance(devices, (list, tuple)):
        raise TypeError(
            f"devices= takes a list of 'cuda:1', torch.device or int, or None for all, "
            f"got {type(devices).__name__} {devices!r}; put it in a list"
        )
    return tuple(map(_check_device, devices))


def _check_device(given: Any) -> torch.device:
    if isinstance(given, np.integer):
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, (int, str, torch.device)):
        raise TypeError(
            f"a device is a str such as 'cuda:1', a torch.device or an int, got {type(given).__name__} {given!r}"
        )
    try:
        device = torch.device(given)
    except RuntimeError as error:
        raise ValueError(f"torch knows no device {given!r}: {str(error).splitlines()[0]}") from error
    if device.type == "cpu":
        raise ValueError("devices= names accelerators; the CPU is covered by every scope, leave it out")
    return device


def device_streams(devices: tuple[torch.device, ...] | None) -> list[Any]:
    """Return what a scope has to hold of the accelerators: all that is initialised, or the devices asked for.

    Raises:
        ValueError: a device that is not there, or whose backend is not initialised.
    """
    if devices is not None:
        return list(dict.fromkeys(map(_device_stream, devices)))
    backends = _backends()
    waiting = tuple([backend for backend in backends if not backend.is_initialized()])
    pending = _pending.get(waiting)
    if pending is None:
        pending = _pending[waiting] = [PendingSeeds(waiting)]
    if len(waiting) == len(backends):
        return pending
    return pending + [stream for backend in backends if backend not in waiting for stream in backend.streams()]


def _device_stream(device: torch.device) -> DeviceStream:
    backend = {backend.name: backend for backend in _backends()}.get(device.type)
    if backend is None or not backend.is_initialized():
        raise ValueError(
            f"the device '{device}' is of a backend that is not initialised in this process; use the device once "
            "before the scope, or leave devices= out to cover what is initialised"
        )
    streams = backend.streams()
    index = device.index
    if index is None:
        index = backend.module.current_device() if hasattr(backend.module, "current_device") else 0
    if index >= len(streams):
        raise ValueError(f"the device '{device}' is not there: {device.type} has {len(streams)} device(s)")
    return streams[index]
