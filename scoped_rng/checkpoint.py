"""Random state in checkpoints: of one process in a file of its own, and of every rank in whatever a trainer writes."""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import torch

from .distributed.ranks import Ranks, listed
from .errors import StateFormatError, StateMismatchError
from .scope.activation import all_or_none
from .seeds import check_bool, check_seed, fold_in
from .state import RngState, capture
from .state.text import from_text, to_text
from .streams.ambient import ENTROPY, adapt_all, ambient_streams

__all__ = ["StatefulRng", "load_state", "resume", "save_state"]

FORMAT, FILE_FORMAT, VERSION = "scoped_rng.StatefulRng", "scoped_rng.state", 1


class StatefulRng:
    """Be the part of a checkpoint that holds the random streams of every rank.

    It has the two methods that checkpoint tools ask for: the ``Stateful`` protocol of
    ``torch.distributed.checkpoint``, also taken by accelerate's ``register_for_checkpointing`` and written by a
    callback of a few lines elsewhere. The state is text under a key of the rank, so that the ranks' states meet in one
    checkpoint without replacing each other; beside it are the number of ranks and the base seed. All of it loads under
    ``torch.load(weights_only=True)``.

    Restore it last: what else is restored may draw (a plain ``DataLoader`` that is fast-forwarded does). `resume` does.

    Args:
        also: objects of the user's to hold as well, as in `deterministic`.
        seed: the base seed of the run, kept in the checkpoint; ``"derive"`` derives from it.
        gather: have ``state_dict()`` hold the states of all ranks, for tools that write one file from rank 0. Every
            rank must call it then. (`torch.distributed.checkpoint` needs it not: it writes the keys of all ranks.)
        group: the process group, or None for the default one.
        on_topology_change: what to do on loading under another number of ranks, or with other devices: ``"error"``, or
            ``"derive"``: seed the streams of each rank anew from the saved seed and its rank.

    Raises:
        ValueError: an argument is wrong.

    >>> import random, torch
    >>> rng = StatefulRng()
    >>> saved = rng.state_dict()  # goes into any checkpoint
    >>> expected = random.random(), torch.rand(3)
    >>> rng.load_state_dict(saved)
    >>> random.random() == expected[0], torch.equal(torch.rand(3), expected[1])
    (True, True)
    """

    def __init__(
        self,
        *,
        also: Any = (),
        seed: SupportsIndex | None = None,
        gather: bool = False,
        group: Any = None,
        on_topology_change: Literal["error", "derive"] = "error",
    ) -> None:
        if on_topology_change not in ("error", "derive"):
            raise ValueError(f'on_topology_change= is "error" or "derive", got {on_topology_change!r}')
        adapt_all(also)
        self._also = also
        self._seed = None if seed is None else check_seed(seed)
        self._gather = check_bool("gather", gather)
        self._group = group
        self._on_topology_change = on_topology_change
        self._derived = 0  # how often, so that no derived stream comes twice in a run

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this rank, or with ``gather=True`` of all ranks, as a dict of str, int and None."""
        ranks = Ranks(self._group)
        # By the rank in the whole job: groups that write into one checkpoint must not take each other's.
        here = ranks.names[ranks.rank]
        texts = {here: to_text(capture(also=self._also))}
        if self._gather:
            texts = dict(zip(ranks.names, ranks.gather_texts(texts[here]), strict=True))
        return {
            "format": FORMAT,
            "version": VERSION,
            "world_size": ranks.size,
            "seed": self._seed,
            "derived": self._derived,
            **{_key(rank): text for rank, text in texts.items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put the streams of this rank to their saved state: all of them, or none and an error.

        Raises:
            StateFormatError: it is something else, damaged, or of another version.
            StateMismatchError: it is of another number of ranks, other devices or other objects, or not of this rank.
        """
        state = state_dict if isinstance(state_dict, Mapping) else {}
        _check_format(state, FORMAT, "the state_dict() of a StatefulRng")
        size: Any = state.get("world_size")
        derived: Any = state.get("derived")
        seed: Any = state.get("seed")
        for name, number in (("world_size", size), ("derived", derived), ("seed", 0 if seed is None else seed)):
            if type(number) is not int or not int(name == "world_size") <= number < 1 << 64:
                raise StateFormatError(f"{name!r} of the state cannot be {number!r}; take another checkpoint")
        ranks = Ranks(self._group)
        if size != ranks.size:
            self._change(f"{size} ranks, here are {ranks.size}", seed, derived, ranks)
            return
        here = ranks.names[ranks.rank]
        text = state.get(_key(here))
        if text is None:
            numbers = [str(key).removeprefix("rank") for key in state if str(key).startswith("rank")]
            saved_ranks = [int(number) for number in numbers if number.isdecimal()]
            raise StateMismatchError(
                f"the state is of {listed(saved_ranks) if saved_ranks else 'no rank'}, "
                f"this is rank {here} of {ranks.size}; "
                "load the checkpoint that this rank has saved, or save all ranks in one: StatefulRng(gather=True)"
            )
        saved = from_text(text)
        saved_devices, devices = _devices(saved.names), _devices(held.name for held in ambient_streams())
        if saved_devices != devices:
            found = ", ".join(sorted(devices)) or "none"
            told = f"the devices {', '.join(sorted(saved_devices)) or 'none'}, initialised here are {found}"
            self._change(told, seed, derived, ranks)
            return
        saved.restore(also=self._also)
        self._seed, self._derived = self._seed if seed is None else seed, derived

    def _change(self, told: str, seed: int | None, derived: int, ranks: Ranks) -> None:
        if self._on_topology_change == "error":
            raise StateMismatchError(
                f"the state is of {told}; resume on as many (initialise the devices first), or seed the ranks anew: "
                'StatefulRng(on_topology_change="derive")'
            )
        if seed is None:
            raise StateMismatchError(
                f"the state is of {told}, and holds no seed to derive from; save it from StatefulRng(seed=...)"
            )
        child = fold_in(seed, "topology", derived + 1, "rank", ranks.rank)
        plan = [held for held in ambient_streams() if held is not ENTROPY or ENTROPY.is_seeded()]
        plan += adapt_all(self._also)
        all_or_none(plan, lambda: [held.seed(child) for held in plan])
        self._seed, self._derived = seed, derived + 1


