"""The same questions asked across the ranks of `torch.distributed`: which must agree, and which must differ.

On any backend, and in any process group: what is to be the same in tensor-parallel and different in data-parallel is
two calls, each with its group of the mesh. Without a process group this process is rank 0 of 1.

What a check costs: each rank sends 64 bytes and gets 64 from every other one: 0.5 kB at 8 ranks, 64 kB at 1,000, 6.4 MB
at 100,000, in one ``all_gather``, whose latency grows with the ranks too. Digesting the streams takes some 30 µs
anywhere, objects as long as hashing their bytes on one core. Measured over gloo on two busy cores, a check of the
streams took 1.9 times a bare ``all_gather`` of 64 bytes with 2 processes, 1.4 with 4 and 1.0 with 8.

Where that is too much, check in a tree: along the rows and then along the columns of a mesh. If all in each row agree,
and all in each column, all agree; at 100,000 ranks in a mesh of 316 by 317 that is 40 kB in place of 6.4 MB.

A difference is told to the ranks of its group alone. Where ranks make calls in several groups, in a tree or in the
dimensions of a mesh, each rank goes through all of them before it raises, and then tells the whole job::

    errors = []
    for dim in ("row", "column"):
        try:
            assert_in_sync(model, group=mesh.get_group(dim))
        except DesyncError as error:
            errors.append(error)  # the other groups still wait for this rank
    found = torch.tensor(len(errors))  # on the device of the backend
    torch.distributed.all_reduce(found)  # the ranks of other groups do not know of it
    if found:
        raise errors[0] if errors else DesyncError("other ranks are not in sync; see what they have raised")
"""

from __future__ import annotations

import json
import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any, SupportsIndex

import torch

from ..errors import DesyncError
from ..scope import Scope
from ..seeds import fold_in
from ..state import RngState, codecs
from ..state.text import from_text, to_text
from ..streams.ambient import ENTROPY, ambient_streams
from ..streams.devices import DeviceStream
from ..streams.registry import REGISTERED, Held, Keyed
from .digests import Digests, Row, digest
from .ranks import Ranks, listed

__all__ = ["DesyncError", "assert_distinct", "assert_in_sync", "rank_seed", "sync_state", "synced"]


def rank_seed(seed: SupportsIndex, group: Any = None) -> int:
    """Derive the seed of this rank: ``fold_in(seed, "rank", rank)``.

    Args:
        seed: the same on every rank.
        group: whose ranks get different seeds, or None for the default group. Ranks with the same place in their groups
            get the same: ``rank_seed(0, mesh.get_group("dp"))`` is one seed in each tensor-parallel group.

    >>> rank_seed(0) == fold_in(0, "rank", 0)
    True
    """
    return fold_in(seed, "rank", Ranks(group).rank)


def assert_in_sync(
    *objects: Any, streams: str | Iterable[str] | None = None, group: Any = None, timeout: float | None = None
) -> None:
    """Check that objects and random streams are the same on every rank, bit for bit.

    Every rank of the group must make the call, with as many objects. One collective of 64 bytes a rank; only where
    something differs, more tell what.

    Args:
        objects: any nesting that `first_difference` takes: models (by the names of their parameters and buffers),
            optimizers, tensors, results. Devices do not count. Of a sharded tensor each rank has another part.
        streams: the names of the global streams that must be the same; None for all of them, with an accelerator's
            (``"cuda"``) that of the device that is current; ``()`` for none.
        group: the process group, or None for the default one.
        timeout: how many seconds to wait for the others, or None for as long as the group does. A rank that has waited
            in vain cannot use the group any more, but can end.

    Raises:
        DesyncError: on every rank, naming the ranks that differ from most others (of two, from the lower one), the
            streams, and the first value inside that differs, or that one of them alone has. Also where a rank makes
            another call, or does not come.
        TypeError: an object cannot be read, or an argument is of the wrong kind; the other ranks get a `DesyncError`,
            as they do for any other error of a call.
        ValueError: an argument is out of range, or this process is not in the group.

    >>> assert_in_sync(torch.nn.Linear(2, 2), {"step": 3})
    """
    ranks, digests = Ranks(group, timeout), Digests()
    by_stream: dict[str, bytes] = {}

    def answer() -> tuple[str, bytes]:
        by_stream.update(_digests_of(streams))
        whole = digest(b"".join(digests.of(value, f"objects[{place}]") for place, value in enumerate(objects)))
        named = f"assert_in_sync({len(objects)} objects, streams={_named(by_stream)})"
        return named, digest(b"".join(by_stream.values())) + whole

    answers = ranks.ask(answer)
    if len(set(answers)) > 1:
        _explain(ranks, answers, by_stream, digests.rows())


