"""A seeded loader goes on where it was stopped, as if it never had been."""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler

from scoped_rng import StateFormatError, StateMismatchError
from scoped_rng.data import SeededLoader, seeded_loader
from tests import kit
from tests.test_data import IGNORED, Noisy, NoisyBatches, NoisyStream, everything_drawn, noisy_collate, rows

pytestmark = IGNORED
WORKLOAD = Path(__file__).parents[1] / "benchmarks" / "workloads" / "digits_loader.py"


def make(dataset: Any = None, **options: Any) -> SeededLoader:
    recipe = {"seed": 3, "batch_size": 3, "collate_fn": noisy_collate, **options}
    return seeded_loader(Noisy(10) if dataset is None else dataset, **recipe)


def uninterrupted(loader: SeededLoader, count: int = 2) -> list[Any]:
    """Return epoch, place and content of each batch."""
    return [(epoch, place, rows([batch])) for epoch in range(count) for place, batch in enumerate(loader)]


def stopped(loader: SeededLoader, batches: int) -> dict[str, Any]:
    """Hand so many batches over, and return the state then."""
    while batches:
        for _ in loader:
            batches -= 1
            if not batches:
                break
    return loader.state_dict()


def resumed(loader: SeededLoader, state: dict[str, Any], count: int = 2) -> list[Any]:
    """Return what is left of so many epochs, with its place."""
    loader.load_state_dict(state)
    found = []
    for epoch in range(loader.epoch, count):
        first = loader.state_dict()["batch"]
        found += [(epoch, first + place, rows([batch])) for place, batch in enumerate(loader)]
    return found


RECIPES: dict[str, dict[str, Any]] = {
    "in order": {},
    "shuffled": {"shuffle": True},
    "dropping": {"shuffle": True, "drop_last": True},
    "sampler": {"sampler": RandomSampler(range(10))},
    "repeats": {"sampler": [1, 1, 2, 1, 9, 2, 1, 1]},
    "batch sampler": {"batch_sampler": BatchSampler(RandomSampler(range(10)), 3, False), "batch_size": 1},
    "rank": {"sampler": DistributedSampler(range(10), num_replicas=2, rank=1), "batch_size": 2},
    "whole batches": {"dataset": NoisyBatches(10)},
    "no batches": {"shuffle": True, "batch_size": None, "collate_fn": None},
    "iterable": {"dataset": NoisyStream(10)},
}


def recipe(name: str) -> dict[str, Any]:
    options = RECIPES[name]
    if options.get("batch_size", 3) is None:  # the samples themselves, each of them a batch for rows()
        return {**options, "collate_fn": lambda sample: sample.unsqueeze(0)}
    return options


@pytest.mark.parametrize("name", RECIPES)
def test_stopping_at_every_batch_and_going_on_changes_nothing(name: str) -> None:
    expected = uninterrupted(make(**recipe(name)))
    for batches in range(len(expected) + 1):
        state = stopped(make(**recipe(name)), batches)
        assert resumed(make(**recipe(name)), state) == expected[batches:]


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 0), (0, 2), (1, 4)])
def test_the_number_of_workers_may_change(before: int, after: int) -> None:
    expected = uninterrupted(make(shuffle=True))
    for batches in (1, 6):
        state = stopped(make(shuffle=True, num_workers=before), batches)
        assert resumed(make(shuffle=True, num_workers=after), state) == expected[batches:]


@pytest.mark.parametrize("persistent", [False, True])
def test_an_iterable_dataset_is_read_again_by_as_many_workers(persistent: bool) -> None:
    def loader() -> SeededLoader:
        return make(NoisyStream(10), batch_size=2, num_workers=2, persistent_workers=persistent)

    expected = uninterrupted(loader())
    for batches in (0, 1, 4, 5, 6):
        assert resumed(loader(), stopped(loader(), batches)) == expected[batches:]


