"""What a seeded loader gives does not depend on who loads it, and takes nothing from the streams outside."""

from __future__ import annotations

import random
import re
import tracemalloc
from collections.abc import Iterator
from itertools import islice, repeat
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from scoped_rng import deterministic, fold_in, isolated
from scoped_rng.data import seeded_loader
from scoped_rng.data.samples import Indices
from tests import kit

IGNORED = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # of more workers than processors
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
]
pytestmark = IGNORED


def everything_drawn() -> list[float]:
    """Draw once from each global stream, and from NumPy's fresh entropy."""
    return [*kit.draws(), float(np.random.default_rng().random())]


class Noisy(Dataset[Any]):
    """Each sample is its index and a draw from every stream."""

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> torch.Tensor:
        return torch.tensor([int(index), *everything_drawn()], dtype=torch.float64)


class NoisyBatches(Noisy):
    """Loads whole batches."""

    def __getitems__(self, indices: Any) -> list[torch.Tensor]:
        shared = random.random()
        return [self[index] + shared for index in indices]


class NoisyStream(IterableDataset[Any]):
    """Each worker reads its part."""

    def __init__(self, length: int = 8, first: int = 0) -> None:
        self.length = length
        self.first = first

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        start, step = (0, 1) if info is None else (info.id, info.num_workers)
        for index in range(self.first + start, self.length, step):
            yield torch.tensor([index, *everything_drawn()], dtype=torch.float64)


def noisy_collate(samples: Any) -> torch.Tensor:
    """Append a draw from every stream to each sample."""
    drawn = torch.tensor(everything_drawn(), dtype=torch.float64)
    return torch.stack([torch.cat([sample, drawn]) for sample in samples])


def give_back(samples: Any) -> Any:
    return samples


def rows(batches: Any) -> list[list[float]]:
    """Return the samples of all batches, exactly."""
    return [sample.tolist() for batch in batches for sample in batch]


def by_index(batches: Any) -> dict[int, list[float]]:
    return {int(row[0]): row for row in rows(batches)}


def epochs(loader: Any, count: int = 2) -> list[list[list[float]]]:
    return [rows(loader) for _ in range(count)]


# The same for everyone


@pytest.fixture(scope="module")
def reference() -> list[list[list[float]]]:
    """Two epochs of what the loaders below give, loaded in this process."""
    return epochs(seeded_loader(Noisy(), seed=3, batch_size=3, shuffle=True, collate_fn=noisy_collate))


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 0},
        {"num_workers": 1},
        {"num_workers": 2},
        {"num_workers": 4},
        {"num_workers": 2, "prefetch_factor": 5},
        {"num_workers": 2, "persistent_workers": True},
        {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True},
        {"num_workers": 1, "multiprocessing_context": "forkserver", "persistent_workers": True},
        {"num_workers": 1, "timeout": 60},
    ],
    ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items()),
)
def test_every_way_of_loading_gives_the_same_batches(options: dict[str, Any], reference: Any) -> None:
    loader = seeded_loader(Noisy(), seed=3, batch_size=3, shuffle=True, collate_fn=noisy_collate, **options)
    assert epochs(loader) == reference


def test_workers_that_are_forked_inside_a_scope_give_the_same(reference: Any) -> None:
    loader = seeded_loader(Noisy(), seed=3, batch_size=3, shuffle=True, collate_fn=noisy_collate, num_workers=2)
    with deterministic(1):
        assert epochs(loader) == reference


def test_whatever_is_drawn_in_between_does_not_matter(reference: Any) -> None:
    loader = seeded_loader(Noisy(), seed=3, batch_size=3, shuffle=True, collate_fn=noisy_collate)
    found = []
    for _ in range(2):
        found.append([])
        for batch in loader:
            everything_drawn()
            found[-1] += rows([batch])
    assert found == reference


@pytest.mark.parametrize("batch_size", [1, 4, 10, None])
def test_a_sample_does_not_depend_on_the_batch_size(batch_size: int | None) -> None:
    def samples(size: int | None) -> list[list[float]]:
        loader = seeded_loader(Noisy(), seed=0, batch_size=size, shuffle=True)
        return rows([loader] if size is None else loader)

    assert samples(batch_size) == samples(3)


