"""What the documentation says in one line of other tools, and of what a scope does not cover."""

from __future__ import annotations

import os
import random
import re
import secrets
import subprocess
import sys
import types
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import scoped_rng
from scoped_rng import capture, deterministic, isolated, unregister_stream
from tests import kit

# A process that is forked while threads run, as under xdist, warns from Python 3.12 on.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def environment() -> dict[str, str]:
    """Return the environment of a fresh interpreter that finds scoped_rng where the tests have it, installed or not."""
    return {**os.environ, "PYTHONPATH": str(Path(scoped_rng.__file__).parents[1])}


def fake_cupy() -> types.ModuleType:
    """Return a module with a global generator as CuPy's: it can be seeded and exchanged, but not read."""

    class RandomState:
        def __init__(self, seed: Any = None) -> None:
            # CuPy casts a seed with casting="safe", which refuses an int64.
            seed = None if seed is None else int(np.asarray(seed).astype(np.uint64, casting="safe"))
            self._generator = np.random.Philox(seed)

        def rand(self, size: int) -> list[int]:
            return list(self._generator.random_raw(size))

    module, current = types.ModuleType("cupy"), [RandomState()]
    module.random = types.SimpleNamespace(  # type: ignore[attr-defined]
        RandomState=RandomState,
        get_random_state=lambda: current[0],
        set_random_state=lambda state: current.__setitem__(0, state),
        rand=lambda size: current[0].rand(size),
    )
    return module


# --- activation checkpointing


def gradients(checkpointed: Callable[..., Any] | None, backward_inside: bool) -> list[torch.Tensor]:
    with deterministic(0):
        block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.5))
        x = torch.randn(4, 8, requires_grad=True)
        loss = (block(x) if checkpointed is None else checkpointed(block, x)).square().sum()
        loss = loss + nn.functional.dropout(x).sum()  # what comes after a checkpointed part is drawn as ever
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    return [x.grad, *(parameter.grad for parameter in block.parameters())]


@pytest.mark.parametrize("backward_inside", [True, False], ids=["backward inside", "backward outside"])
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_checkpointing_inside_a_scope_gives_the_gradients_without_it(
    use_reentrant: bool, backward_inside: bool
) -> None:
    plain = gradients(None, backward_inside)
    before = kit.everything()
    ours = gradients(lambda block, x: checkpoint(block, x, use_reentrant=use_reentrant), backward_inside)
    assert all(map(torch.equal, ours, plain))
    assert kit.everything() == before


# --- scikit-learn


def forest() -> tuple[Any, ...]:
    x, y = np.arange(200.0).reshape(-1, 2), np.arange(100) % 3
    train_x, test_x, train_y, _ = train_test_split(x, y)
    model = RandomForestClassifier(n_estimators=3).fit(train_x, train_y)
    return test_x.tolist(), model.predict_proba(test_x).tolist()


def test_random_state_none_of_scikit_learn_repeats_in_a_scope() -> None:
    before = kit.continuation()
    with deterministic(0):
        first = forest()
    with deterministic(0):
        assert forest() == first
    with deterministic(1):
        assert forest() != first
    assert kit.continuation() == before


# --- Gymnasium


def episode(env: Any) -> list[list[float]]:
    observations = [env.reset()[0]]
    observations += [env.step(env.action_space.sample())[0] for _ in range(5)]
    return [observation.tolist() for observation in observations]


def test_a_gymnasium_environment_repeats_and_goes_on_as_before() -> None:
    env, twin = gymnasium.make("CartPole-v1"), gymnasium.make("CartPole-v1")
    for each in (env, twin):
        each.reset(seed=3)
        each.action_space.seed(4)
    scope = deterministic(0, also=[env.unwrapped.np_random, env.action_space.np_random])
    with scope:
        first = episode(env)
    with scope:
        assert episode(env) == first
    assert episode(env) == episode(twin) != first


def test_a_seeded_reset_of_gymnasium_makes_a_generator_that_the_scope_does_not_hold() -> None:
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=3)
    held = env.unwrapped.np_random
    with deterministic(0, also=held):
        env.reset(seed=5)
        assert env.unwrapped.np_random is not held


# --- a stream that can be exchanged but not read, as CuPy's


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a stand-in for CuPy, registered by the adapter that the README shows."""
    module = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (adapter,) = (code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "import cupy" in code)
    exec(adapter, {})
    yield module
    unregister_stream("cupy")


def ahead(module: Any) -> Any:
    return module.random.get_random_state()._generator.state


def test_cupy_repeats_in_a_seeded_scope_and_goes_on_as_before(cupy: Any) -> None:
    before = repr(ahead(cupy))
    with deterministic(0):
        first = cupy.random.rand(3)
    with isolated(0):
        assert cupy.random.rand(3) == first
    with deterministic(1):
        assert cupy.random.rand(3) != first
    assert repr(ahead(cupy)) == before


def test_cupy_goes_on_inside_a_scope_where_a_nested_one_has_begun(cupy: Any) -> None:
    with deterministic(0):
        straight = cupy.random.rand(2) + cupy.random.rand(2)
    with deterministic(0):
        first = cupy.random.rand(2)
        with deterministic(1):
            cupy.random.rand(5)
        assert first + cupy.random.rand(2) == straight


def test_cupy_repeats_in_a_decorated_generator_that_gives_way(cupy: Any) -> None:
    @deterministic(0)
    def pairs() -> Any:
        while True:
            yield cupy.random.rand(2)

    before = repr(ahead(cupy))
    one, other = pairs(), pairs()
    assert [next(one), next(one)] == [next(other), next(other)]
    assert repr(ahead(cupy)) == before
    one.close()
    other.close()


def test_cupy_moves_in_a_scope_without_a_seed(cupy: Any) -> None:
    before = repr(ahead(cupy))
    with isolated():
        cupy.random.rand(3)
    assert repr(ahead(cupy)) != before


def test_capture_refuses_cupy(cupy: Any) -> None:
    with pytest.raises(TypeError, match=re.escape("the state of 'cupy' holds RandomState")):
        capture()


# --- data loaders


class Draws(Dataset):  # type: ignore[type-arg]
    """Eight items, each with a draw of every stream that a worker of a loader seeds."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        return index, random.random(), float(np.random.random_sample()), float(torch.rand((), dtype=torch.float64))