def test_a_loader_goes_back_to_where_it_was_itself() -> None:
    expected = uninterrupted(make(shuffle=True, num_workers=1, persistent_workers=True))
    loader = make(shuffle=True, num_workers=1, persistent_workers=True)
    state = stopped(loader, 6)
    assert resumed(loader, state) == expected[6:]
    assert resumed(loader, state) == expected[6:]


@given(
    length=st.integers(1, 12),
    batch_size=st.integers(1, 5),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    data=st.data(),
)
def test_any_recipe_can_be_stopped_anywhere(
    length: int, batch_size: int, drop_last: bool, shuffle: bool, data: st.DataObject
) -> None:
    def loader() -> SeededLoader:
        return seeded_loader(Noisy(length), seed=0, batch_size=batch_size, drop_last=drop_last, shuffle=shuffle)

    expected = uninterrupted(loader())
    batches = data.draw(st.integers(0, len(expected)))
    assert resumed(loader(), stopped(loader(), batches)) == expected[batches:]


def test_what_the_workers_have_ahead_does_not_count() -> None:
    loader = make(num_workers=2, prefetch_factor=2)
    batches = iter(loader)
    assert loader.state_dict()["batch"] == 0
    next(batches)
    assert loader.state_dict()["batch"] == 1


def test_going_on_loads_no_sample_again() -> None:
    class Noting(Noisy):
        def __getitem__(self, index: int) -> torch.Tensor:
            loaded.append(index)
            return super().__getitem__(index)

    loaded: list[int] = []
    for options in ({}, {"sampler": range(10)}, {"batch_sampler": BatchSampler(range(10), 3, False), "batch_size": 1}):
        state = stopped(make(Noting(), **options), 2)
        loaded.clear()
        resumed(make(Noting(), **options), state, count=1)
        assert loaded == [6, 7, 8, 9]


def test_a_state_is_plain_data_for_any_checkpoint(tmp_path: Path) -> None:
    loader = make(shuffle=True, seed=2**64 - 1)
    expected = uninterrupted(make(shuffle=True, seed=2**64 - 1))
    state = stopped(loader, 2)
    torch.save({"loader": state}, tmp_path / "checkpoint.pt")
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["loader"] == state
    assert json.loads(json.dumps(state)) == state
    assert resumed(make(shuffle=True, seed=2**64 - 1), json.loads(json.dumps(state))) == expected[2:]
    assert state == {
        "format": "scoped_rng.SeededLoader",
        "version": 1,
        "epoch": 0,
        "batch": 2,
        "seed": 2**64 - 1,
        "dataset_length": 10,
        "order": "shuffled",
        "batch_size": 3,
        "drop_last": False,
        "num_replicas": 1,
    }


def test_saving_and_loading_moves_no_stream() -> None:
    loader = make(shuffle=True)
    before = kit.everything()
    loader.load_state_dict(loader.state_dict())
    assert kit.everything() == before


# Where a position is


def position(loader: SeededLoader) -> tuple[int, int]:
    state = loader.state_dict()
    assert loader.epoch == state["epoch"]
    return state["epoch"], state["batch"]


def test_the_position_follows_the_batches_that_were_handed_over() -> None:
    loader = make()
    found = [position(loader)]
    for _ in range(2):
        for _ in loader:
            found.append(position(loader))
        found.append(position(loader))
    assert found == [(0, 0), *((0, n) for n in (1, 2, 3, 4)), (1, 0), *((1, n) for n in (1, 2, 3, 4)), (2, 0)]


def test_after_the_last_batch_nothing_is_left_but_the_end_of_the_epoch() -> None:
    loader = make()
    loader.load_state_dict(stopped(make(), 4))
    assert position(loader) == (0, 4)
    assert list(loader) == []
    assert position(loader) == (1, 0)
    assert len(list(loader)) == 4


def test_leaving_an_epoch_early_begins_the_next_one() -> None:
    expected = uninterrupted(make(shuffle=True))
    loader = make(shuffle=True)
    stopped(loader, 1)
    assert [rows([batch]) for batch in loader] == [content for epoch, _, content in expected if epoch == 1]