def assert_distinct(streams: str | Iterable[str], *, group: Any = None, timeout: float | None = None) -> None:
    """Check that no two ranks have the same random streams, as dropout in data-parallel training must not.

    One collective of 64 bytes a rank; for more than seven streams a second one.

    Args:
        streams: the names of the streams that must differ, such as ``"torch"`` or ``"cuda"``, each for itself.
        group, timeout: as in `assert_in_sync`.

    Raises:
        DesyncError: on every rank, naming the ranks that have the same stream.
        TypeError, ValueError: ``streams`` names none, or none that is here.

    >>> assert_distinct("torch")
    """
    ranks = Ranks(group, timeout)
    by_stream: dict[str, bytes] = {}

    def answer() -> tuple[str, bytes]:
        by_stream.update(_digests_of(streams))
        if not by_stream:
            raise ValueError('streams= names no stream that could differ; pass "torch", say')
        return f"assert_distinct({_named(by_stream)})", b"".join(each[:8] for each in by_stream.values())

    answers = ranks.ask(answer)
    told: dict[str, str] = {}
    odd: set[int] = set()
    for place, name in enumerate(by_stream):
        by_state = ranks.grouped([each[8 * place : 8 * place + 8] for each in answers])
        alike = [group for group in by_state.values() if len(group) > 1]
        if alike:
            told[name] = f"{name} on {', and '.join(map(listed, alike))}"
            odd.update(*alike)
    if told:
        raise DesyncError(
            f"streams that must differ are the same: {'; '.join(told.values())}. Seed each rank with rank_seed(seed)",
            ranks=tuple(sorted(odd)),
            streams=tuple(told),
        )


def sync_state(src: SupportsIndex = 0, group: Any = None, *, timeout: float | None = None) -> None:
    """Put the global streams of every rank to those of the rank ``src``, for good.

    Of an accelerator's devices, the current one takes the state of the current one there.

    Args:
        src: a rank of the group, as counted in it: 0 is the first one of any group.
        group, timeout: as in `assert_in_sync`. Every rank of the group must make the call.

    Raises:
        DesyncError: on every rank, where one has other streams, makes another call or does not come.

    >>> sync_state()
    """
    _put_to_source(src, group, timeout)


def synced(src: SupportsIndex = 0, group: Any = None, *, timeout: float | None = None) -> Scope:
    """Put the streams to those of the rank ``src`` for a block, on every rank; each one's own come back after it.

    Args:
        src, group, timeout: as in `sync_state`. Every rank of the group must enter the block.

    Returns:
        A scope: a context manager and a decorator, to be used as often as wanted.

    >>> with synced(src=0):
    ...     weight = torch.rand(3)  # the same on every rank
    """
    return _Synced(src, group, timeout)


class _Synced(Scope):
    def __init__(self, src: SupportsIndex, group: Any, timeout: float | None) -> None:
        super().__init__("synced", None)
        self._from = src, group, timeout

    def begin(self, plan: list[Held]) -> None:
        _put_to_source(*self._from)


def _global_streams() -> dict[str, Held]:
    """Return the streams that ranks have in common, by name; of an accelerator the current device, as ``"cuda"``."""
    found: dict[str, Held] = {}
    for held in ambient_streams():
        if isinstance(held, DeviceStream):
            name, index = held.subject
            if index == getattr(torch.get_device_module(name), "current_device", lambda: 0)():
                found[name] = Keyed(held)
                found[name].name = name
        elif held.kind and (held is not ENTROPY or ENTROPY.is_seeded()):
            found[held.name] = held
    # Each rank may have registered its own in another order.
    return dict(sorted(found.items(), key=lambda item: item[0] if item[0] in REGISTERED else ""))


def _names(streams: Any) -> set[str] | None:
    if streams is None:
        return None
    names = [streams] if isinstance(streams, str) or not isinstance(streams, Iterable) else list(streams)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f'streams= is the name of a stream, several of them, or None for all, got {streams!r}; pass "torch", say'
        )
    return set(names)