def epoch(workers: int) -> list[list[Any]]:
    loader = DataLoader(Draws(), 2, shuffle=True, num_workers=workers)
    return [item for batch in loader for item in torch.stack(batch, 1).tolist()]


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_repeats_in_a_scope_and_leaves_the_outside_alone(workers: int) -> None:
    before = kit.everything()
    with deterministic(0):
        first = epoch(workers)
    with deterministic(0):
        assert epoch(workers) == first
    with deterministic(1):
        assert epoch(workers) != first
    assert kit.everything() == before


@forks
def test_the_order_of_a_loader_is_the_same_for_any_number_of_workers_but_what_they_draw_is_not() -> None:
    runs = []
    for workers in (0, 1, 2):
        with deterministic(0):
            runs.append(epoch(workers))
    assert [item[0] for item in runs[0]] == [item[0] for item in runs[1]] == [item[0] for item in runs[2]]
    assert len({str(run) for run in runs}) == 3


class Fresh(Draws):
    def __getitem__(self, index: int) -> Any:
        return float(np.random.default_rng().random())


@forks
def test_fresh_entropy_in_forked_workers_repeats_and_differs_between_workers_and_epochs() -> None:
    runs = []
    for _ in range(2):
        with deterministic(0):
            loader = DataLoader(Fresh(), 1, num_workers=2, multiprocessing_context="fork")
            runs.append([float(batch) for _ in range(2) for batch in loader])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == len(runs[0])


# --- what a scope does not cover


@pytest.mark.parametrize(
    "draw",
    [
        lambda: os.urandom(8),
        lambda: secrets.token_bytes(8),
        uuid.uuid4,
        lambda: random.SystemRandom().random(),
        lambda: random.Random().random(),
        lambda: (random.seed(), random.random()),
        torch.seed,
    ],
    ids=["os.urandom", "secrets", "uuid4", "SystemRandom", "Random()", "random.seed()", "torch.seed()"],
)
def test_what_asks_the_operating_system_for_entropy_does_not_repeat(draw: Callable[[], Any]) -> None:
    before = kit.everything()
    with deterministic(0):
        first = draw()
    with deterministic(0):
        assert draw() != first
    assert kit.everything() == before


def test_seeds_from_two_to_the_32_on_are_other_seeds_but_for_the_cpu_generator_of_torch() -> None:
    drawn = []
    for seed in (0, 2**32):
        with deterministic(seed):
            drawn.append(dict(zip(kit.STREAMS, kit.draws(), strict=True)))
    assert {name for name in kit.STREAMS if drawn[0][name] == drawn[1][name]} == {"torch", "torch gaussian"}


def test_a_generator_on_the_global_bit_generator_is_seeded_with_it() -> None:
    generator = np.random.Generator(np.random.get_bit_generator())
    with deterministic(0):
        first = generator.random()
    generator.random()
    before = kit.continuation()
    with deterministic(0):
        assert generator.random() == first
    assert kit.continuation() == before


def test_a_generator_on_a_global_bit_generator_of_another_kind_is_put_back_but_not_seeded() -> None:
    np.random.set_bit_generator(np.random.PCG64(7))
    bits = np.random.get_bit_generator()
    generator = np.random.Generator(bits)
    before = bits.state
    with deterministic(0):
        first = generator.random()
    assert bits.state == before
    assert generator.random() == first
    with deterministic(0, also=generator):
        seeded = generator.random()
    with deterministic(0, also=generator):
        assert generator.random() == seeded != first


def test_another_process_starts_afresh() -> None:
    command = [sys.executable, "-c", "import random; print(random.random())"]
    with deterministic(0):
        assert subprocess.check_output(command) != subprocess.check_output(command)


# --- what help() shows


@pytest.mark.parametrize("name", scoped_rng.__all__)
def test_the_documentation_of_a_public_name_begins_with_one_imperative_sentence(name: str) -> None:
    first, *rest = (getattr(scoped_rng, name).__doc__ or "").splitlines() or [""]
    verb = first.partition(" ")[0].rstrip(",.:;")
    assert re.fullmatch(r"[A-Z][^.]*\.", first), "not one sentence"
    assert verb.isalpha()
    assert not re.search(r"(?<!s)s$|ing$", verb), "not in the imperative"
    assert verb not in ("A", "An", "The", "One", "It", "Each", "Every", "All", "When", "If", "What", "How")
    assert not rest or not rest[0], "an empty line follows"
