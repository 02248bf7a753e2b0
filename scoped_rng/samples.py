"""What a seeded loader hands to torch's: indices with what each sample is seeded by, and datasets that open the scopes.

`Indices` is the sampler, in the main process; `Samples` and `Stream` are what runs in a worker. The epoch and the batch
travel with the indices, so that no worker needs to be told, however long it lives and however far ahead it is.
"""

from __future__ import annotations

import operator
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, IterableDataset, StackDataset, Subset, get_worker_info

from .activation import Activation
from .errors import StateMismatchError
from .scope import isolated
from .seeds import fold_in

__all__ = [
    "Indices",
    "Samples",
    "SamplesDataset",
    "Stream",
    "StreamDataset",
    "hand_on",
    "length_of",
    "too_short",
]


class _Batch(NamedTuple):
    """What the sampler tells a worker."""

    epoch: int
    number: int
    indices: Any
    paths: list[tuple[int | str, ...]] | None  # what each sample is seeded by; None: its index, which came once


class Indices:
    """Give the batches of an epoch: the sampler of the loader that does the work."""

    _begin = (0, 0)

    def __init__(self, dataset: Any, seed: int, order: str, sampler: Any, size: int | None, drop_last: bool) -> None:
        self._dataset = dataset
        self._seed = seed
        self._order = order
        self._sampler = sampler
        self._size = size or 1
        self._drop_last = drop_last

    def begin(self, epoch: int, batch: int) -> None:
        """Give this epoch from this batch on in the next iteration."""
        self._begin = epoch, batch

    def __iter__(self) -> Iterator[_Batch]:
        epoch, first = self._begin
        return (self._ordered if self._order in ("shuffled", "sequential") else self._sampled)(epoch, first)

    def _ordered(self, epoch: int, first: int) -> Iterator[_Batch]:
        length, size = length_of(self._dataset, required=True), self._size
        order: Any = range(length)
        if self._order == "shuffled":
            generator = torch.Generator().manual_seed(fold_in(self._seed, "order", epoch))
            order = torch.randperm(length, generator=generator, device="cpu")
        for start in range(first * size, length - (size - 1 if self._drop_last else 0), size):
            chunk = order[start : start + size]
            yield _Batch(epoch, start // size, chunk.tolist() if self._order == "shuffled" else list(chunk), None)

    def _sampled(self, epoch: int, first: int) -> Iterator[_Batch]:
        # The scope is in force while the sampler runs and taken out in between: once for a batch.
        batches: Any = isolated(fold_in(self._seed, "sampler", epoch))(self._batches)()
        paths, number = _Paths(length_of(self._dataset)), -1
        try:
            for number, indices in enumerate(batches):
                path = [paths.of(index) for index in indices]
                if number >= first:
                    yield _Batch(epoch, number, indices, path)
        finally:
            batches.close()
        if number + 1 < first:
            raise too_short(number + 1, first)

    def _batches(self) -> Iterator[Any]:
        if self._order == "batch_sampler":
            for batch in self._sampler:
                yield batch if hasattr(batch, "__len__") else list(batch)
            return
        indices = iter(self._sampler)
        while chunk := list(islice(indices, self._size)):
            if len(chunk) == self._size or not self._drop_last:
                yield chunk


class _Paths:
    """Tell what each sample of an epoch is seeded by: its index and how often that came before."""

    def __init__(self, length: int | None) -> None:
        self._length = length
        self._counts = array("I", [0]) * (length or 0)
        self._others: dict[Any, int] = {}
        self._place = -1

    def of(self, index: Any) -> tuple[int | str, ...]:
        self._place += 1
        path: tuple[int | str, ...] = (index,) if isinstance(index, str) else ()
        if isinstance(index, tuple) and all(isinstance(part, (int, str)) for part in index):
            path = ("tuple", len(index), *index)
        elif not path:
            try:
                number = operator.index(index)
            except TypeError:
                return "place", "", self._place
            if self._length is not None:
                number = self._in_range(number, self._length)
                self._counts[number] += 1
                return number, self._counts[number] - 1
            path = (number,)
        repeat = self._others.get(path, 0)
        self._others[path] = repeat + 1
        return *path, repeat

    @staticmethod
    def _in_range(number: int, length: int) -> int:
        if not -length <= number < length:
            raise IndexError(
                f"the sampler gave the index {number}, and the dataset has {length} samples; make the sampler for this "
                "dataset"
            )
        return number + length if number < 0 else number


class _Facade:
    """Stand before the user's dataset in the workers: its attributes are read and set there, but for this one."""

    _scoped_rng: Any

    def __init__(self, loads: Any) -> None:
        vars(self)["_scoped_rng"] = loads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scoped_rng.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._scoped_rng.dataset, name, value)

    def __len__(self) -> int:
        return len(self._scoped_rng.dataset)

    # Without these two, pickle would ask the user's dataset for them.
    def __getstate__(self) -> dict[str, Any]:
        return vars(self).copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class SamplesDataset(_Facade, Dataset[Any]):
    """Give torch's loader the batches of a `Samples`."""

    def __getitems__(self, batch: _Batch) -> Any:
        return self._scoped_rng.load(batch)

    def __getitem__(self, index: Any) -> Any:
        # If it is no batch of ours, then the user looks at a sample, in worker_init_fn perhaps.
        return self._scoped_rng.load(index) if isinstance(index, _Batch) else self._scoped_rng.dataset[index]