def _key(rank: int) -> str:
    return f"rank{rank}"


def _devices(names: Iterable[str]) -> set[str]:
    return {name for name in names if ":" in name}


def resume(checkpoint: Mapping[str, Any], *, rng: Any, **parts: Any) -> None:
    """Load the parts of a checkpoint from the states under their names, and the streams last.

    Whatever is loaded before them may draw, and would move streams that are where they belong already.

    Args:
        checkpoint: a dict with the ``state_dict()`` of each part, under the name that it is given here.
        rng: a `StatefulRng`, under ``"rng"`` in the checkpoint.
        parts: anything with ``load_state_dict()``: ``model=``, ``optimizer=``, ``loader=`` (a `SeededLoader`).

    Raises:
        TypeError: a part has no ``load_state_dict()``; nothing was changed.
        StateMismatchError: the checkpoint lacks a part; nothing was changed.

    >>> model, rng = torch.nn.Linear(2, 2), StatefulRng()
    >>> checkpoint = {"model": model.state_dict(), "rng": rng.state_dict()}
    >>> resume(checkpoint, model=model, rng=rng)
    """
    parts["rng"] = rng  # the last
    for name, part in parts.items():
        if not callable(getattr(part, "load_state_dict", None)):
            raise TypeError(
                f"{name}= is {type(part).__name__}, which has no load_state_dict(); bring it to where it was yourself, "
                "before the streams: a plain DataLoader by taking from it as many batches as were done"
            )
    missing = [name for name in parts if name not in checkpoint]
    if missing:
        raise StateMismatchError(
            f"the checkpoint has no {', '.join(missing)}, only {', '.join(map(str, checkpoint)) or 'nothing'}; save "
            "each part's state_dict() under its name"
        )
    for name, part in parts.items():
        part.load_state_dict(checkpoint[name])


def save_state(path: str | os.PathLike[str], state: RngState) -> None:
    """Write a state to a file, which ``torch.load(weights_only=True)`` reads as well.

    It is written beside and renamed when it is whole and on the disk: a crash at any moment leaves the old file or the
    new one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "rng.pt")
    ...     save_state(path, capture())
    ...     load_state(path) == capture()
    True
    """
    if not isinstance(state, RngState):
        raise TypeError(f"save_state writes the RngState that capture() gives, got {type(state).__name__} {state!r}")
    target = Path(path)
    content = {"format": FILE_FORMAT, "version": VERSION, "state": to_text(state)}
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")  # which no stream is drawn for
    try:
        with open(beside, "xb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def load_state(path: str | os.PathLike[str]) -> RngState:
    """Read back what `save_state` has written.

    Raises:
        OSError: the file is not there, or cannot be read.
        StateFormatError: it is truncated, was changed, or is something else.
    """
    data = Path(path).read_bytes()
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the part of torch that finds the damage raises, OSError included
        raise StateFormatError(
            f"{os.fspath(path)!r} is truncated, damaged, or no file of save_state(): {str(error).partition('.')[0]}; "
            "take another checkpoint"
        ) from error
    content = content if isinstance(content, dict) else {}
    _check_format(content, FILE_FORMAT, f"a file of save_state(): {os.fspath(path)!r}")
    return from_text(content.get("state"))


def _check_format(state: Mapping[str, Any], expected: str, what: str) -> None:
    if not isinstance(state.get("format"), str) or state["format"] != expected:
        raise StateFormatError(f"this is not {what}: 'format' is not {expected!r}")
    version = state.get("version")
    if type(version) is not int or version != VERSION:
        raise StateFormatError(f"the state is of version {version!r}, this is for version {VERSION}; update scoped_rng")


def _sync_folder(folder: Path) -> None:
    """Have the disk keep the new name; not every system lets one open a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