def test_a_sample_does_not_depend_on_the_order() -> None:
    shuffled = seeded_loader(Noisy(), seed=0, batch_size=3, shuffle=True)
    backwards = seeded_loader(Noisy(), seed=0, batch_size=3, sampler=range(9, -1, -1))
    expected = by_index(seeded_loader(Noisy(), seed=0, batch_size=3))
    assert by_index(shuffled) == by_index(backwards) == expected


def test_every_sample_epoch_and_seed_draws_its_own() -> None:
    drawn = [row[1:] for seed in (0, 1) for epoch in epochs(seeded_loader(Noisy(), seed=seed)) for row in epoch]
    assert len({number for row in drawn for number in row}) == len(drawn) * len(drawn[0])


def test_a_sample_is_seeded_as_documented() -> None:
    loader = seeded_loader(Noisy(), seed=5, batch_size=4)
    loader.set_epoch(2)
    with isolated(fold_in(5, "sample", 2, 7, 0)):
        expected = Noisy()[7].tolist()
    assert by_index(loader)[7] == expected


def test_what_a_sample_leaves_behind_does_not_reach_the_next() -> None:
    class Untidy(Noisy):
        def __getitem__(self, index: int) -> torch.Tensor:
            sample = super().__getitem__(index)
            np.random.set_bit_generator(np.random.PCG64(index))
            random.seed(index)
            return sample

    before = kit.everything()
    assert rows(seeded_loader(Untidy(), seed=0, batch_size=5)) == rows(seeded_loader(Noisy(), seed=0))
    assert kit.everything() == before


def test_the_collate_function_draws_by_the_batch_whatever_is_in_it() -> None:
    def collate(samples: Any) -> list[float]:
        return everything_drawn()

    with isolated(fold_in(5, "collate", 1, 2)):
        expected = everything_drawn()
    for dataset in (Noisy(), NoisyBatches(), range(20)):
        loader = seeded_loader(dataset, seed=5, batch_size=3, collate_fn=collate)
        loader.set_epoch(1)
        assert list(loader)[2] == expected


def test_shuffling_gives_every_sample_once_and_another_order_in_each_epoch() -> None:
    loader = seeded_loader(range(20), seed=0, batch_size=None, shuffle=True)
    first, second = list(loader), list(loader)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("order", [{}, {"shuffle": True}, {"sampler": range(10)}], ids=["plain", "shuffled", "sampler"])
def test_the_batches_have_the_sizes_that_torch_gives_them(drop_last: bool, order: dict[str, Any]) -> None:
    def sizes(loader: Any) -> list[int]:
        assert len(loader) == len(iter(loader))
        return [len(batch) for batch in loader]

    options = {"batch_size": 4, "drop_last": drop_last, **order}
    assert sizes(seeded_loader(range(10), seed=0, **options)) == sizes(DataLoader(range(10), **options))


@given(length=st.integers(1, 30), batch_size=st.integers(1, 8), drop_last=st.booleans(), shuffle=st.booleans())
def test_any_recipe_gives_the_samples_that_torch_gives(
    length: int, batch_size: int, drop_last: bool, shuffle: bool
) -> None:
    options = {"batch_size": batch_size, "drop_last": drop_last, "shuffle": shuffle}
    loader = seeded_loader(range(length), seed=0, **options)
    batches, plain = [batch.tolist() for batch in loader], list(DataLoader(range(length), **options))
    assert [len(batch) for batch in batches] == [len(batch) for batch in plain]
    assert len(batches) == len(loader)
    given = [index for batch in batches for index in batch]
    assert len(set(given)) == len(given)
    assert shuffle or given == [index for batch in plain for index in batch.tolist()]


def test_an_empty_dataset_gives_no_batches() -> None:
    assert list(seeded_loader([], seed=0)) == []


def test_no_batching_runs_the_collate_function_for_each_sample() -> None:
    loader = seeded_loader(Noisy(3), seed=0, batch_size=None, collate_fn=lambda sample: sample.tolist())
    assert [row[0] for row in loader] == [0, 1, 2]