class StreamDataset(_Facade, IterableDataset[Any]):
    """Give torch's loader the items of a `Stream`."""

    def __iter__(self) -> Iterator[Any]:
        items: Iterator[Any] = self._scoped_rng.items()
        return items


class Samples:
    """Load and collate batches."""

    def __init__(self, dataset: Any, seed: int, collate_fn: Callable[[Any], Any], in_batches: bool) -> None:
        self.dataset = dataset
        self._seed = seed
        self._collate_fn = collate_fn
        self._in_batches = in_batches
        self._loads_batches = in_batches and _loads_batches(dataset)

    def load(self, batch: _Batch) -> tuple[int, Any]:
        """Return the number of a batch, and the batch."""
        return batch.number, _run(self._load, batch)

    def _load(self, begin: Callable[[int], None], batch: _Batch) -> Any:
        epoch, number, indices, paths = batch
        if self._loads_batches:
            begin(fold_in(self._seed, "batch", epoch, number))
            samples = self.dataset.__getitems__(indices)
        else:
            samples = []
            for place, index in enumerate(indices):
                begin(fold_in(self._seed, "sample", epoch, *((index, 0) if paths is None else paths[place])))
                samples.append(self.dataset[index])
        begin(fold_in(self._seed, "collate", epoch, number))
        return self._collate_fn(samples if self._in_batches else samples[0])


class Stream:
    """Read an iterable dataset in a scope for each epoch and worker, which is taken out between two items.

    Args:
        shared: whether workers hear of the next epoch. Those that persist have to; others must not, since one may still
            be starting with an earlier epoch.
    """

    def __init__(self, dataset: Any, seed: int, collate_fn: Callable[[Any], Any], shared: bool) -> None:
        self.dataset = dataset
        self._seed = seed
        self._collate_fn = collate_fn
        self._epoch = torch.zeros(1, dtype=torch.int64, device="cpu")
        self._collated = 0
        if shared:
            self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def begin(self, epoch: int, batch: int) -> None:
        """Read this epoch in the next iteration, from its beginning: an item has no index to go to."""
        self._epoch.fill_(epoch)

    def items(self) -> Iterator[Any]:
        """Read the epoch that was begun last."""

        def read() -> Iterator[Any]:
            yield from self.dataset

        self._collated = 0
        return isolated(self._child("items"))(read)()

    def collate(self, items: Any) -> tuple[None, Any]:
        """Collate the next batch of this epoch and worker, which does not know its number."""
        self._collated += 1
        return None, _run(self._collate, items)

    def _collate(self, begin: Callable[[int], None], items: Any) -> Any:
        begin(self._child("collate", self._collated))
        return self._collate_fn(items)

    def _child(self, *path: int | str) -> int:
        info = get_worker_info()
        return fold_in(self._seed, "worker", int(self._epoch), 0 if info is None else info.id, *path)


def hand_on(loaded: Any) -> Any:
    """Be the collate function of what is collated already."""
    return loaded


def _run(body: Callable[..., Any], *args: Any) -> Any:
    """Call ``body`` in a scope which it seeds itself, by a function that it gets first.

    A batch has one scope, seeded anew for each sample: that is all that a scope for each would come to, and costs a
    third of it. The two finally blocks are for an interrupt that hits the inner one.
    """
    activation, failed = Activation(isolated()), True

    def begin(seed: int) -> None:
        for held, _ in activation.undo:
            held.seed(seed)

    try:
        try:
            activation.start()
            result = body(begin, *args)
        finally:
            activation.stop()
        failed = False
        return result
    finally:
        activation.stop()
        activation.report(sys.exc_info()[1] if failed else None)


def _loads_batches(dataset: Any) -> bool:
    """Return whether a dataset has a ``__getitems__`` of its own."""
    if type(dataset) is Subset:  # whose one passes on to what it holds, or loops; so does the next
        return _loads_batches(dataset.dataset)
    if type(dataset) is StackDataset:
        held: Iterable[Any] = dataset.datasets.values() if isinstance(dataset.datasets, dict) else dataset.datasets
        return any(map(_loads_batches, held))
    return bool(getattr(dataset, "__getitems__", None))


def length_of(dataset: Any, required: bool = False) -> Any:
    """Return the length of a dataset, or None where it has none."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError) as error:
        if not required:
            return None
        raise TypeError(
            f"{type(dataset).__name__} has no length ({error}), which the order of its samples needs; give it a "
            "__len__, or a sampler= to the loader"
        ) from error


def too_short(found: int, expected: int) -> StateMismatchError:
    """Return the error for an epoch that has less than it had."""
    return StateMismatchError(
        f"the epoch has ended after {found} batches, and the state was taken after {expected}; the dataset or sampler "
        "is another one or does not repeat: start the epoch anew with set_epoch()"
    )