def test_setting_the_epoch_begins_it() -> None:
    loader = make()
    stopped(loader, 2)
    loader.set_epoch(5)
    assert position(loader) == (5, 0)
    next(iter(loader))
    assert position(loader) == (5, 1)
    loader.set_epoch(5)  # again
    assert position(loader) == (5, 0)


def test_setting_the_epoch_that_was_loaded_stays_where_it_was_stopped() -> None:
    loader = make()
    loader.load_state_dict(stopped(make(), 6))
    loader.set_epoch(1)
    assert position(loader) == (1, 2)
    assert len(list(loader)) == 2
    loader.load_state_dict(stopped(make(), 6))
    loader.set_epoch(0)
    assert position(loader) == (0, 0)


def test_a_look_at_one_batch_takes_an_epoch_unless_the_loop_sets_its_own() -> None:
    expected = uninterrupted(make(shuffle=True))
    loader = make(shuffle=True)
    next(iter(loader))
    found = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        found += [(epoch, place, rows([batch])) for place, batch in enumerate(loader)]
    assert found == expected


def test_an_iteration_that_has_ended_has_ended_once() -> None:
    loader = make()
    batches = iter(loader)
    assert len(list(batches)) == 4
    assert list(batches) == []
    assert position(loader) == (1, 0)


def test_an_iteration_from_before_does_not_move_the_position_that_was_set() -> None:
    loader = make()
    batches = iter(loader)
    next(batches)
    loader.set_epoch(3)
    assert len(list(batches)) == 3
    assert position(loader) == (3, 0)


def test_of_two_iterations_the_last_begun_has_the_position() -> None:
    loader = make()
    first, second = iter(loader), iter(loader)
    next(first)
    next(second)
    next(first)
    assert position(loader) == (1, 1)
    list(first)
    assert position(loader) == (1, 1)


def test_the_length_is_that_of_a_whole_epoch() -> None:
    loader = make()
    loader.load_state_dict(stopped(make(), 3))
    assert len(loader) == len(iter(loader)) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_raised_has_passed_once_the_next_one_is_there(workers: int) -> None:
    loader = make(FailingAtFour(), num_workers=workers)
    batches = iter(loader)
    next(batches)
    with pytest.raises(ValueError, match="the fourth"):
        next(batches)
    assert position(loader) == (0, 1)  # to be tried again
    next(batches)
    assert position(loader) == (0, 3)
    assert [index for batch in batches for index in batch[:, 0].tolist()] == [9]


class FailingAtFour(Noisy):
    """Has one sample that cannot be loaded."""

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 4:
            raise ValueError("the fourth")
        return super().__getitem__(index)


@pytest.mark.parametrize("epoch", [True, 0.0, "1", None])
def test_an_epoch_is_an_int(epoch: Any) -> None:
    loader = make()
    message = f"an epoch must be an int, got {type(epoch).__name__} {epoch!r}; count them from 0"
    with pytest.raises(TypeError, match=re.escape(message)):
        loader.set_epoch(epoch)
    with pytest.raises(ValueError, match=re.escape("an epoch must be in [0, 2**63), got -1; count them from 0")):
        loader.set_epoch(-1)
    with pytest.raises(ValueError, match=re.escape("an epoch must be in [0, 2**63), got 9223372036854775808")):
        loader.set_epoch(2**63)
    assert position(loader) == (0, 0)


