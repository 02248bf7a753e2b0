"""What a seeded loader hands to torch's: indices with what each sample is seeded by, and datasets that open the scopes.

`Indices` is the sampler, in the main process; `Samples` and `Stream` are what runs in a worker. The epoch and the batch
travel with the indices, so that no worker needs to be told, however long it lives and however far ahead it is.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
import torch.utils.data as torch_data
from torch.utils.data import Dataset, IterableDataset, StackDataset, Subset, get_worker_info

from ..errors import StateMismatchError
from ..scope import isolated
from ..scope.activation import Activation, run_within
from ..seeds import fold_in

__all__ = [
    "Indices",
    "Samples",
    "SamplesDataset",
    "Stream",
    "StreamDataset",
    "already_collated",
    "length_of",
    "too_short",
]


class _Batch(NamedTuple):
    """What the sampler tells a worker."""

    epoch: int
    number: int
    indices: Any
    paths: list[tuple[int | str, ...]]  # what each sample is seeded by


# How many indices a foreign sampler is asked for at a time: to take its scope out and in again is what costs.
AHEAD = 64


class Indices:
    """Give the batches of an epoch: the sampler of the loader that does the work."""

    _begin = (0, 0)

    def __init__(self, dataset: Any, seed: int, order: str, sampler: Any, size: int | None, drop_last: bool) -> None:
        self._dataset = dataset
        self._seed = seed
        self._order = order
        self._sampler = sampler
        self._size = size
        self._drop_last = drop_last

    def begin(self, epoch: int, batch: int) -> None:
        """Give this epoch from this batch on in the next iteration."""
        self._begin = epoch, batch

    def __iter__(self) -> Iterator[_Batch]:
        epoch, first = self._begin
        return (self._ordered if self._order in ("shuffled", "sequential") else self._sampled)(epoch, first)

    def _ordered(self, epoch: int, first: int) -> Iterator[_Batch]:
        length, begin = length_of(self._dataset, required=True), first * (self._size or 1)
        indices: Any = iter(range(begin, length))
        if self._order == "shuffled":
            generator = torch.Generator().manual_seed(fold_in(self._seed, "order", epoch))
            order = torch.randperm(length, generator=generator, device="cpu")
            indices = chain.from_iterable(order[at : at + 1024].tolist() for at in range(begin, length, 1024))
        for number, batch in enumerate(self._cut(indices), first):
            yield _Batch(epoch, number, batch, [(index, 0) for index in batch])

    def _cut(self, indices: Iterator[Any]) -> Iterator[list[Any]]:
        size = self._size or 1
        while batch := list(islice(indices, size)):
            if len(batch) == size or not self._drop_last:
                yield batch

    def _sampled(self, epoch: int, first: int) -> Iterator[_Batch]:
        chunks: Any = isolated(fold_in(self._seed, "sampler", epoch))(self._chunks)()
        paths, number = _Paths(length_of(self._dataset)), -1
        try:
            for number, indices in enumerate(chain.from_iterable(chunks)):
                path = [paths.of(index) for index in indices]
                if number >= first:
                    yield _Batch(epoch, number, indices, path)
        finally:
            chunks.close()
        if number + 1 < first:
            raise too_short(number + 1, first)

    def _chunks(self) -> Iterator[list[Any]]:
        """Give as many batches at a time as make up some indices."""
        chunk: list[Any] = []
        count = 0
        try:
            for batch, is_ours in self._batches():
                chunk.append(batch)
                count += max(1, len(batch))
                if count >= AHEAD or not is_ours:
                    yield chunk
                    chunk, count = [], 0
        except Exception:
            yield chunk  # it came before the error
            raise
        yield chunk

    def _batches(self) -> Iterator[tuple[Any, bool]]:
        """Give each batch, and whether the sampler cannot change it any more when it goes on."""
        indices = iter(self._sampler)
        if self._order == "batch_sampler" or self._size is None:
            for given in indices:
                ours = given.copy() if type(given) is list else given
                batch = [ours] if self._order == "sampler" else ours if hasattr(ours, "__len__") else list(ours)
                yield batch, isinstance(ours, (int, str, tuple, list))
            return
        yield from ((batch, True) for batch in self._cut(indices))


class _Paths:
    """Tell what each sample of an epoch is seeded by: its index and how often that came before."""

    def __init__(self, length: int | None) -> None:
        self._length = length
        # One for each sample, unless that is more than a sampler is likely to give of them.
        self._counts = array("I", [0]) * (length if length is not None and length <= 1 << 28 else 0)
        self._others: dict[Any, int] = {}
        self._place = -1

    def of(self, index: Any) -> tuple[int | str, ...]:
        self._place += 1
        try:
            if isinstance(index, str):
                path: tuple[int | str, ...] = (index,)
            elif isinstance(index, tuple):
                path = ("tuple", len(index), *(part if isinstance(part, str) else _as_int(part) for part in index))
            else:
                number = _as_int(index)
                if self._length is not None:
                    number = self._in_range(number, self._length)
                if self._counts:
                    self._counts[number] += 1
                    return number, self._counts[number] - 1
                path = (number,)
        except TypeError:
            return (self._place,)
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


def _as_int(index: Any) -> int:
    return int(operator.index(index))  # which gives a bool back as it is


class _Facade:
    """Stand before the user's dataset in the workers: its attributes are read and set there, but for this one."""

    _scoped_rng: Any

    def __init__(self, loads: Any) -> None:
        vars(self)["_scoped_rng"] = loads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scoped_rng.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._scoped_rng.dataset, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._scoped_rng.dataset, name)

    def __len__(self) -> int:
        return len(self._scoped_rng.dataset)

    def __repr__(self) -> str:
        return repr(self._scoped_rng.dataset)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        # What isinstance() goes by. torch's loader would wrap a MapDataPipe into something that has no __getitems__.
        dataset = self._scoped_rng.dataset
        return type(self) if isinstance(dataset, torch_data.MapDataPipe) else dataset.__class__

    def __reduce__(self) -> Any:  # pickle would go by __class__
        return type(self), (self._scoped_rng,)


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
        self._collate_draws = _may_draw(collate_fn)
        self._in_batches = in_batches
        self._has_getitems = in_batches and bool(getattr(dataset, "__getitems__", None))
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
            for index, path in zip(indices, paths, strict=True):
                begin(fold_in(self._seed, "sample", epoch, *path))
                samples += self.dataset.__getitems__([index]) if self._has_getitems else [self.dataset[index]]
        if self._collate_draws:
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
        self._collate_draws = _may_draw(collate_fn)
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
        return None, _run(self._collate, items) if self._collate_draws else self._collate_fn(items)

    def _collate(self, begin: Callable[[int], None], items: Any) -> Any:
        begin(self._child("collate", self._collated))
        return self._collate_fn(items)

    def _child(self, *path: int | str) -> int:
        info = get_worker_info()
        return fold_in(self._seed, "worker", int(self._epoch), 0 if info is None else info.id, *path)


