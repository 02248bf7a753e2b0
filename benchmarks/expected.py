"""What a scope must get right: a function for each row of the table, which raises where a peer gets it wrong.

Only the streams that a peer covers are looked at. Devices are torch's own CUDA code on a machine without any: CPU
generators stand in for two of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests import kit
from tests.fake_device import FakeLazyBackend

from .outcomes import PASSES, DoesNotApply, Fails, in_child
from .peers import TORCH, Peer

__all__ = ["ROWS"]


class Boom(Exception):
    """What a body raises."""


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Fails(otherwise)


def draw(peer: Peer) -> list[float]:
    """Draw once from each stream that the peer covers."""
    return [kit.draw(stream) for stream in peer.covers]


def ahead(peer: Peer) -> list[list[float]]:
    """Return what the next draws would be, without drawing them."""
    places = [kit.STREAMS.index(stream) for stream in peer.covers]
    return [[drawn[place] for place in places] for drawn in kit.continuation()]


def reference(peer: Peer, seed: Any = 7) -> list[list[float]]:
    """Return the first two draws in a scope of the peer's."""
    return peer.call(seed, lambda: [draw(peer), draw(peer)])


@contextlib.contextmanager
def undisturbed(peer: Peer, otherwise: str) -> Iterator[None]:
    """Expect that the streams are afterwards where they were before."""
    before = ahead(peer)
    yield
    expect(ahead(peer) == before, otherwise)


def body_raises(peer: Peer) -> None:
    for error in (Boom, KeyboardInterrupt):

        def body(error: type[BaseException] = error) -> None:
            draw(peer)
            raise error

        with undisturbed(peer, f"after a {error.__name__} nothing is put back"), contextlib.suppress(error):
            peer.call(7, body)


def rejected_seed(peer: Peer) -> None:
    for seed in (-1, 2**64, 1.5, "7", None, True, [7]):
        with undisturbed(peer, f"the seed {seed!r} leaves the process seeded"), contextlib.suppress(Exception):
            peer.call(seed, lambda: None)


def decorated_suspends(peer: Peer) -> None:
    if peer.decorate is None:
        raise DoesNotApply("it is no decorator")
    expected = reference(peer)
    decorate = peer.decorate(7)

    @decorate
    def generate() -> Iterator[list[float]]:
        yield draw(peer)
        yield draw(peer)

    @decorate
    async def run() -> list[list[float]]:
        first = draw(peer)
        await asyncio.sleep(0)
        return [first, draw(peer)]

    with undisturbed(peer, "the body of a generator moves the streams outside"):
        expect(list(generate()) == expected, "the body of a generator runs outside the scope")
    with undisturbed(peer, "the body of a coroutine moves the streams outside"):
        expect(asyncio.run(run()) == expected, "the body of a coroutine runs outside the scope")


def overlap(peer: Peer) -> None:
    overlap_in_threads(peer)
    if peer.scope is not None:
        overlap_in_tasks(peer)


def overlap_in_threads(peer: Peer) -> None:
    right, drawn = [reference(peer, 7), reference(peer, 8)], ([], [])  # type: ignore[var-annotated]
    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        def body() -> None:
            drawn[1].append(draw(peer))
            entered.set()
            left.wait(10)
            drawn[1].append(draw(peer))

        try:
            with contextlib.suppress(Exception):
                peer.call(8, body)
        finally:
            entered.set()

    def body() -> None:
        drawn[0].append(draw(peer))
        thread.start()
        entered.wait(10)
        drawn[0].append(draw(peer))

    with undisturbed(peer, "two threads overlap: the streams are lost"):
        thread = threading.Thread(target=other)
        peer.call(7, body)
        left.set()
        thread.join()
    expect(drawn[0] == right[0], "two threads overlap: the first draws the second's numbers")
    expect(drawn[1] in ([], right[1]), "two threads overlap: the second draws wrong numbers")


def overlap_in_tasks(peer: Peer) -> None:
    scope, right = peer.scope, [reference(peer, 7), reference(peer, 8)]
    assert scope

    async def task(seed: int) -> list[list[float]]:
        with scope(seed):
            first = draw(peer)
            await asyncio.sleep(0)
            return [first, draw(peer)]

    async def gather() -> list[Any]:
        return [*await asyncio.gather(task(7), task(8), return_exceptions=True)]

    with undisturbed(peer, "two tasks overlap: the streams are lost"):
        found = asyncio.run(gather())
    for drawn, wanted in zip(found, right, strict=True):
        expect(isinstance(drawn, Exception) or drawn == wanted, "two tasks overlap: one draws the other's numbers")


def outer_closed_first(peer: Peer) -> None:
    if peer.scope is None:
        raise DoesNotApply("it is no context manager")
    with undisturbed(peer, "the streams are where the outer scope's seed has left them"):
        outer, inner = peer.scope(7), peer.scope(8)
        outer.__enter__()
        inner.__enter__()
        draw(peer)
        outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)


def entered_again(peer: Peer) -> None:
    if peer.scope is None:
        raise DoesNotApply("it is no context manager")
    with undisturbed(peer, "what the first entry had saved is lost"):
        scope = peer.scope(7)
        with scope:
            draw(peer)
            with contextlib.suppress(Exception), scope:  # an error is right too
                draw(peer)