# States that do not fit


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"dataset": Noisy(11)}, "dataset_length=10, this one has dataset_length=11"),
        ({"seed": 4}, "seed=3, this one has seed=4"),
        ({"batch_size": 2}, "batch_size=3, this one has batch_size=2"),
        ({"batch_size": None, "collate_fn": None}, "batch_size=3, this one has batch_size=None"),
        ({"drop_last": True}, "drop_last=False, this one has drop_last=True"),
        ({"shuffle": True}, "shuffle=False, this one has shuffle=True"),
        ({"sampler": range(10)}, "shuffle=False, this one has sampler="),
        ({"batch_sampler": [[0]], "batch_size": 1}, "shuffle=False, this one has batch_sampler="),
        ({"dataset": NoisyStream()}, "shuffle=False, this one has an IterableDataset"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_state_of_another_recipe_is_refused(other: dict[str, Any], message: str) -> None:
    state = stopped(make(), 2)
    loader = make(**other)
    next(iter(loader))
    whole = f"the state is of a loader with {message}; make the loader as it was, or begin an epoch with set_epoch()"
    with pytest.raises(StateMismatchError, match=re.escape(whole)):
        loader.load_state_dict(state)
    assert position(loader) == (0, 1)


def test_a_state_of_another_number_of_ranks_is_refused() -> None:
    def rank(of: int) -> SeededLoader:
        return make(sampler=DistributedSampler(range(10), num_replicas=of, rank=0))

    with pytest.raises(StateMismatchError, match="num_replicas=2, this one has num_replicas=4"):
        rank(4).load_state_dict(stopped(rank(2), 1))


@pytest.mark.parametrize(
    ("size", "drop_last", "message"),
    [
        (4, False, "batch_size=2, this one has batch_size=4"),
        (2, True, "drop_last=False, this one has drop_last=True"),
    ],
)
def test_a_state_of_another_batch_sampler_is_refused(size: int, drop_last: bool, message: str) -> None:
    def loader(*sizes: Any) -> SeededLoader:
        return make(batch_sampler=BatchSampler(range(10), *sizes), batch_size=1)

    with pytest.raises(StateMismatchError, match=message):
        loader(size, drop_last).load_state_dict(stopped(loader(2, False), 2))


def test_numbers_of_numpy_in_a_sampler_go_into_a_state_as_ints(tmp_path: Path) -> None:
    class Batches(BatchSampler):
        batch_size: Any = np.int64(2)
        drop_last: Any = np.False_

        def __init__(self, sampler: Any) -> None:
            self.sampler = sampler

    sampler = DistributedSampler(range(10), num_replicas=np.int64(2), rank=0)
    for options in ({"sampler": sampler}, {"batch_sampler": Batches(sampler), "batch_size": 1}):
        state = make(**options).state_dict()
        torch.save(state, tmp_path / "state.pt")
        make(**options).load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert state["num_replicas"] == 2


def test_a_state_of_an_iterable_dataset_needs_as_many_workers() -> None:
    with pytest.raises(StateMismatchError, match="num_workers=0, this one has num_workers=1"):
        make(NoisyStream(), num_workers=1).load_state_dict(stopped(make(NoisyStream()), 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: None, "not the state_dict() of a SeededLoader: 'format' is not 'scoped_rng.SeededLoader'"),
        (lambda state: [state], "not the state_dict() of a SeededLoader"),
        (lambda state: {**state, "format": torch.zeros(2)}, "not the state_dict() of a SeededLoader"),
        (lambda state: {**state, "format": "scoped_rng.RngState"}, "not the state_dict() of a SeededLoader"),
        (lambda state: {**state, "version": 2}, "of version 2, this is for version 1; update scoped_rng"),
        (lambda state: {**state, "version": True}, "of version True, this is for version 1; update scoped_rng"),
        (lambda state: without(state, "version"), "of version None, this is for version 1"),
        (lambda state: without(state, "seed"), "the state lacks 'seed'; it is damaged, take another checkpoint"),
        (lambda state: {**state, "seed": torch.tensor([0, 1])}, "'seed' of the state cannot be tensor([0, 1]); it is"),
        (lambda state: {**state, "order": ["shuffled"]}, "'order' of the state cannot be ['shuffled']"),
        (lambda state: {**state, "epoch": 2**63}, "'epoch' of the state cannot be 9223372036854775808"),
        (lambda state: without(state, "epoch"), "'epoch' of the state cannot be None; it is damaged"),
        (lambda state: without(state, "batch"), "'batch' of the state cannot be None; it is damaged"),
        (lambda state: {**state, "epoch": -1}, "'epoch' of the state cannot be -1"),
        (lambda state: {**state, "epoch": True}, "'epoch' of the state cannot be True"),
        (lambda state: {**state, "batch": 1.0}, "'batch' of the state cannot be 1.0"),
        (lambda state: {**state, "batch": 5}, "'batch' of the state cannot be 5"),
    ],
)
def test_a_damaged_state_is_refused(damage: Any, message: str) -> None:
    loader = make()
    next(iter(loader))
    with pytest.raises(StateFormatError, match=re.escape(message)):
        loader.load_state_dict(damage(stopped(make(), 2)))
    assert position(loader) == (0, 1)


