"""What the tests share: draws from every stream, and every form that a scope can take."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

NUMPY_2 = int(np.__version__.partition(".")[0]) >= 2
# Looked up in the source: importing inductor takes a second.
INDUCTOR_HAS_A_SWITCH = "\ndeterministic = " in (Path(torch.__file__).parent / "_inductor" / "config.py").read_text()
STREAMS = ("python", "python gaussian", "numpy", "numpy gaussian", "torch", "torch gaussian")


def draw(stream: str) -> float:
    """Draw once from a global stream; the gaussians are cached in pairs, so that odd draws leave one behind."""
    if stream == "python":
        return random.random()
    if stream == "python gaussian":
        return random.gauss(0, 1)
    if stream == "numpy":
        return float(np.random.random_sample())
    if stream == "numpy gaussian":
        return float(np.random.standard_normal())
    if stream == "torch":
        return float(torch.rand((), dtype=torch.float64))
    assert stream == "torch gaussian"
    return float(torch.randn((), dtype=torch.float64))


def draws() -> tuple[float, ...]:
    """Draw once from every global stream."""
    return tuple(map(draw, STREAMS))


def seed_everything(seed: int) -> None:
    """Seed the global streams as users do without scoped_rng."""
    random.seed(seed)
    np.random.seed(seed if seed < 2**32 else [seed & 0xFFFFFFFF, seed >> 32, 1])
    torch.manual_seed(seed)


def reference(seed: int, count: int = 1) -> list[tuple[float, ...]]:
    """Return the first ``count`` draws under ``seed``, without scoped_rng and without moving anything."""
    saved, pending = ambient(), [(tracker, vars(tracker).copy()) for tracker in trackers()]
    try:
        seed_everything(seed)
        return [draws() for _ in range(count)]
    finally:
        put_ambient(saved)
        for tracker, values in pending:
            vars(tracker).update(values)


def trackers() -> list[Any]:
    """Return where torch keeps the seeds that wait for its backends to be initialised."""
    return [getattr(torch, name)._lazy_seed_tracker for name in ("cuda", "xpu", "mtia")]


def ambient() -> tuple[Any, ...]:
    """Return the state of the global streams by their public functions."""
    return random.getstate(), np.random.get_bit_generator(), np.random.get_state(legacy=False), torch.get_rng_state()


def put_ambient(saved: tuple[Any, ...]) -> None:
    """Put back what `ambient` has returned."""
    random.setstate(saved[0])
    np.random.set_bit_generator(saved[1])
    np.random.set_state(saved[2])
    torch.set_rng_state(saved[3])


def continuation(count: int = 3) -> list[tuple[float, ...]]:
    """Return what the next draws would be, without drawing them."""
    saved = ambient()
    try:
        return [draws() for _ in range(count)]
    finally:
        put_ambient(saved)


def flags() -> tuple[Any, ...]:
    """Return torch's determinism flags by the public functions."""
    return (
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.backends.mkldnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


def everything() -> tuple[Any, ...]:
    """Return what must be the same after a scope as before it."""
    pending = [vars(tracker).copy() for tracker in trackers()]
    return continuation(), np.random.get_bit_generator(), torch.initial_seed(), flags(), pending


def _with(scope: Any, body: Callable[[], Any]) -> Any:
    with scope:
        return body()


def _function(scope: Any, body: Callable[[], Any]) -> Any:
    return scope(lambda: body())()


def _generator(scope: Any, body: Callable[[], Any]) -> Any:
    @scope
    def generate() -> Any:
        yield body()

    generator = generate()
    try:
        return next(generator)
    finally:
        generator.close()


def _coroutine(scope: Any, body: Callable[[], Any]) -> Any:
    @scope
    async def run() -> Any:
        await asyncio.sleep(0)
        result = body()
        await asyncio.sleep(0)
        return result

    return asyncio.run(run())


def _async_generator(scope: Any, body: Callable[[], Any]) -> Any:
    @scope
    async def generate() -> Any:
        await asyncio.sleep(0)
        yield body()

    async def run() -> Any:
        generator = generate()
        try:
            return await anext(generator)
        finally:
            await generator.aclose()

    return asyncio.run(run())


FORMS: dict[str, Callable[[Any, Callable[[], Any]], Any]] = {
    "with": _with,
    "function": _function,
    "generator": _generator,
    "coroutine": _coroutine,
    "async generator": _async_generator,
}
"""Each runs ``body()`` inside ``scope`` and returns what it returns."""