def test_a_million_samples_are_never_python_objects_at_once() -> None:
    indices = Indices(range(1_000_000), 0, "shuffled", None, 1000, False)
    tracemalloc.start()
    try:
        count = sum(len(batch.indices) for batch in indices)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 1_000_000
    assert peak < 500_000  # the order itself is a tensor of 8 bytes a sample


def test_a_million_samples_of_a_sampler_take_four_bytes_each() -> None:
    indices = Indices(range(1_000_000), 0, "sampler", range(1_000_000), 5000, False)
    batches = iter(indices)
    tracemalloc.start()
    try:
        for _ in range(20):
            next(batches)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 4_000_000 < peak < 6_000_000


# What identifies a sample


def test_a_sample_that_comes_again_draws_anew() -> None:
    found = rows(seeded_loader(Noisy(), seed=0, batch_size=2, sampler=[4, 4, 1, 4]))
    once = by_index(seeded_loader(Noisy(), seed=0))
    assert (found[0], found[2]) == (once[4], once[1])
    assert len({tuple(row) for row in found}) == 4


def test_how_often_a_sample_came_does_not_depend_on_the_batches() -> None:
    sampler = [4, 4, 1, 4, 1, 2]
    found = [rows(seeded_loader(Noisy(), seed=0, batch_size=size, sampler=sampler)) for size in (1, 2, 4, 6)]
    assert found[0] == found[1] == found[2] == found[3]


def test_minus_one_is_the_last_sample() -> None:
    class Wrapping(Noisy):
        def __getitem__(self, index: int) -> torch.Tensor:
            return super().__getitem__(index % len(self))

    found = rows(seeded_loader(Wrapping(), seed=0, sampler=[-1, 9, -10]))
    expected = rows(seeded_loader(Noisy(), seed=0, sampler=[9, 9, 0]))
    assert found == expected


@pytest.mark.parametrize("convert", [np.int64, torch.tensor, lambda index: torch.tensor([index])])
def test_an_integer_of_any_library_is_the_same_index(convert: Any) -> None:
    found = rows(seeded_loader(Noisy(), seed=0, sampler=[convert(index) for index in (3, 1)]))
    assert found == rows(seeded_loader(Noisy(), seed=0, sampler=[3, 1]))


class Named(Dataset[Any]):
    """Takes names, and has no length."""

    def __getitem__(self, name: Any) -> Any:
        return str(name), *everything_drawn()


@pytest.mark.parametrize("names", [["a", "b", "tuple"], [("a", 1), ("a", 2), ()], [5, -1, 2**70]])
def test_names_and_tuples_identify_a_sample_whatever_its_place(names: list[Any]) -> None:
    def drawn(order: list[Any]) -> dict[Any, Any]:
        loader = seeded_loader(Named(), seed=0, batch_size=2, sampler=order, collate_fn=give_back)
        return {sample[0]: sample for batch in loader for sample in batch}

    forward = drawn(names)
    assert forward == drawn(names[::-1])
    assert len({draw for sample in forward.values() for draw in sample[1:]}) == 3 * 7


@pytest.mark.parametrize("name", [(0, 1), (np.int64(0), np.uint8(1)), (torch.tensor(0), 1), (False, True)])
def test_numbers_of_any_library_in_a_tuple_are_the_same_index(name: Any) -> None:
    (found,) = seeded_loader(Named(), seed=0, batch_size=None, sampler=[name])
    (expected,) = seeded_loader(Named(), seed=0, batch_size=None, sampler=[(0, 1)])
    assert found[1:] == expected[1:]


def test_a_bool_is_the_index_that_it_is_to_a_list() -> None:
    assert rows(seeded_loader(Noisy(), seed=0, sampler=[True])) == rows(seeded_loader(Noisy(), seed=0, sampler=[1]))


class Huge(Noisy):
    """Cannot be counted sample by sample."""

    def __len__(self) -> int:
        return self.length