def without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ({"sampler": range(9)}, {"sampler": range(3)}),
        ({"batch_sampler": [[0], [1], [2]], "batch_size": 1}, {"batch_sampler": [[0]], "batch_size": 1}),
        ({"dataset": NoisyStream(9)}, {"dataset": NoisyStream(3)}),
    ],
    ids=["sampler", "batch sampler", "iterable"],
)
def test_an_epoch_that_ends_before_the_position_is_an_error(long: dict[str, Any], short: dict[str, Any]) -> None:
    loader = make(**short)
    loader.load_state_dict(stopped(make(**long), 2))
    message = "the epoch has ended after 1 batches, and the state was taken after 2; the dataset or sampler is another"
    with pytest.raises(StateMismatchError, match=re.escape(message)):
        list(loader)


# A whole training


@pytest.fixture(scope="module")
def digits() -> Iterator[Any]:
    """Import the workload in a way that workers can repeat, which are told of the path."""
    sys.path.insert(0, str(WORKLOAD.parent))
    try:
        yield importlib.import_module("digits_loader")
    finally:
        sys.path.remove(str(WORKLOAD.parent))
        sys.modules.pop("digits_loader", None)


@pytest.fixture(scope="module")
def trained(digits: Any) -> tuple[list[float], str]:
    return result(digits, workers=0)


def result(digits: Any, **options: Any) -> tuple[list[float], str]:
    training = digits.Training(count=128, batch_size=32, **options)
    training.run(epochs=2)
    return training.losses, training.digest()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_training_on_augmented_digits_does_not_depend_on_the_workers(digits: Any, trained: Any, workers: int) -> None:
    assert result(digits, workers=workers) == trained


def test_training_with_plain_torch_depends_on_the_workers(digits: Any) -> None:
    assert result(digits, workers=1, plain=True) == result(digits, workers=1, plain=True)
    assert result(digits, workers=1, plain=True) != result(digits, workers=2, plain=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_can_be_stopped_at_every_batch(digits: Any, trained: Any, workers: int, tmp_path: Path) -> None:
    for batches in range(1, 9) if workers == 0 else (2, 4):
        first = digits.Training(count=128, batch_size=32, workers=workers)
        first.run(epochs=2, stop_at=batches)
        torch.save(copy.deepcopy(first.state_dict()), tmp_path / "digits.pt")
        second = digits.Training(count=128, batch_size=32, workers=2 - workers)
        second.load_state_dict(torch.load(tmp_path / "digits.pt", weights_only=True))
        second.run(epochs=2)
        assert (second.losses, second.digest()) == trained, batches


def test_training_goes_on_in_another_process(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums depend on it

    def train(*options: str) -> list[str]:
        command = [sys.executable, str(WORKLOAD), "--epochs", "1", *options]
        return subprocess.check_output(command, cwd=tmp_path, env=environment, text=True).splitlines()

    train("--workers", "2", "--stop-at", "3")
    assert train("--workers", "1", "--resume") == train("--workers", "0")


def test_ambient_draws_between_the_batches_do_not_matter() -> None:
    loader = make(shuffle=True)
    list(islice(loader, 2))
    everything_drawn()
    assert resumed(make(shuffle=True), loader.state_dict()) == uninterrupted(make(shuffle=True))[2:]