def already_collated(loaded: Any) -> Any:
    """Be the collate function where `Samples` or `Stream` has collated."""
    return loaded


def _may_draw(collate_fn: Any) -> bool:
    # torch's own draw nothing.
    return collate_fn is not torch_data.default_collate and collate_fn is not torch_data.default_convert


_ISOLATED = isolated()


def _run(body: Callable[..., Any], *args: Any) -> Any:
    """Call ``body`` in a scope which it seeds itself, by a function that it gets first.

    A batch has one scope, seeded anew for each sample: that is all that a scope for each would come to, and costs a
    third of it.
    """
    activation = Activation(_ISOLATED)

    def begin(seed: int) -> None:
        for held, _ in activation.undo:
            held.seed(seed)

    return run_within(activation, body, begin, *args)


def _loads_batches(dataset: Any) -> bool:
    """Return whether a dataset has a ``__getitems__`` that does more than to go through samples one by one."""
    method: Any = getattr(dataset, "__getitems__", None)
    # torch's own two pass on to what they hold, or loop. Subclasses and wrappers may have them as well.
    function = getattr(method, "__func__", None)
    if function is getattr(Subset, "__getitems__", method):
        return _loads_batches(method.__self__.dataset)
    if function is getattr(StackDataset, "__getitems__", method):
        datasets = method.__self__.datasets
        held: Iterable[Any] = datasets.values() if isinstance(datasets, dict) else datasets
        return any(map(_loads_batches, held))
    return bool(method)


def length_of(dataset: Any, required: bool = False) -> Any:
    """Return the length of a dataset, or None where it has none."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError, OverflowError) as error:
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