def flags_put_back(peer: Peer) -> None:
    before = kit.flags()
    inside = peer.call(7, kit.flags)
    if inside == before:
        raise DoesNotApply("it sets no flags")
    expect(kit.flags() == before, "the flags stay on")
    # As torch's own test utilities do for the whole process.
    torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = False
    try:
        peer.call(7, lambda: None)
    except Exception as error:
        raise Fails(f"it cannot be entered once the flags are frozen: {error}") from error
    expect(kit.flags() == before, "the flags stay on")


def numpy_integer(peer: Peer) -> None:
    for kind in (np.int64, np.uint32):
        try:
            found = reference(peer, kind(7))
        except Exception as error:
            raise Fails(f"{kind.__name__}(7) is refused: {type(error).__name__}") from error
        expect(found == reference(peer), f"{kind.__name__}(7) is another seed than 7")


def large_seeds(peer: Peer) -> None:
    seeds, found = (0, 2**32 - 1, 2**32, 2**64 - 1), {}
    for seed in seeds:
        try:
            found[seed] = dict(zip(peer.covers, peer.call(seed, lambda: draw(peer)), strict=True))
        except Exception as error:
            raise Fails(f"{seed} is refused: {type(error).__name__}") from error
    for stream in peer.covers:
        # torch's CPU generator takes the low 32 bits, whoever seeds it.
        told_apart = (0, 2**32 - 1) if stream in TORCH else seeds
        different = {found[seed][stream] for seed in told_apart}
        expect(len(different) == len(told_apart), f"two of the seeds give the same numbers: {stream}")


def all_devices(peer: Peer) -> None:
    backend = FakeLazyBackend("cuda", pytest.MonkeyPatch())
    backend.init()
    before = backend.ahead()
    if peer.call(7, backend.ahead) == before:
        raise DoesNotApply("it seeds no devices")
    for device in (0, 1):
        expect([it[device] for it in backend.ahead()] == [it[device] for it in before], f"cuda:{device} stays seeded")


def queued_seed(peer: Peer) -> None:
    tracker = torch.cuda._lazy_seed_tracker
    torch.cuda.manual_seed_all(3)  # this one is the user's own
    before, order = vars(tracker).copy(), list(tracker.get_calls())
    peer.call(7, lambda: None)
    expect(vars(tracker) == before and list(tracker.get_calls()) == order, "its seed stays queued")


def stays_uninitialised(peer: Peer) -> None:
    cuda = FakeLazyBackend("cuda", pytest.MonkeyPatch()).module
    peer.call(7, lambda: None)
    expect(not cuda.is_initialized(), "CUDA is initialised on entry")


def forked_child(peer: Peer) -> None:
    patch, forked = pytest.MonkeyPatch(), [False]
    patch.setattr(torch.cuda, "_is_in_bad_fork", lambda: forked[0])
    backend = FakeLazyBackend("cuda", patch)
    expected = reference(peer)
    backend.init()

    def check() -> None:
        forked[0] = True
        expect(reference(peer) == expected, "it draws other numbers in a forked child")

    outcome, why = in_child(check)
    expect(outcome == PASSES, why)


def loads_weights_only(peer: Peer) -> None:
    if peer.collect is None:
        raise DoesNotApply("it has no state to save")
    file = io.BytesIO()
    torch.save(peer.collect(), file)
    file.seek(0)
    try:
        torch.load(file, weights_only=True)
    except Exception as error:
        raise Fails("weights_only=True refuses it") from error


def own_generators(peer: Peer) -> None:
    def make() -> Any:
        return [random.Random(3), np.random.default_rng(3), torch.Generator().manual_seed(3)]

    def roll(own: Any) -> list[float]:
        return [own[0].random(), own[1].random(), torch.rand((), generator=own[2]).item()]

    def inside() -> list[float]:
        if peer.hold is None:
            return peer.call(7, lambda: roll(own))
        with peer.hold(7, own):
            return roll(own)

    own, twin = make(), make()
    expect(inside() == inside(), "they draw on")
    expect(roll(own) == roll(twin), "they have moved")


def returns_the_value(peer: Peer) -> None:
    if peer.decorate is None:
        raise DoesNotApply("it is no decorator")
    expect(peer.decorate(7)(lambda: "value")() == "value", "it returns None")


ROWS: dict[str, Callable[[Peer], None]] = {
    "restores when the body raises, `KeyboardInterrupt` included": body_raises,
    "a rejected seed leaves nothing seeded": rejected_seed,
    "decorates coroutines and generators": decorated_suspends,
    "two threads or tasks that overlap: right, or refused": overlap,
    "outer scope closed before the inner": outer_closed_first,
    "the same object entered again while open": entered_again,
    "torch's determinism flags put back, frozen or not": flags_put_back,
    "takes a NumPy integer as seed": numpy_integer,
    "takes seeds from 2\\*\\*32 on, and tells them apart": large_seeds,
    "restores all the devices that it seeds": all_devices,
    "no seed stays queued for an uninitialised CUDA": queued_seed,
    "does not initialise CUDA": stays_uninitialised,
    "works in a forked child after CUDA was used": forked_child,
    "its state loads under `weights_only=True`": loads_weights_only,
    "covers the user's own generators": own_generators,
    "a decorated function returns its value": returns_the_value,
}
