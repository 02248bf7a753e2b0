"""Random state in checkpoints: of one process in a file of its own, and of every rank in whatever a trainer writes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, SupportsIndex

from ..distributed.ranks import Ranks, listed
from ..errors import RestoreWarning, StateFormatError, StateMismatchError, shown, warn
from ..seeds import check_bool, check_seed, fold_in
from ..state import RngState, capture, check_format, streams_in_force
from ..state.text import to_text
from ..streams.ambient import ENTROPY, adapt_all
from .files import load_state, save_state, state_under

if TYPE_CHECKING:
    from ..streams.registry import Held

__all__ = ["StatefulRng", "load_state", "resume", "save_state"]

FORMAT, VERSION = "scoped_rng.StatefulRng", 1
_ELSEWHERE = "as many ranks and devices as here, but not so on another rank"


class StatefulRng:
    """Be the part of a checkpoint that holds the random streams of every rank.

    It has the two methods that checkpoint tools ask for: the ``Stateful`` protocol of
    ``torch.distributed.checkpoint``, also taken by accelerate's ``register_for_checkpointing`` and written by a
    callback of a few lines elsewhere. The state is text under a key of the rank, so that the ranks' states meet in one
    checkpoint without replacing each other; beside it are the number of ranks and the base seed. All of it loads under
    ``torch.load(weights_only=True)``.

    Load it last, as `resume` does, since whatever else is loaded may draw. ``torch.distributed.checkpoint`` loads in
    the alphabetical order of the names: give it the last one. What was saved inside a seeded scope is loaded inside
    one: only there is NumPy's fresh entropy a stream.

    Args:
        also: objects of the user's to hold as well, as in `deterministic`.
        seed: the base seed of the run, kept in the checkpoint; ``"derive"`` derives from it.
        gather: have ``state_dict()`` hold the states of all ranks, for tools that write one file from rank 0. Every
            rank must call it then. (`torch.distributed.checkpoint` needs it not: it writes the keys of all ranks.)
        group: the process group, or None for the default one.
        on_topology_change: what to do on loading under another number of ranks, or with other devices: ``"error"``, or
            ``"derive"``: warn, and seed the streams of each rank anew from the saved seed, how often that was done
            before, both numbers of ranks, and its rank in the group. Every rank must load then, for all of them do the
            same: where one has to derive, or refuses, so do the others.
        timeout: with ``gather`` or ``"derive"``, how many seconds to wait for the other ranks, as in `assert_in_sync`.

    Raises:
        TypeError, ValueError: an argument is wrong.

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
        timeout: float | None = None,
    ) -> None:
        if on_topology_change not in ("error", "derive"):
            raise ValueError(f'on_topology_change= is "error" or "derive", got {on_topology_change!r}')
        adapt_all(also)
        self._also = also
        self._seed = None if seed is None else check_seed(seed)
        self._gather = check_bool("gather", gather)
        self._group, self._timeout = group, timeout
        self._on_topology_change = on_topology_change
        self._derived = 0  # how often, so that no derived stream comes twice in a run

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this rank, or with ``gather=True`` of all ranks, as a dict of str, int and None."""
        ranks = Ranks(self._group, self._timeout)
        # By the rank in the whole job: groups that write into one checkpoint must not take each other's.
        here = ranks.names[ranks.rank]
        texts: dict[int, str] = {}

        def answer() -> tuple[str, bytes]:
            texts[here] = to_text(capture(also=self._also))
            return "StatefulRng.state_dict()", b""

        if not self._gather:
            answer()
        else:
            ranks.ask(answer)  # where one rank cannot capture, or has made another call, all hear of it
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
            StateMismatchError: it is of another number of ranks, other devices or other objects, or not of this rank;
                or of a seeded scope, and this is none.
            DesyncError: with ``"derive"``, another rank cannot load what it was given; nothing was changed on any.
        """
        ranks = Ranks(self._group, self._timeout)
        read: list[_Saved] = []

        def answer() -> tuple[str, bytes]:
            read.append(self._read(state_dict, ranks))
            return "StatefulRng.load_state_dict()", bytes([bool(read[0].changed), read[0].seed is None])

        # Without "derive" each rank loads by itself.
        answers = ranks.ask(answer) if self._on_topology_change == "derive" else [answer()[1]]
        derive, saved = any(changed for changed, *_ in answers), read[0]
        seedless = [name for name, (_, lacks, *_) in zip(ranks.names, answers, strict=False) if lacks]
        if derive and seedless:
            raise StateMismatchError(
                f"the state is of {saved.changed or _ELSEWHERE}, and holds no seed to derive from on "
                f"{listed(seedless)}; save it from StatefulRng(seed=...)"
            )
        if derive and saved.seed is not None:
            self._derive(saved.seed, saved, ranks)
        else:
            restore = functools.partial(saved.state.restore, also=self._also)
            if self._on_topology_change == "derive":
                ranks.change(self._plan(), "the streams of StatefulRng put", restore)
            else:
                restore()
            self._seed, self._derived = self._seed if saved.seed is None else saved.seed, saved.derived

    def _read(self, state: Mapping[str, Any], ranks: Ranks) -> _Saved:
        """Return what is saved, when it can be put here; nothing is touched."""
        if not isinstance(state, Mapping):
            raise StateFormatError(f"this is not the state_dict() of a StatefulRng but {type(state).__name__}")
        check_format(state, FORMAT, VERSION, "the state_dict() of a StatefulRng")
        size: Any = state.get("world_size")
        derived: Any = state.get("derived")
        seed: Any = state.get("seed")
        for name, number in (("world_size", size), ("derived", derived), ("seed", 0 if seed is None else seed)):
            if type(number) is not int or not int(name == "world_size") <= number < 1 << 64:
                raise StateFormatError(f"{name!r} of the state cannot be {shown(number)}; take another checkpoint")
        if size != ranks.size:
            return self._changed(f"{size} ranks, here are {ranks.size}", size, seed, derived)
        here = ranks.names[ranks.rank]
        if _key(here) not in state:
            numbers = [str(key).removeprefix("rank") for key in state if str(key).startswith("rank")]
            saved_ranks = [int(number) for number in numbers if number.isdecimal()]
            raise StateMismatchError(
                f"the state is of {listed(saved_ranks) if saved_ranks else 'no rank'}, "
                f"this is rank {here} of {ranks.size}; "
                "load the checkpoint that this rank has saved, or save all ranks in one: StatefulRng(gather=True)"
            )
        found = state_under(state, _key(here))
        ambient = streams_in_force()
        saved_devices, devices = _devices(found.names), _devices(held.name for held in ambient)
        if saved_devices != devices:
            initialised = ", ".join(sorted(devices)) or "none"
            told = f"the devices {', '.join(sorted(saved_devices)) or 'none'}, initialised here are {initialised}"
            return self._changed(told, size, seed, derived)
        if ENTROPY.name in found.names and ENTROPY not in ambient:
            raise StateMismatchError(
                "the state was saved inside a seeded scope and holds NumPy's fresh entropy (numpy.entropy), which is "
                "a stream only there; resume inside the same scope: with deterministic(seed)"
            )
        found.values_for(ambient, adapt_all(self._also), "error")
        return _Saved(size, seed, derived, found, "")

    def _changed(self, told: str, size: int, seed: int | None, derived: int) -> _Saved:
        if self._on_topology_change == "error":
            raise StateMismatchError(
                f"the state is of {told}; resume on as many (initialise the devices first), or seed the ranks anew: "
                'StatefulRng(on_topology_change="derive")'
            )
        return _Saved(size, seed, derived, RngState({}), told)

    def _plan(self) -> list[Held]:
        return [*streams_in_force(), *adapt_all(self._also)]

    def _derive(self, seed: int, saved: _Saved, ranks: Ranks) -> None:
        # How often comes first, so that no stream comes twice in a run that changes its size to and fro.
        path = ("derived", saved.derived + 1, saved.size, ranks.size, "rank", ranks.rank)
        plan, child = self._plan(), fold_in(seed, *path)

        def derive() -> None:
            warn(
                f"the state is of {saved.changed or _ELSEWHERE}: the streams do not go on from it but are seeded anew "
                f"by fold_in({seed}, {', '.join(map(repr, path))}), from the seed that it holds; what follows is not "
                "the run that was saved",
                RestoreWarning,
            )
            for held in plan:
                held.seed(child)

        ranks.change(plan, "the streams of StatefulRng derived", derive)
        self._seed, self._derived = seed, saved.derived + 1


