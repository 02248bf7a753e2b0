"""A seeded loader is a DataLoader that moves no stream and refuses what cannot be right; and seed_worker."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import random
import re
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    default_collate,
    get_worker_info,
)

from scoped_rng import capture, deterministic, fold_in, isolated
from scoped_rng.data import SeededLoader, seed_worker, seeded_loader
from tests import kit
from tests.fake_device import FakeLazyBackend, seeded_draws
from tests.test_data import IGNORED, Noisy, NoisyStream, epochs, everything_drawn, give_back, noisy_collate, rows

pytestmark = IGNORED


# Nothing outside moves


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2},
        {"shuffle": True, "num_workers": 1, "persistent_workers": True},
        {"num_workers": 1, "multiprocessing_context": "forkserver"},
        {"sampler": RandomSampler(range(10)), "num_workers": 1},
        {"batch_sampler": BatchSampler(RandomSampler(range(10)), 3, False)},
        {"batch_size": None, "shuffle": True},
        {"batch_size": 3, "collate_fn": noisy_collate},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
@pytest.mark.parametrize("end", ["exhausted", "dropped"])
def test_making_and_iterating_a_loader_moves_no_stream(options: dict[str, Any], end: str) -> None:
    random.gauss(0, 1), np.random.standard_normal(), torch.randn(1)  # cached gaussians
    before = kit.everything()
    loader = seeded_loader(Noisy(), seed=0, **options)
    batches = iter(loader)
    next(batches)
    assert kit.everything() == before
    if end == "exhausted":
        list(batches)
    del batches, loader
    assert kit.everything() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["sample", "batch", "collate", "sampler", "stream"])
def test_an_error_anywhere_leaves_the_streams_as_they_were(error: type[BaseException], where: str) -> None:
    def fail(*_: Any) -> Any:
        everything_drawn()
        raise error("in here")

    class Failing(Noisy):
        __getitem__ = fail

    class FailingBatches(Noisy):
        __getitems__ = fail

    class FailingStream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield fail()

    def failing() -> Any:
        yield fail()

    loader = {
        "sample": lambda: seeded_loader(Failing(), seed=0),
        "batch": lambda: seeded_loader(FailingBatches(), seed=0),
        "collate": lambda: seeded_loader(Noisy(), seed=0, collate_fn=fail),
        "sampler": lambda: seeded_loader(Noisy(), seed=0, sampler=failing()),
        "stream": lambda: seeded_loader(FailingStream(), seed=0),
    }[where]()
    before = kit.everything()
    with pytest.raises(error, match="in here"):
        next(iter(loader))
    assert kit.everything() == before
    assert loader.state_dict()["batch"] == 0


def test_a_sample_may_open_scopes_itself() -> None:
    class Nested(Noisy):
        def __getitem__(self, index: int) -> torch.Tensor:
            with deterministic(0):
                inside = random.random()
            return torch.tensor([index, inside, random.random()], dtype=torch.float64)

    found = rows(seeded_loader(Nested(), seed=0))
    assert len({row[1] for row in found}) == 1
    assert len({row[2] for row in found}) == 10


def draws_of(seed: int) -> list[float]:
    return [drawn for _ in range(2) for drawn in seeded_draws(seed)]


def test_a_backend_that_one_sample_initialises_is_seeded_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(Noisy):
        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.tensor(backend.draws(), dtype=torch.float64)

    backend = FakeLazyBackend("cuda", monkeypatch)
    together = rows(seeded_loader(Lazy(4), seed=0, batch_size=4))
    assert backend.module.is_initialized()
    assert together == rows(seeded_loader(Lazy(4), seed=0, batch_size=1))
    assert together == [draws_of(fold_in(0, "sample", 0, index, 0)) for index in range(4)]


def test_a_loader_works_in_another_thread() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(rows(seeded_loader(Noisy(), seed=0))))
    thread.start()
    thread.join()
    assert found == rows(seeded_loader(Noisy(), seed=0))


# It is a DataLoader


def test_the_loader_shows_what_it_was_made_of() -> None:
    dataset, sampler = Noisy(), RandomSampler(range(10))
    loader = seeded_loader(dataset, seed=4, sampler=sampler, batch_size=5, drop_last=True)
    assert type(loader) is SeededLoader
    assert isinstance(loader, DataLoader)
    assert (loader.dataset, loader.sampler, loader.collate_fn) == (dataset, sampler, default_collate)
    assert (loader.seed, loader.batch_size, loader.drop_last, loader.num_workers) == (4, 5, True, 0)


def shift_dataset(worker_id: int) -> None:
    """Do in a worker what people do in a worker_init_fn."""
    dataset: Any = get_worker_info().dataset
    assert len(dataset) == dataset.length
    assert dataset[0][0] == 0
    assert isinstance(dataset, Measured)
    dataset.scratch = 1
    del dataset.scratch
    assert not hasattr(dataset, "scratch")
    dataset.length += 100 * (worker_id + 1)


class Measured(Noisy):
    """Gives the length that its worker has been told."""

    def __getitem__(self, index: Any) -> torch.Tensor:
        return torch.tensor([0 if index == 0 and self.length == 10 else self.length])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_init_fn_reads_and_sets_attributes_of_the_dataset(method: str) -> None:
    options = {"worker_init_fn": shift_dataset, "num_workers": 1, "multiprocessing_context": method}
    loader = seeded_loader(Measured(), seed=0, batch_size=10, **options)
    assert next(iter(loader)).unique().tolist() == [110]
    assert loader.dataset.length == 10


def skip_two(worker_id: int) -> None:
    get_worker_info().dataset.first = 2


def test_a_worker_init_fn_splits_an_iterable_dataset() -> None:
    loader = seeded_loader(NoisyStream(), seed=0, num_workers=1, worker_init_fn=skip_two)
    assert [row[0] for row in rows(loader)] == [2, 3, 4, 5, 6, 7]


def test_options_that_were_changed_count_from_the_next_iteration_on() -> None:
    loader = seeded_loader(Noisy(), seed=0)
    expected = rows(loader)
    loader.num_workers, loader.collate_fn = 2, give_back
    loader.set_epoch(0)
    assert rows(loader) == expected


def test_a_copy_of_a_loader_goes_its_own_way() -> None:
    loader = seeded_loader(Noisy(), seed=0, shuffle=True)
    list(loader)
    twin = pickle.loads(pickle.dumps(loader))
    assert twin.epoch == 1
    assert epochs(twin) == epochs(loader)


def test_persistent_workers_end_with_the_loader() -> None:
    loader = seeded_loader(Noisy(), seed=0, num_workers=1, persistent_workers=True)
    gc.collect()
    gc.disable()
    try:
        list(loader)
        (worker,) = multiprocessing.active_children()
        del loader
        assert not worker.is_alive()
    finally:
        gc.enable()


def test_two_iterations_at_once_are_two_epochs() -> None:
    expected = epochs(seeded_loader(Noisy(), seed=0, shuffle=True))
    loader = seeded_loader(Noisy(), seed=0, shuffle=True)
    pairs = list(zip(loader, loader, strict=True))
    assert [rows(side) for side in zip(*pairs, strict=True)] == expected


def test_persistent_workers_serve_one_iteration_at_a_time() -> None:
    loader = seeded_loader(Noisy(), seed=0, num_workers=1, persistent_workers=True)
    expected = epochs(seeded_loader(Noisy(), seed=0))
    first = iter(loader)
    next(first)
    assert rows(iter(loader)) == expected[1]
    message = "a newer iteration of this loader has taken its workers over; finish one before the next"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        next(first)


# Bad input


class NoLength(Dataset[Any]):
    """Has samples, and does not say how many."""

    def __getitem__(self, index: Any) -> Any:
        return index


class Unknown(NoLength):
    def __len__(self) -> int:
        raise NotImplementedError("ask later")


@pytest.mark.parametrize("dataset", [NoLength(), Unknown()])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_dataset_without_a_length_is_refused_where_one_is_needed(dataset: Any, shuffle: bool) -> None:
    message = f"{type(dataset).__name__} has no length (.*), which the order of its samples needs; give it a __len__"
    with pytest.raises(TypeError, match=message.replace("(.*)", r"\(.*\)")):
        seeded_loader(dataset, seed=0, shuffle=shuffle)
    assert list(seeded_loader(dataset, seed=0, batch_size=None, sampler=[2, 1])) == [2, 1]


@pytest.mark.parametrize("index", [10, -11])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_index_out_of_range_is_named(index: int, workers: int) -> None:
    loader = seeded_loader(Noisy(), seed=0, sampler=[0, index], num_workers=workers)
    message = f"the sampler gave the index {index}, and the dataset has 10 samples; make the sampler for this dataset"
    with pytest.raises(IndexError, match=re.escape(message)):
        list(loader)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": None}, TypeError, "a seed must be an int in [0, 2**64), got NoneType None"),
        ({"seed": "a"}, TypeError, "derive one from the name: fold_in(0, 'a')"),
        ({"seed": -1}, ValueError, "a seed must be in [0, 2**64), got -1"),
        ({"generator": torch.Generator()}, TypeError, "takes no generator=: the seed decides the order; leave it out"),
        ({"in_order": False, "num_workers": 1}, ValueError, "in the order in which workers happen to finish"),
        ({"shuffle": True, "sampler": [0]}, ValueError, "sampler option is mutually exclusive with shuffle"),
        ({"batch_size": 0}, ValueError, "batch_size should be a positive integer value, but got batch_size=0"),
        ({"speed": 1}, TypeError, "unexpected keyword argument 'speed'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    before = kit.everything()
    with pytest.raises(error, match=re.escape(message)):
        seeded_loader(Noisy(), **{"seed": 0, **options})
    assert kit.everything() == before


def test_a_generator_of_none_is_no_generator() -> None:
    assert len(list(seeded_loader(Noisy(), seed=0, generator=None, in_order=True))) == 10


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mapping_datapipe_is_a_dataset(workers: int) -> None:
    from torch.utils.data.datapipes.map import SequenceWrapper

    loader = seeded_loader(SequenceWrapper(range(5)), seed=0, batch_size=2, num_workers=workers)
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4]]


def test_a_datapipe_is_refused() -> None:
    from torch.utils.data.datapipes.iter import IterableWrapper

    with pytest.raises(TypeError, match="takes no IterDataPipe, which torch seeds and shards by itself"):
        seeded_loader(IterableWrapper(range(3)), seed=0)


# A loader of your own


def worker_draws(loader: Any) -> list[tuple[float, ...]]:
    return [tuple(batch) for batch in loader]


class Ambient(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return everything_drawn()


def own_loader(**options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    recipe = {"num_workers": 2, "batch_size": None, "collate_fn": give_back, "generator": generator, **options}
    return DataLoader(Ambient(), worker_init_fn=seed_worker, **recipe)


def test_seed_worker_gives_each_worker_and_epoch_a_stream_of_its_own_and_repeats() -> None:
    loader, same = own_loader(), own_loader()
    first, second = worker_draws(loader), worker_draws(loader)
    assert len({draw for sample in first + second for draw in sample}) == 8 * 7
    assert worker_draws(same) == first


def test_seed_worker_seeds_as_a_scope_does() -> None:
    loader = own_loader(num_workers=1)
    base = torch.empty((), dtype=torch.int64).random_(generator=torch.Generator().manual_seed(0)).item()
    (first, *_) = worker_draws(loader)
    with isolated(fold_in(int(base), "worker", 0)):
        expected = kit.draws()
    assert first[:6] == expected


def test_seed_worker_outside_of_a_worker_says_where_it_belongs() -> None:
    before = capture()
    with pytest.raises(RuntimeError, match=re.escape("give it to DataLoader(worker_init_fn=seed_worker)")):
        seed_worker(0)
    assert capture() == before


def test_plain_torch_gives_other_samples_with_other_workers() -> None:
    def drawn(workers: int) -> list[tuple[float, ...]]:
        torch.manual_seed(0)
        batches = DataLoader(Ambient(), batch_size=None, collate_fn=give_back, num_workers=workers)
        return [tuple(batch[:6]) for batch in batches]

    assert drawn(1) == drawn(1) != drawn(2)  # what a seeded loader is for