@pytest.mark.parametrize("length", [2**33, 2**70])
def test_a_huge_dataset_is_sampled_without_a_counter_for_each_sample(length: int) -> None:
    found = rows(seeded_loader(Huge(length), seed=0, sampler=[2**33 - 1, 3, 3]))
    with isolated(fold_in(0, "sample", 0, 3, 1)):
        assert found[2] == Noisy()[3].tolist()
    assert found[1] != found[2]
    assert found[0][0] == 2**33 - 1


def test_what_is_named_and_comes_again_draws_anew() -> None:
    a, b = seeded_loader(Named(), seed=0, batch_size=None, sampler=["a", "a"])
    assert a != b


def test_other_indices_are_told_apart_by_their_place() -> None:
    def drawn(order: list[Any]) -> list[Any]:
        return list(seeded_loader(Named(), seed=0, batch_size=None, sampler=order))

    first, second = drawn([0.5, 0.25]), drawn([0.25, 0.5])
    assert [sample[1:] for sample in first] == [sample[1:] for sample in second]
    assert first[0][1:] != first[1][1:]


# Samplers


class Noting(SequentialSampler):
    """Notes what it was asked for, and fails at the end."""

    def __iter__(self) -> Iterator[int]:
        self.asked = 0
        for index in self.data_source:
            self.asked += 1
            yield index
        raise ValueError("the end")


@pytest.mark.parametrize(("size", "ahead"), [(1, 64), (10, 70), (100, 100), (None, 64)])
def test_a_sampler_is_read_some_batches_ahead(size: int | None, ahead: int) -> None:
    sampler = Noting(range(200))
    next(iter(seeded_loader(range(200), seed=0, batch_size=size, sampler=sampler)))
    assert sampler.asked == ahead


@pytest.mark.parametrize(("size", "count"), [(1, 70), (3, 69), (None, 70)])
def test_what_a_sampler_gave_before_it_failed_comes_before_the_error(size: int | None, count: int) -> None:
    batches = iter(seeded_loader(range(70), seed=0, batch_size=size, sampler=Noting(range(70))))
    found = []
    with pytest.raises(ValueError, match="the end"):
        for batch in batches:
            found += batch.reshape(-1).tolist() if size else [batch]
    assert found == list(range(count))


def test_a_sampler_without_an_end_is_read_as_far_as_is_wanted() -> None:
    for options in ({"sampler": repeat(1)}, {"batch_sampler": repeat([1])}, {"batch_sampler": repeat([])}):
        batches = iter(seeded_loader(Noisy(), seed=0, collate_fn=give_back, **options))
        assert len(list(islice(batches, 200))) == 200


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
@pytest.mark.parametrize("way", ["batch_sampler", "sampler"])
def test_a_sampler_may_fill_the_same_batch_again_and_again(kind: Any, way: str) -> None:
    def batches() -> Iterator[Any]:
        batch = kind([0, 0])
        for index in range(4):
            batch[0] = batch[1] = index
            yield batch

    options = {"batch_sampler": batches()} if way == "batch_sampler" else {"sampler": batches(), "batch_size": None}
    found = [batch.tolist() for batch in seeded_loader(torch.arange(10), seed=0, **options)]
    assert found == [[0, 0], [1, 1], [2, 2], [3, 3]]


def test_the_shards_of_all_ranks_are_what_one_process_gives() -> None:
    dataset = Noisy(10)
    expected = by_index(seeded_loader(dataset, seed=0))
    for workers in (0, 2):
        found: dict[int, list[float]] = {}
        for rank in range(2):
            sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=True)
            found |= by_index(seeded_loader(dataset, seed=0, batch_size=2, sampler=sampler, num_workers=workers))
        assert found == expected


def test_padding_gives_a_sample_again_as_torch_does() -> None:
    dataset = Noisy(5)
    shards = [DistributedSampler(dataset, num_replicas=3, rank=rank, shuffle=False) for rank in range(3)]
    found = [[row[0] for row in rows(seeded_loader(dataset, seed=0, sampler=shard))] for shard in shards]
    assert found == [list(shard) for shard in shards] == [[0, 3], [1, 4], [2, 0]]