class _Saved(NamedTuple):
    """What a state dict holds for this rank; in ``changed`` what the topology was, if it is another one here."""

    size: int
    seed: int | None
    derived: int
    state: RngState
    changed: str


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
        TypeError: the checkpoint is no dict, or a part has no ``load_state_dict()``; nothing was changed.
        StateMismatchError: the checkpoint lacks a part; nothing was changed.

    >>> import torch
    >>> model, rng = torch.nn.Linear(2, 2), StatefulRng()
    >>> checkpoint = {"model": model.state_dict(), "rng": rng.state_dict()}
    >>> resume(checkpoint, model=model, rng=rng)
    """
    if not isinstance(checkpoint, Mapping):
        raise TypeError(
            f"resume takes a dict with the state_dict() of each part, got {type(checkpoint).__name__} "
            f"{shown(checkpoint)}; read a file with torch.load(path, weights_only=True)"
        )
    parts["rng"] = rng  # the last
    for name, part in parts.items():
        if not callable(getattr(part, "load_state_dict", None)):
            advice = "give a StatefulRng"
            if name != "rng":
                advice = "bring it to where it was yourself, before the streams; in place of a plain DataLoader, which "
                advice += "cannot go on in the middle of an epoch, take seeded_loader()"
            raise TypeError(f"{name}= is {type(part).__name__}, which has no load_state_dict(); {advice}")
    missing = [name for name in parts if name not in checkpoint]
    if missing:
        raise StateMismatchError(
            f"the checkpoint has no {', '.join(missing)}, only {_some(checkpoint) or 'nothing'}; save each part's "
            "state_dict() under its name"
        )
    for name, part in parts.items():
        part.load_state_dict(checkpoint[name])


def _some(names: Iterable[Any]) -> str:
    first, more = [shown(name).strip("'\"") for name in names], ""
    if len(first) > 8:
        first, more = first[:6], f" and {len(first) - 6} more"
    return ", ".join(first) + more
