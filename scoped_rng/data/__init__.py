"""Load data whose randomness depends on the sample and the epoch, not on which worker happens to load it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, SupportsIndex

import torch
from torch.utils.data import DataLoader, IterableDataset, IterDataPipe, get_worker_info

from ..errors import StateFormatError, StateMismatchError, shown
from ..seeds import check_seed, fold_in
from ..state import check_format
from ..streams.ambient import ambient_streams
from .samples import Indices, Samples, SamplesDataset, Stream, StreamDataset, already_collated, length_of, too_short

__all__ = ["SeededLoader", "seed_worker", "seeded_loader"]

FORMAT, VERSION = "scoped_rng.SeededLoader", 1
# What decides the order, and how it was asked for.
ORDERS: dict[Any, str] = {
    "sequential": "shuffle=False",
    "shuffled": "shuffle=True",
    "sampler": "sampler=",
    "batch_sampler": "batch_sampler=",
    "iterable": "an IterableDataset",
}


def seeded_loader(
    dataset: Any,
    *,
    seed: SupportsIndex,
    batch_size: int | None = 1,
    shuffle: bool = False,
    sampler: Any = None,
    num_workers: int = 0,
    collate_fn: Callable[[Any], Any] | None = None,
    drop_last: bool = False,
    **options: Any,
) -> SeededLoader:
    """Make a ``DataLoader`` that gives the same batches for every number of workers, and resumes anywhere.

    Each ``dataset[i]`` runs in a scope of its own, seeded by the seed, the epoch, ``i`` and how often ``i`` came before
    in the epoch: what it draws from Python, NumPy or torch does not depend on the workers, how they are started, the
    batch size, the order or the rank. The order of ``shuffle=True`` depends on the seed and the epoch, and
    ``collate_fn`` runs in a scope seeded by them and the number of the batch. No stream outside moves.

    - Indices are told apart by value where they are ints (-1 is the last one), strings, or tuples of those, and else by
      their place in the epoch.
    - A dataset with ``__getitems__`` draws from a stream for each batch: the same for every number of workers, but not
      for every batch size.
    - An ``IterableDataset`` draws from a stream for each worker and epoch, since its items have no index: the same for
      the same number of workers.
    - A ``sampler`` or ``batch_sampler`` is iterated in a scope seeded by the epoch, some 64 indices ahead. Where it has
      a ``set_epoch``, that is called with the loader's epoch at each ``iter(loader)``, whatever you have set there.

    Args:
        dataset: as for ``DataLoader``.
        seed: an int in [0, 2**64), for all that the loader does.
        batch_size, shuffle, sampler, num_workers, collate_fn, drop_last: as for ``DataLoader``.
        options: all others of ``DataLoader``, but ``generator`` and ``in_order=False``.

    Raises:
        TypeError: the dataset has no length and no sampler either, or an option is not taken.
        ValueError: options that do not go together.

    >>> import random
    >>> class Noise(torch.utils.data.Dataset):
    ...     def __len__(self):
    ...         return 6
    ...     def __getitem__(self, i):
    ...         return i + random.random()
    >>> loader = seeded_loader(Noise(), seed=0, batch_size=2, shuffle=True)
    >>> first, second = torch.cat(list(loader)), torch.cat(list(loader))
    >>> torch.equal(first, second)
    False
    >>> loader.set_epoch(0)
    >>> torch.equal(first, torch.cat(list(loader)))
    True
    """
    return SeededLoader(
        dataset,
        seed=seed,
        batch_size=batch_size,
        shuffle=shuffle,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate_fn,
        drop_last=drop_last,
        **options,
    )


class SeededLoader(DataLoader[Any]):
    """Be what `seeded_loader` makes: a ``DataLoader`` with epochs, and with a state to resume from.

    Each ``iter(loader)`` begins the next epoch, 0 first, whether the one before was finished or not; so a look at one
    batch takes an epoch, and ``set_epoch`` belongs before the loop. Of several iterations that are under way at once,
    the last begun is the one whose position is the loader's.

    >>> loader = SeededLoader(range(10), seed=0, batch_size=2)
    >>> for batch in loader:
    ...     saved = loader.state_dict()  # goes into any checkpoint
    ...     break
    >>> loader = SeededLoader(range(10), seed=0, batch_size=2)
    >>> loader.load_state_dict(saved)
    >>> [batch.tolist() for batch in loader]
    [[2, 3], [4, 5], [6, 7], [8, 9]]
    """

    def __init__(
        self,
        dataset: Any,
        *,
        seed: SupportsIndex,
        shuffle: bool | None = None,
        sampler: Any = None,
        batch_sampler: Any = None,
        **options: Any,
    ) -> None:
        self.seed = check_seed(seed)
        if options.get("generator") is not None:
            raise TypeError("a seeded loader takes no generator=: the seed decides the order; leave it out")
        if not options.get("in_order", True):
            raise ValueError(
                "in_order=False hands batches over in the order in which workers happen to finish, which no seed "
                "repeats; leave it out"
            )
        if isinstance(dataset, IterDataPipe):
            raise TypeError(
                "a seeded loader takes no IterDataPipe, which torch seeds and shards by itself; use a plain DataLoader "
                "with worker_init_fn=seed_worker, or make it an IterableDataset"
            )
        if sampler is None and batch_sampler is None and not isinstance(dataset, IterableDataset):
            length_of(dataset, required=True)
        super().__init__(dataset, shuffle=shuffle, sampler=sampler, batch_sampler=batch_sampler, **options)
        if isinstance(dataset, IterableDataset):
            self._order = "iterable"
        elif batch_sampler is not None:
            self._order = "batch_sampler"
        elif sampler is not None:
            self._order = "sampler"
        else:
            self._order = "shuffled" if shuffle else "sequential"
        self._begun = 0  # how many iterations
        self._position = _Position(0, 0)  # which the last of them moves
        self._persistent: tuple[Indices | Stream, DataLoader[Any]] | None = None

    @property
    def epoch(self) -> int:
        """The epoch under way, or between two the one that comes next."""
        return self._position.epoch

    def set_epoch(self, epoch: SupportsIndex) -> None:
        """Have the next iteration begin ``epoch``, or go on in it, where a loaded state is in the middle of it."""
        if isinstance(epoch, bool) or not hasattr(epoch, "__index__"):
            raise TypeError(f"an epoch must be an int, got {type(epoch).__name__} {epoch!r}; count them from 0")
        number = operator.index(epoch)
        if not 0 <= number < 1 << 63:
            raise ValueError(f"an epoch must be in [0, 2**63), got {number}; count them from 0")
        upcoming = self._position.upcoming()
        self._position = upcoming if number == upcoming.epoch else _Position(number, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in plain data, which ``torch.load(weights_only=True)`` reads.

        A batch counts from when it was handed over, however many the workers have ahead. After the last one the
        position is still in that epoch, with nothing left of it; it is in the next one when the iteration has ended.
        """
        here = self._position
        return {"format": FORMAT, "version": VERSION, "epoch": here.epoch, "batch": here.batch, **self._recipe()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called: the next iteration gives the rest of that epoch.

        The samples before it are not loaded again. A sampler is asked for their indices; an ``IterableDataset`` is read
        again up to there, and needs the same number of workers.

        Raises:
            StateFormatError: it is something else, damaged, or of another version; nothing was changed.
            StateMismatchError: it is of a loader with another seed, dataset length or batch size, say; nothing was
                changed.
        """
        check_format(state_dict, FORMAT, VERSION, "the state_dict() of a SeededLoader")
        for name, here in self._recipe().items():
            if name not in state_dict:
                raise StateFormatError(f"the state lacks {name!r}; it is damaged, take another checkpoint")
            there = state_dict[name]
            if not isinstance(there, (int, str, type(None))):
                raise _damaged(name, there)
            if (type(there), there) != (type(here), here):
                was, is_now = (ORDERS.get(it, f"{name}={shown(it)}") for it in (there, here))
                raise StateMismatchError(
                    f"the state is of a loader with {was}, this one has {is_now}; make the loader as it was, or begin "
                    "an epoch with set_epoch() instead"
                )
        epoch, batch = state_dict.get("epoch"), state_dict.get("batch")
        most = len(self) if self._order in ("shuffled", "sequential") else (1 << 63) - 1
        if type(epoch) is not int or not 0 <= epoch < 1 << 63:
            raise _damaged("epoch", epoch)
        if type(batch) is not int or not 0 <= batch <= most:
            raise _damaged("batch", batch)
        self._position = _Position(epoch, batch)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        position = self._position.upcoming()
        for sampler in {id(each): each for each in self._samplers()}.values():
            if callable(getattr(sampler, "set_epoch", None)):
                sampler.set_epoch(position.epoch)
        begins, loader = self._persistent or self._make()
        if self.persistent_workers:
            self._persistent = begins, loader
        begins.begin(position.epoch, position.batch)
        # An iterator draws the base seed of its workers from its loader's generator, or else from the global stream.
        loader.generator = torch.Generator(torch.get_default_device())
        loader.generator.manual_seed(fold_in(self.seed, "workers", position.epoch))
        # By which torch warns of an IterableDataset that is longer than it has said.
        loader._IterableDataset_len_called = getattr(self, "_IterableDataset_len_called", None)
        batches = iter(loader)
        self._begun += 1
        position.is_begun = True
        self._position = position
        return _Iteration(self, batches, position)

    def _samplers(self) -> list[Any]:
        return [self.sampler, self.batch_sampler, getattr(self.batch_sampler, "sampler", None)]

    def _make(self) -> tuple[Indices | Stream, DataLoader[Any]]:
        """Return torch's loader, which does the work, and what is to be told of the epoch that it begins."""
        workers = {name: getattr(self, name) for name in _OPTIONS if getattr(self, name, None)}
        if self._order == "iterable":
            stream = Stream(self.dataset, self.seed, self.collate_fn, self.persistent_workers)
            sizes: Any = {"batch_size": self.batch_size, "drop_last": self.drop_last}
            return stream, _InnerLoader(StreamDataset(stream), collate_fn=stream.collate, **sizes, **workers)
        given = self.batch_sampler if self._order == "batch_sampler" else self.sampler
        # Not the loader itself: in a cycle with it, persistent workers would outlive its last reference.
        indices = Indices(self.dataset, self.seed, self._order, given, self.batch_size, self.drop_last)
        in_batches = self.batch_sampler is not None
        sampler: Any = {"batch_sampler": indices} if in_batches else {"batch_size": None, "sampler": indices}
        samples = SamplesDataset(Samples(self.dataset, self.seed, self.collate_fn, in_batches))
        return indices, _InnerLoader(samples, collate_fn=already_collated, **sampler, **workers)

    def _recipe(self) -> dict[str, Any]:
        """Return what must be as it was for a position to mean the same."""
        batches = self.batch_sampler if self._order == "batch_sampler" else self
        replicas = (each.num_replicas for each in self._samplers() if hasattr(each, "num_replicas"))
        recipe = {
            "seed": self.seed,
            "order": self._order,
            "dataset_length": length_of(self.dataset),
            "batch_size": _plain_int(getattr(batches, "batch_size", None)),
            "drop_last": bool(getattr(batches, "drop_last", False)),
            "num_replicas": _plain_int(next(replicas, 1)),
        }
        return {**recipe, "num_workers": self.num_workers} if self._order == "iterable" else recipe


_OPTIONS = (
    "num_workers",
    "pin_memory",
    "pin_memory_device",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
)


class _Position:
    """Where an iteration is, or where the next one begins."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.epoch, self.batch = epoch, batch
        self.is_begun = False

    def upcoming(self) -> _Position:
        """Return where the next iteration begins, for it to move."""
        return _Position(self.epoch + 1, 0) if self.is_begun else _Position(self.epoch, self.batch)


def _plain_int(value: Any) -> int | None:
    """Return an integer of any library as Python's, and None for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        return None


def _damaged(name: str, value: Any) -> StateFormatError:
    return StateFormatError(f"{name!r} of the state cannot be {shown(value)}; it is damaged, take another checkpoint")


class _InnerLoader(DataLoader[Any]):
    """Do the work, and do not warn once more of what the loader outside has warned of."""

    def check_worker_number_rationality(self) -> None:
        pass


class _Iteration(Iterator[Any]):
    """Count the batches of one epoch as they are handed over."""

    def __init__(self, loader: SeededLoader, batches: Iterator[Any], position: _Position) -> None:
        self._loader = loader
        self._batches = batches
        self._position = position
        self._again = position.batch if loader._order == "iterable" else 0  # how many to read again
        self._number = loader._begun

    def __len__(self) -> int:
        return len(self._loader)

    def __next__(self) -> Any:
        position = self._position
        if self._loader.persistent_workers and self._number != self._loader._begun:
            raise RuntimeError(
                "a newer iteration of this loader has taken its workers over; finish one before the next, or leave "
                "persistent_workers=True out"
            )
        try:
            while self._again:
                if next(self._batches, None) is None:
                    raise too_short(position.batch - self._again, position.batch)
                self._again -= 1
            number, batch = next(self._batches)
        except StopIteration:
            if position.is_begun:
                position.epoch, position.batch, position.is_begun = position.epoch + 1, 0, False
            raise
        # A batch that raised has passed as well, which its own number tells.
        position.batch = position.batch + 1 if number is None else number + 1
        return batch


def seed_worker(worker_id: int) -> None:
    """Seed Python, NumPy and torch of a worker process, as the ``worker_init_fn`` of a ``DataLoader`` of your own.

    The seed is folded from the loader's base seed, which is another one in each epoch, and the number of the worker, so
    that no two share a stream (torch's own seeds are consecutive numbers). Unseeded NumPy generators made in the worker
    draw from it as well. It is for good: the process is the worker's own. Workers that persist keep their streams from
    epoch to epoch.

    Raises:
        RuntimeError: this is no worker process.

    >>> loader = DataLoader(range(4), num_workers=0, worker_init_fn=seed_worker)
    """
    info = get_worker_info()
    if info is None:
        raise RuntimeError(
            "seed_worker is for worker processes: give it to DataLoader(worker_init_fn=seed_worker); to seed a block "
            "here, use scoped_rng.deterministic(seed)"
        )
    seed = fold_in(info.seed - info.id, "worker", worker_id)
    for stream in ambient_streams():
        stream.seed(seed)