class Told(SequentialSampler):
    """Notes the epochs that it is told of."""

    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset)
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


@pytest.mark.parametrize(
    "options",
    [
        lambda told: {"sampler": told},
        lambda told: {"sampler": told, "batch_size": None},
        lambda told: {"batch_sampler": BatchSampler(told, 2, False)},
    ],
    ids=["sampler", "sampler without batches", "inside a batch sampler"],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_sampler_is_told_of_each_epoch_once(options: Any, workers: int) -> None:
    told = Told(range(4))
    loader = seeded_loader(range(4), seed=0, num_workers=workers, **options(told))
    list(loader)
    list(loader)
    loader.set_epoch(7)
    list(loader)
    assert told.epochs == [0, 1, 7]


def test_a_batch_sampler_is_told_of_each_epoch() -> None:
    class ToldBatches(Told):
        def __iter__(self) -> Any:
            yield [len(self.epochs)]

    loader = seeded_loader(range(4), seed=0, batch_sampler=ToldBatches(range(4)))
    assert [batch.tolist() for _ in range(2) for batch in loader] == [[1], [2]]


def test_the_epoch_decides_the_order_of_a_distributed_sampler() -> None:
    dataset = Noisy(10)

    def order(epoch: int) -> list[float]:
        sampler = DistributedSampler(dataset, num_replicas=2, rank=0)
        sampler.set_epoch(epoch)
        return [float(index) for index in sampler]

    loader = seeded_loader(dataset, seed=0, sampler=DistributedSampler(dataset, num_replicas=2, rank=0))
    assert [[row[0] for row in rows(loader)] for _ in range(3)] == [order(0), order(1), order(2)]


@pytest.mark.parametrize("make", [RandomSampler, lambda data: WeightedRandomSampler([1.0] * len(data), len(data))])
def test_a_sampler_that_draws_from_the_global_stream_repeats(make: Any) -> None:
    def order() -> list[Any]:
        torch.rand(1)  # what is ambient does not matter
        dataset = Noisy()
        return epochs(seeded_loader(dataset, seed=0, batch_size=4, sampler=make(dataset)))

    first, second = order()
    assert first != second
    assert order() == [first, second]


def test_the_samples_of_a_batch_sampler_are_known_by_index() -> None:
    batches = [[3, 1], (4,), torch.tensor([0, 2]), iter([5])]
    found = by_index(seeded_loader(Noisy(), seed=0, batch_sampler=batches))
    assert found == {index: row for index, row in by_index(seeded_loader(Noisy(), seed=0)).items() if index < 6}


def test_indices_in_lists_without_batching_reach_the_dataset_whole() -> None:
    sampler = BatchSampler(SequentialSampler(range(5)), 2, False)
    loader = seeded_loader(TensorDataset(torch.arange(5)), seed=0, batch_size=None, sampler=sampler)
    assert [batch[0].tolist() for batch in loader] == [[0, 1], [2, 3], [4]]


# Datasets that load whole batches


def test_a_dataset_that_loads_batches_keeps_doing_so_in_one_scope() -> None:
    def found(workers: int) -> Any:
        return epochs(seeded_loader(NoisyBatches(), seed=0, batch_size=4, num_workers=workers))

    assert found(0) == found(2)
    with isolated(fold_in(0, "batch", 0, 1)):
        expected = [sample.tolist() for sample in NoisyBatches().__getitems__([4, 5, 6, 7])]
    assert found(0)[0][4:8] == expected


def test_a_subset_is_keyed_by_the_sample_unless_what_it_holds_loads_batches() -> None:
    subset = Subset(Noisy(), range(10))
    assert rows(seeded_loader(subset, seed=0, batch_size=4)) == rows(seeded_loader(Noisy(), seed=0))
    subset = Subset(NoisyBatches(), range(10))
    whole = rows(seeded_loader(NoisyBatches(), seed=0, batch_size=4))
    assert rows(seeded_loader(subset, seed=0, batch_size=4)) == whole


class Part(Subset[Any]):
    """A subset of the user's own kind."""


class Wrapper(Dataset[Any]):
    """Has what it holds has."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __len__(self) -> int:
        return len(self.held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.held, name)


@pytest.mark.parametrize("wrap", [lambda held: Part(held, range(10)), lambda held: Wrapper(Subset(held, range(10)))])
def test_a_subclass_or_wrapper_of_a_subset_is_keyed_like_it(wrap: Any) -> None:
    expected = rows(seeded_loader(Noisy(), seed=0))
    assert rows(seeded_loader(wrap(Noisy()), seed=0, batch_size=4)) == expected
    whole = rows(seeded_loader(NoisyBatches(), seed=0, batch_size=4))
    assert rows(seeded_loader(wrap(NoisyBatches()), seed=0, batch_size=4)) == whole


@pytest.mark.parametrize("pack", [lambda *held: StackDataset(*held), lambda a, b: StackDataset(a=a, b=b)])
def test_a_stack_is_keyed_by_the_sample_unless_something_in_it_loads_batches(pack: Any) -> None:
    def first_sample(size: int, *held: Any) -> str:
        batch = next(iter(seeded_loader(pack(*held), seed=0, batch_size=size, collate_fn=give_back)))
        return str(batch[0])

    assert first_sample(1, Noisy(), Noisy()) == first_sample(3, Noisy(), Noisy())
    assert first_sample(1, Noisy(), NoisyBatches()) != first_sample(3, Noisy(), NoisyBatches())


# Iterable datasets


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 2},
        {"num_workers": 2, "persistent_workers": True},
    ],
    ids=["new workers", "persistent"],
)
def test_an_iterable_dataset_repeats_for_the_same_number_of_workers(options: dict[str, Any], streamed: Any) -> None:
    loader = seeded_loader(NoisyStream(), seed=0, batch_size=2, collate_fn=noisy_collate, **options)
    assert epochs(loader) == streamed


@pytest.fixture(scope="module")
def streamed() -> Any:
    first, second = epochs(seeded_loader(NoisyStream(), seed=0, batch_size=2, collate_fn=noisy_collate, num_workers=2))
    assert first != second
    assert sorted(row[0] for row in first) == list(range(8))
    assert len({draw for row in first for draw in row[1:8]}) == 8 * 7
    return [first, second]


@pytest.mark.parametrize("options", [{}, {"multiprocessing_context": "spawn", "persistent_workers": True}])
def test_one_worker_reads_an_iterable_dataset_as_the_main_process_does(options: dict[str, Any]) -> None:
    def found(**options: Any) -> Any:
        return epochs(seeded_loader(NoisyStream(), seed=0, batch_size=3, collate_fn=noisy_collate, **options))

    assert found(num_workers=1, **options) == found()


def test_an_iterable_dataset_is_read_without_batching_too() -> None:
    loader = seeded_loader(NoisyStream(), seed=0, batch_size=None)
    assert rows([list(loader)]) == rows(seeded_loader(NoisyStream(), seed=0, batch_size=4))


def test_an_iterable_dataset_goes_on_from_item_to_item_and_nobody_else_does() -> None:
    before = kit.everything()
    batches = iter(seeded_loader(NoisyStream(), seed=0))
    found = []
    for batch in batches:
        assert kit.everything() == before
        found += rows([batch])
    with isolated(fold_in(0, "worker", 0, 0, "items")):
        assert found == [sample.tolist() for sample in NoisyStream()]


def test_torch_warns_of_an_iterable_dataset_that_is_longer_than_it_said() -> None:
    class Short(NoisyStream):
        def __len__(self) -> int:
            return 3

        def __repr__(self) -> str:
            return "Short()"

    loader = seeded_loader(Short(4), seed=0)
    assert len(list(loader)) == 4
    assert len(loader) == 3
    with pytest.warns(UserWarning, match=re.escape("Length of IterableDataset Short() was reported to be 3")):
        list(loader)


def test_the_length_of_an_iterable_dataset_is_its_own() -> None:
    with pytest.raises(TypeError, match="has no len"):
        len(seeded_loader(NoisyStream(), seed=0))