def _named(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _digests_of(streams: Any) -> dict[str, bytes]:
    """Return a digest of the state of each stream, in an order that is the same on every rank."""
    names, here = _names(streams), _global_streams()
    strange = set() if names is None else names - here.keys()
    if strange:
        raise ValueError(
            f"streams= names {', '.join(map(repr, sorted(strange)))}, not of those here: {', '.join(here)}; name "
            "one of these, or register_stream() it"
        )
    return {name: _digest_of(held) for name, held in here.items() if names is None or name in names}


def _digest_of(held: Held) -> bytes:
    value, rest = held.take(), None
    # What the usual streams give is bytes already, and a cached gaussian; to pack them would take five times as long.
    if held.kind == "torch":
        data = value.numpy().tobytes()
    elif held.kind == "python" and isinstance(value[0], bytes):
        data, rest = value
    elif held.kind == "numpy" and isinstance(value[1], bytes):
        _, data, rest, _ = value
    elif held is ENTROPY:
        data, rest = b"", value[1]
    else:
        data = RngState({held.name: codecs.pack(held) or {}}).digest().encode()
    return digest(data + repr(rest).encode())


def _explain(ranks: Ranks, answers: list[bytes], by_stream: dict[str, bytes], rows: list[Row]) -> None:
    """Raise on every rank an error that says which ranks differ from most, and where."""
    usual, _ = Counter(answers).most_common(1)[0]
    reference = answers.index(usual)
    mine = json.dumps([{name: each.hex() for name, each in by_stream.items()}, rows]).encode()
    length = int.from_bytes(ranks.broadcast(len(mine).to_bytes(8, "little"), 8, reference), "little")
    theirs, their_rows = json.loads(ranks.broadcast(mine, length, reference))
    their_rows = [Row(*row) for row in their_rows]
    differing = [name for name, each in by_stream.items() if each.hex() != theirs[name]]
    findings = ranks.gather_texts(json.dumps([differing, *_first_difference(their_rows, rows)]))
    groups = ranks.grouped(list(zip(answers, findings, strict=True)))
    usual_ranks = [name for (each, _), group in groups.items() if each == usual for name in group]
    odd = [(json.loads(finding), group) for (each, finding), group in groups.items() if each != usual]
    told = []
    for (names, path, how), group in odd:
        places = [f"the stream{'s' if len(names) > 1 else ''} {', '.join(names)}"] if names else []
        places += [f"{path} ({how})"] if path else []
        told.append(f"{listed(group)} in {' and '.join(places)}")
    streams = tuple(dict.fromkeys(name for (names, _, _), _ in odd for name in names))
    raise DesyncError(
        f"the ranks are not in sync: {'; '.join(told)}: not as on {listed(usual_ranks)}. Look for what these ranks "
        "alone draw or change before this line"
        + ("; sync_state() gives all of them the streams of one" if streams else ""),
        ranks=tuple(sorted(name for _, group in odd for name in group)),
        streams=streams,
        leaf=next((path for (_, path, _), _ in odd if path), None),
    )


def _first_difference(theirs: list[Row], mine: list[Row]) -> tuple[str | None, str]:
    """Return where two tables first differ, and how: in a part if there is one, since those come first."""
    here, there = ({row.place: row for row in side} for side in (mine, theirs))
    for known in theirs:
        row = here.get(known.place, known)
        if row.digest == known.digest:
            continue
        if row.shown != known.shown:
            return row.path, f"{row.shown} against {known.shown}"
        if row.is_first and known.is_first:  # what is inside comes with both
            for side, other, told in ((mine, there, "only there"), (theirs, here, "missing there")):
                for part in side:
                    if part.parent == row.place and part.place not in other:
                        return part.path, f"{told}: {part.shown}"
        return row.path, f"other bits, {row.shown}"
    return None, ""


def _put_to_source(src: SupportsIndex, group: Any, timeout: float | None) -> None:
    """Put the streams to those of the rank ``src``: on every rank, or on none."""
    ranks, number, text = Ranks(group, timeout), 0, b""
    here: dict[str, Held] = {}

    def answer() -> tuple[str, bytes]:
        nonlocal number, text
        here.update(_global_streams())
        number = _source(src, ranks.size)
        if ranks.rank == number:
            packed = {name: codecs.pack(held) or {} for name, held in here.items()}
            text = to_text(RngState(packed)).encode()
        return f"the streams {_named(here)} of rank {number}", len(text).to_bytes(8, "little")

    told = ranks.ask(answer)
    length = int.from_bytes(told[number][:8], "little")
    told_text = ranks.broadcast(text, length, number).decode()

    def put() -> None:
        for held, value in from_text(told_text).values_for(list(here.values()), (), "error"):
            held.put(value)

    ranks.change(here.values(), f"the streams of rank {number} put", put)


def _source(src: Any, size: int) -> int:
    expected = f"src= is a rank of the group, an int of 0 to {size - 1}"
    if isinstance(src, bool) or not hasattr(type(src), "__index__"):
        raise TypeError(f"{expected}, got {src!r}; for the first rank of any group pass 0")
    number = operator.index(src)
    if not 0 <= number < size:
        raise ValueError(f"{expected}, got {number}; count within the group: its first rank is 0")
    return number
