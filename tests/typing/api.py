"""The types of the public interface, for a type checker to read; what must be refused carries the error's name."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import torch
from hypothesis.strategies import SearchStrategy
from typing_extensions import assert_type

import scoped_rng as sr
from scoped_rng import hypothesis_plugin
from scoped_rng.compare import Difference, first_difference
from scoped_rng.data import SeededLoader, seed_worker, seeded_loader
from scoped_rng.nn import initialize
from scoped_rng.testing import assert_bitwise_equal, assert_does_not_touch, assert_repeatable, repeatable


def scopes(model: torch.nn.Module, state: sr.RngState) -> None:
    with sr.deterministic(0) as scope:
        assert_type(scope.seed, "int | None")
    generators = [random.Random(), np.random.default_rng(), np.random.RandomState(), torch.Generator(), model]
    sr.deterministic(np.uint64(7), strict=True, also=generators, devices=["cuda:1", torch.device("cuda"), 0])
    sr.isolated()
    sr.isolated(None, also=model, devices=[])
    sr.isolated(3)
    sr.replay(state)
    sr.replay(state, also=(model,), missing="skip")

    sr.deterministic()  # type: ignore[call-arg]
    sr.deterministic(0, True)  # type: ignore[call-arg]
    sr.deterministic("0")  # type: ignore[arg-type]
    sr.deterministic(1.5)  # type: ignore[arg-type]
    sr.deterministic(None)  # type: ignore[arg-type]
    sr.isolated(0, strict=True)  # type: ignore[call-arg]
    sr.replay(state.state_dict())  # type: ignore[arg-type]
    sr.replay(state, missing="ignore")  # type: ignore[arg-type]
    scope.seed = 1  # type: ignore[misc]


def a_block_may_end_in_an_error() -> int:
    with sr.deterministic(0):  # no scope swallows an exception, so this function returns on every way
        return 1


def states(model: torch.nn.Module) -> None:
    state = sr.capture(also=model, devices=[0])
    assert_type(state, sr.RngState)
    assert_type(state.names, tuple[str, ...])
    assert_type(state.digest(), str)
    assert_type(state.diff(sr.capture()), list[str])
    assert_type(state == sr.capture(), bool)
    assert_type(hash(state), int)
    assert_type(state.state_dict(), dict[str, Any])
    assert_type(sr.RngState.from_state_dict(state.state_dict()), sr.RngState)
    state.restore(also=[model], missing="skip")

    state.diff(None)  # type: ignore[arg-type]
    state.restore(missing="ignore")  # type: ignore[arg-type]
    state.restore([model])  # type: ignore[call-arg]


def seeds() -> None:
    assert_type(sr.fold_in(0, "layer", 3, np.int64(4)), int)
    sr.fold_in(0, 1.5)  # type: ignore[arg-type]
    sr.fold_in("layer")  # type: ignore[arg-type]


def registry() -> None:
    sr.register_stream("dice", random.Random())
    sr.unregister_stream("dice")


@sr.fixed_seed
def bare(size: int, *, scale: float = 1.0) -> list[float]:
    return [scale] * size


@sr.fixed_seed()
def called(size: int) -> list[float]:
    return [1.0] * size


@sr.fixed_seed(7, strict=True, also=torch.Generator(), devices=[])
def with_arguments(size: int) -> list[float]:
    return [1.0] * size


@sr.deterministic(0)
async def coroutine(name: str) -> bytes:
    return name.encode()


@sr.isolated()
def generator(count: int) -> Iterator[int]:
    yield from range(count)


@sr.fixed_seed
async def async_generator(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


@sr.fixed_seed(3)
class TestClass:
    size = 2

    def test(self) -> int:
        return self.size


class Methods:
    @sr.fixed_seed
    def method(self, size: int) -> list[float]:
        return [1.0] * size

    @classmethod
    @sr.fixed_seed(1)
    def of_class(cls) -> Methods:
        return cls()

    @staticmethod
    @sr.isolated(1)
    def static(size: int) -> int:
        return size


async def decorated() -> None:
    assert_type(bare(3, scale=2.0), list[float])
    assert_type(called(3), list[float])
    assert_type(with_arguments(3), list[float])
    assert_type(await coroutine("a"), bytes)
    assert_type(next(generator(3)), int)
    async for number in async_generator(3):
        assert_type(number, int)
    assert_type(TestClass().test(), int)
    assert_type(Methods.of_class().method(3), list[float])
    assert_type(Methods.static(3), int)
    assert_type(sr.fixed_seed(sum)([1, 2]), int)

    bare("3")  # type: ignore[arg-type]
    with_arguments()  # type: ignore[call-arg]
    sr.fixed_seed("3")  # type: ignore[call-overload]
    sr.fixed_seed(3)(4)  # type: ignore[type-var]


def errors() -> tuple[type[Exception], ...]:
    own: tuple[type[sr.ScopedRngError], ...] = (
        sr.ConcurrentScopeError,
        sr.RestoreError,
        sr.StateFormatError,
        sr.StateMismatchError,
    )
    told: tuple[type[Warning], ...] = (sr.DeterminismWarning, sr.RestoreWarning, sr.ScopeOrderWarning)
    return own + told


def comparison(model: torch.nn.Module) -> None:
    difference = first_difference(model, [model], grad=True)
    assert_type(difference, Difference | None)
    if difference is not None:
        assert_type(difference.path, str)
        assert_type(difference.ulps, "int | None")
    assert_bitwise_equal(model, model)
    assert_type(assert_repeatable(called, 3, seed=1, runs=3, strict=True), list[float])
    assert_type(assert_does_not_touch(called, 3, streams=["torch"]), list[float])

    assert_repeatable(called, 3, seed="a")  # type: ignore[arg-type]
    assert_does_not_touch(called, streams=3)  # type: ignore[arg-type]


@repeatable
def repeated(size: int) -> None: ...


@repeatable(7, runs=3)
def repeated_with_arguments(size: int) -> None: ...


def repeated_tests_keep_their_types() -> None:
    repeated(1)
    repeated_with_arguments(1)

    repeated("one")  # type: ignore[arg-type]
    repeated_with_arguments("one")  # type: ignore[arg-type]


def data(dataset: torch.utils.data.Dataset[int]) -> None:
    loader = seeded_loader(dataset, seed=np.int64(3), batch_size=2, shuffle=True, num_workers=2, pin_memory=True)
    assert_type(loader, SeededLoader)
    assert_type(loader.epoch, int)
    assert_type(loader.state_dict(), dict[str, Any])
    loader.load_state_dict(loader.state_dict())
    loader.set_epoch(3)
    torch.utils.data.DataLoader(dataset, worker_init_fn=seed_worker)

    seeded_loader(dataset)  # type: ignore[call-arg]
    seeded_loader(dataset, 0)  # type: ignore[call-arg]


def initialisation(model: torch.nn.Module) -> None:
    done = initialize(model, 0, lambda name, module: None)
    assert_type(done.seeds, dict[str, int])
    assert_type(done.missed, list[str])

    initialize(model)  # type: ignore[call-arg]
    initialize(model, 0, "xavier")  # type: ignore[arg-type]


def strategies() -> None:
    assert_type(hypothesis_plugin.seeds(), SearchStrategy[int])
    assert_type(hypothesis_plugin.generators(torch.Generator), SearchStrategy[torch.Generator])

    hypothesis_plugin.generators("torch")  # type: ignore[call-overload]
