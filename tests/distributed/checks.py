"""What is checked with several processes: each function on every rank, of one group of 2 and one of 4.

``torchrun --nproc-per-node N -m tests.distributed.checks FOLDER`` runs them all and writes what became of each.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import random
import re
import sys
import traceback
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from scoped_rng import (
    RestoreWarning,
    StateFormatError,
    StateMismatchError,
    deterministic,
    fold_in,
    isolated,
    register_stream,
    unregister_stream,
)
from scoped_rng.checkpoint import StatefulRng, resume
from scoped_rng.distributed import DesyncError, assert_distinct, assert_in_sync, rank_seed, ranks, sync_state, synced
from scoped_rng.distributed.ranks import Ranks
from tests import kit

SIZES = (2, 4)
CHECKS: dict[str, tuple[tuple[int, ...], Callable[[Path], None]]] = {}
LAST = SIZES[-1]


def check(*sizes: int) -> Any:
    def register(function: Any) -> Any:
        CHECKS[function.__name__] = (sizes or SIZES, function)
        return function

    return register


def rank() -> int:
    return dist.get_rank()


def size() -> int:
    return dist.get_world_size()


def others(odd: int) -> str:
    """Return how a message lists the ranks but one."""
    names = [str(name) for name in range(size()) if name != odd]
    return f"ranks {', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else f"rank {names[0]}"


@contextlib.contextmanager
def all_raise(message: str, **attributes: Any) -> Iterator[pytest.ExceptionInfo[DesyncError]]:
    """Expect a DesyncError with the same message on every rank."""
    with pytest.raises(DesyncError, match=re.escape(message)) as caught:
        yield caught
    for name, expected in attributes.items():
        assert getattr(caught.value, name) == expected, name
    texts: list[Any] = [None] * size()
    dist.all_gather_object(texts, str(caught.value))
    assert len(set(texts)) == 1


def model() -> nn.Module:
    with isolated(0):
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


@check()
def ranks_with_the_same_seed_are_in_sync(folder: Path) -> None:
    trained = model()
    optimizer = torch.optim.Adam(trained.parameters())
    with deterministic(7):
        for _ in range(2):
            trained(torch.randn(5, 3)).sum().backward()
            optimizer.step()
            kit.draws()
            assert_in_sync(trained, optimizer, {"step": 3, "names": {"a", "b", "c"}})


@check()
def a_check_moves_no_stream(folder: Path) -> None:
    with deterministic(rank()):
        before = kit.everything()
        assert_in_sync(model(), streams=())
        assert_distinct(["python", "numpy", "torch"])
        with pytest.raises(DesyncError):
            assert_in_sync()
        assert kit.everything() == before


@check()
def one_draw_more_on_one_rank_is_found_on_every_rank(folder: Path) -> None:
    for stream in kit.STREAMS:
        with deterministic(1):
            assert_in_sync()
            kit.draw(stream)
            assert_in_sync()
            if rank() == 1:
                kit.draw(stream)
                if stream == "python gaussian":  # the second one of a pair is cached, and the first had left one
                    kit.draw(stream)
            name = stream.split()[0]
            told = f"the ranks are not in sync: rank 1 in the stream {name}: not as on {others(1)}. Look for what"
            with all_raise(told, ranks=(1,), streams=(name,), leaf=None):
                assert_in_sync(model())
            assert_in_sync(streams={"python", "numpy", "torch"} - {name})


@check()
def an_unseeded_generator_more_on_one_rank_is_found_in_a_scope(folder: Path) -> None:
    with deterministic(1):
        np.random.default_rng()
        assert_in_sync()
        if rank() == size() - 1:
            np.random.default_rng()
        with all_raise(f"rank {size() - 1} in the stream numpy.entropy", streams=("numpy.entropy",)):
            assert_in_sync()


@check()
def a_registered_stream_is_compared_too(folder: Path) -> None:
    dice = random.Random(5)
    register_stream("dice", dice)
    try:
        with deterministic(1):
            assert_in_sync()
            if rank() == 0:
                dice.random()
            with all_raise("in the stream dice", streams=("dice",)):
                assert_in_sync()
    finally:
        unregister_stream("dice")


@check()
def one_weight_that_is_one_ulp_away_is_named_on_every_rank(folder: Path) -> None:
    trained = model()
    assert_in_sync(trained, streams=())
    if rank() == 1:
        with torch.no_grad():
            weight = trained[3].weight
            weight[1, 2] = torch.nextafter(weight[1, 2], torch.tensor(9.0))
    told = f"rank 1 in objects[0].3.weight (other bits, torch.float32 of [2, 4]): not as on {others(1)}."
    with all_raise(told, ranks=(1,), streams=(), leaf="objects[0].3.weight"):
        assert_in_sync(trained, streams=())


@check()
def streams_and_the_leaf_are_told_together(folder: Path) -> None:
    with deterministic(0):
        if rank() == 0:
            torch.rand(1)
            random.random()
        state = {"lr": [0.1, 0.5 if rank() == 0 else 0.25]}
        shown = ("0.5 against 0.25", (0,)) if size() > 2 else ("0.25 against 0.5", (1,))
        told = f"in the streams python, torch and objects[1]['lr'][1] ({shown[0]})"
        with all_raise(told, ranks=shown[1], streams=("python", "torch"), leaf="objects[1]['lr'][1]"):
            assert_in_sync(1, state)


@check(4)
def ranks_are_told_by_what_they_differ_in(folder: Path) -> None:
    value = {"a": int(rank() == 3), "b": int(rank() == 1)}
    told = "rank 1 in objects[0]['b'] (1 against 0); rank 3 in objects[0]['a'] (1 against 0): not as on ranks 0 and 2"
    with all_raise(told, ranks=(1, 3)):
        assert_in_sync(value, streams=())


@check()
def what_only_one_rank_has_is_named_with_who_has_it(folder: Path) -> None:
    usual, more = {"x": {"a": 1}, "y": 0}, {"x": {"a": 1, "b": 2}, "y": 0}
    for ours, theirs, told in ((usual, more, "only there: 2"), (more, usual, "missing there: 2")):
        with all_raise(f"rank 1 in objects[0]['x']['b'] ({told}): not as on {others(1)}", leaf="objects[0]['x']['b']"):
            assert_in_sync(theirs if rank() == 1 else ours, streams=())
    for ours, theirs, path, told in (
        ([0], [0, {"a": 1}], "[1]", "only there: dict"),
        ({"a", "b"}, {"b"}, "{'a'}", "missing there: 'a'"),
        ({("a", 1): 0}, {("a", 1): 0, ("a", 2): 0}, "[('a', 2)]", "only there: 0"),
        ({"a": 1}, OrderedDict(a=1), "", "OrderedDict against dict"),
        (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1), "", "other bits, OrderedDict"),
    ):
        with all_raise(f"rank 1 in objects[0]{path} ({told})", leaf=f"objects[0]{path}"):
            assert_in_sync(theirs if rank() == 1 else ours, streams=())


@check()
def what_is_shared_on_one_rank_alone_is_named_as_a_whole(folder: Path) -> None:
    shared = {"a": 1}
    with all_raise("rank 1 in objects[0]['q'] (other bits, dict)", leaf="objects[0]['q']"):
        assert_in_sync({"p": shared, "q": {"a": 1, "b": 2} if rank() == 1 else shared}, streams=())


@check()
def keys_that_show_an_address_are_the_same_on_every_rank(folder: Path) -> None:
    ballast = [lambda: None for _ in range(7 * rank())]  # so that no address is that of another rank
    value: dict[Any, Any] = {model: 1, object(): 2, (lambda: 1): 3}
    assert_in_sync({**value, "more": {rank_seed, lambda: 2}}, streams=())
    if rank() == 1:
        value[rank] = len(ballast)
    with all_raise("rank 1 in objects[0][<function rank>] (only there: 7)", leaf="objects[0][<function rank>]"):
        assert_in_sync(value, streams=())


@check()
def what_leads_back_is_named_where_it_differs(folder: Path) -> None:
    root: dict[str, Any] = {}
    for name in random.sample("abc", 3):  # in another order on each rank
        root[name] = {"parent": root, "name": name}
    with isolated(0):
        assert_in_sync(root)
    if rank() == 1:
        root["b"]["more"] = 5
    with all_raise("rank 1 in objects[0]['b']['more'] (only there: 5)"):
        assert_in_sync(root, streams=())


@check()
def what_cannot_be_read_on_one_rank_is_an_error_on_every_rank(folder: Path) -> None:
    if rank() == 1:
        with pytest.raises(TypeError, match=re.escape("objects[0] cannot be read: generator objects have no state")):
            assert_in_sync(i for i in range(3))
    else:
        with pytest.raises(
            DesyncError, match=r"the call has failed: TypeError: objects\[0\] cannot be read.* \(on rank 1\)$"
        ):
            assert_in_sync(0)
    with pytest.raises(TypeError, match="cannot be read: a meta or fake tensor"):  # on all of them
        assert_in_sync(torch.empty(1, device="meta"))
    with all_raise("objects[0] (1 against 0): not as on rank") as caught, deterministic(0):
        assert_in_sync(int(rank() == size() - 1))
    assert "sync_state" not in str(caught.value)  # which would not help


WRONG: list[tuple[str, type[Exception], Callable[[], Any]]] = [
    ("streams= names 'dice', not of those here: python,", ValueError, lambda: assert_distinct("dice")),
    ("streams= is the name of a stream, several of them, or", TypeError, lambda: assert_in_sync(streams=5)),  # type: ignore[arg-type]
    ("streams= is the name of a stream, several of them, or", TypeError, lambda: assert_distinct([b"torch"])),  # type: ignore[list-item]
    ("timeout= is a number of seconds above 0, or None", ValueError, lambda: assert_in_sync(timeout=0)),
    ("timeout= is a number of seconds above 0, or None", ValueError, lambda: sync_state(timeout=-1)),
    ("timeout= is a number of seconds above 0, or None", TypeError, lambda: assert_distinct("torch", timeout="5")),  # type: ignore[arg-type]
    ("streams= names no stream that could differ", ValueError, lambda: assert_distinct(())),
    ("src= is a rank of the group, an int of 0 to ", ValueError, lambda: sync_state(-1)),
    ("src= is a rank of the group, an int of 0 to ", ValueError, lambda: sync_state(size())),
    ("src= is a rank of the group, an int of 0 to ", TypeError, lambda: sync_state("0")),  # type: ignore[arg-type]
    ("src= is a rank of the group, an int of 0 to ", TypeError, lambda: synced(True).__enter__()),
]


@check()
def a_wrong_argument_on_one_rank_is_an_error_on_every_rank(folder: Path) -> None:
    before = kit.everything()
    for told, kind, wrong in WRONG:
        for odd in (0, size() - 1):
            if rank() == odd:
                with pytest.raises(kind, match=re.escape(told)):
                    wrong()
            else:
                failed = re.escape(f"the call has failed: {kind.__name__}: {told}")
                with pytest.raises(DesyncError, match=rf"^{failed}.* \(on rank {odd}\)$") as caught:
                    sync_state()
                assert caught.value.ranks == (odd,)
        with pytest.raises(kind, match=re.escape(told)):  # on all of them
            wrong()
    assert kit.everything() == before


@check()
def another_call_on_one_rank_is_an_error_on_every_rank(folder: Path) -> None:
    told = "assert_in_sync(2 objects, streams=none); rank 1: assert_distinct(torch). Have every rank of the group make"
    with all_raise(told, ranks=(1,)):
        if rank() == 1:
            assert_distinct("torch")
        else:
            assert_in_sync(1, 2, streams=())
    more = [f"dice{number}" for number in range(8)]
    for name in more:
        register_stream(name, random.Random(rank()))
    try:
        assert_distinct(["python", *more])  # more than there is room for in one message
        for call in (assert_in_sync, sync_state):
            with all_raise("rank 1: assert_distinct(python, dice0,", ranks=(1,)):
                if rank() == 1:
                    assert_distinct(["python", *more])
                else:
                    call()
        random.seed(0)
        with all_raise("streams that must differ are the same: python on rank", streams=("python",)):
            assert_distinct(["python", *more])
    finally:
        for name in more:
            unregister_stream(name)
    with all_raise("the streams python, numpy, torch of rank 0; rank 1: the streams python, numpy, torch of rank 1"):
        sync_state(int(rank() == 1))
    with all_raise("rank 1: assert_in_sync(0 objects, streams=python, numpy, torch, numpy.entropy)"):
        with deterministic(0) if rank() == 1 else contextlib.nullcontext():
            assert_in_sync()


@check()
def seeds_by_rank_make_distinct_streams(folder: Path) -> None:
    assert rank_seed(3) == fold_in(3, "rank", rank())
    with deterministic(rank_seed(3)):
        assert_distinct(["python", "numpy", "torch", "numpy.entropy"])
        assert_distinct("torch")


@check()
def streams_that_must_differ_and_do_not_are_named_on_every_rank(folder: Path) -> None:
    with deterministic(rank_seed(0)):
        torch.manual_seed(rank() // 2)
        if size() == 2:
            told = "streams that must differ are the same: torch on ranks 0 and 1. Seed each rank with rank_seed(seed)"
        else:
            told = "torch on ranks 0 and 1, and ranks 2 and 3"
        with all_raise(told, ranks=tuple(range(size())), streams=("torch",)):
            assert_distinct(["python", "torch"])
        assert_distinct(["python"])


@check()
def a_check_of_the_streams_is_one_collective_of_64_bytes(folder: Path) -> None:
    sent, gather = [], dist.all_gather

    def noted(outputs: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.nbytes)
        return gather(outputs, tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, deterministic(0):
        patch.setattr(dist, "all_gather", noted)
        assert_in_sync()
        assert_in_sync(model())
        with pytest.raises(DesyncError):
            assert_distinct(["python"])
    assert sent == [64, 64, 64]


@check()
def every_rank_draws_what_the_source_would_have_drawn(folder: Path) -> None:
    for source in (0, size() - 1):
        with deterministic(10 + rank()):
            for _ in range(rank()):  # so that some have a gaussian in store and some have not
                kit.draws()
            wanted: list[Any] = [kit.continuation()]
            mine = wanted[0]
            dist.broadcast_object_list(wanted, src=source)
            sync_state(source)
            assert kit.continuation() == wanted[0]
            assert (mine == wanted[0]) == (rank() == source)
            assert_in_sync()


@check()
def an_entropy_that_is_seeded_is_synchronised_too(folder: Path) -> None:
    with deterministic(rank()):
        sync_state()
        drawn: list[Any] = [None] * size()
        dist.all_gather_object(drawn, np.random.default_rng().random())
    assert len(set(drawn)) == 1


@check()
def the_ranks_own_streams_come_back_behind_a_synced_block(folder: Path) -> None:
    with deterministic(20 + rank()):
        kit.draws()
        before = kit.everything()
        scope = synced(src=1)
        for _ in range(2):
            with scope:
                assert_in_sync()
                kit.draws()
                with synced():
                    assert_in_sync()
                assert_in_sync()
            assert kit.everything() == before
        with pytest.raises(KeyboardInterrupt), scope:
            kit.draws()
            raise KeyboardInterrupt
        assert kit.everything() == before
        assert repr(scope) == "synced()"


@check()
def a_synced_generator_is_synchronised_while_it_runs(folder: Path) -> None:
    @synced(src=0)
    def draws() -> Iterator[float]:
        while True:
            yield random.random()

    with isolated(30 + rank()):
        running, before = draws(), kit.everything()
        drawn = [next(running) for _ in range(3)]
        assert kit.everything() == before
        running.close()
        assert_in_sync(drawn, streams=())
        assert kit.everything() == before


@check()
def a_source_whose_streams_cannot_be_written_is_an_error_on_every_rank(folder: Path) -> None:
    class Opaque(random.Random):
        def getstate(self) -> Any:
            return object()

    register_stream("opaque", Opaque())
    try:
        before = kit.everything()
        if rank() == 0:
            with pytest.raises(TypeError, match="the state of 'opaque' holds object"):
                sync_state()
        else:
            with pytest.raises(DesyncError, match="the call has failed: TypeError: the state of 'opaque' holds object"):
                sync_state()
        assert kit.everything() == before
    finally:
        unregister_stream("opaque")


@check()
def streams_that_cannot_be_put_on_one_rank_are_put_on_none(folder: Path) -> None:
    class Rejecting(random.Random):
        puts = 0

        def setstate(self, state: Any) -> None:
            self.puts += 1
            if rank() == 1 and self.puts == 1:
                raise OSError("not that state")
            super().setstate(state)

    rejecting = Rejecting(rank())
    register_stream("rejecting", rejecting)
    try:
        for call in (sync_state, lambda: synced().__enter__()):
            before, kept, rejecting.puts = kit.everything(), rejecting.getstate(), 0
            with pytest.raises(OSError if rank() == 1 else DesyncError, match="not that state"):
                call()
            assert kit.everything() == before
            assert rejecting.getstate() == kept
    finally:
        unregister_stream("rejecting")


@check()
def streams_may_be_registered_in_any_order(folder: Path) -> None:
    names = ["dice", "cards"][:: 1 if rank() == 0 else -1]
    for name in names:
        register_stream(name, random.Random(3))
    try:
        with isolated(0):
            assert_in_sync()
            sync_state()
    finally:
        for name in names:
            unregister_stream(name)


@check(4)
def sharded_tensors_are_compared_by_their_parts_whatever_mesh_they_are_on(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    with isolated(0):
        net = nn.Sequential(nn.Linear(4, 4))
    parallelize_module(net, mesh["tp"], {"0": ColwiseParallel()})
    assert_in_sync(net, streams=(), group=mesh.get_group("dp"))
    with pytest.raises(DesyncError, match=r"objects\[0\]\.0\.weight\._local_tensor"):
        assert_in_sync(net, streams=(), group=mesh.get_group("tp"))
    with pytest.raises(TypeError, match=r"^group= is a process group, got DeviceMesh; pass mesh.get_group\(name\)$"):
        assert_in_sync(group=mesh)
    if rank() == 3:
        part = net[0].weight.to_local()
        part.data[0, 0] = torch.nextafter(part[0, 0], torch.tensor(9.0))
    if rank() % 2:
        with pytest.raises(DesyncError, match=r"rank 3 in objects\[0\]\.0\.weight\._local_tensor"):
            assert_in_sync(net, streams=(), group=mesh.get_group("dp"))
    else:
        assert_in_sync(net, streams=(), group=mesh.get_group("dp"))


@check()
def where_one_rank_cannot_derive_none_does(folder: Path) -> None:
    saved = StatefulRng(seed=3, gather=True).state_dict()
    saved["world_size"] = 7
    before = kit.everything()
    with warnings.catch_warnings():
        warnings.simplefilter("error" if rank() == 1 else "ignore")
        with pytest.raises(RestoreWarning if rank() == 1 else DesyncError, match="the state is of 7 ranks"):
            StatefulRng(on_topology_change="derive", timeout=60).load_state_dict(saved)
    assert kit.everything() == before


@check()
def a_group_of_some_ranks_is_asked_alone(folder: Path) -> None:
    alone = [dist.new_group([each]) for each in range(size())]
    pair = dist.new_group([0, 1])
    with deterministic(rank()):
        assert_in_sync(rank(), group=alone[rank()])
        assert rank_seed(5, alone[rank()]) == fold_in(5, "rank", 0)
        if rank() < 2:
            with pytest.raises(DesyncError, match="rank 1 in the stream"):
                assert_in_sync(group=pair)
            sync_state(1, pair)
            assert_in_sync(group=pair)
        else:
            for call in (rank_seed, lambda seed, group: assert_in_sync(seed, group=group)):
                with pytest.raises(ValueError, match="this process is not in the group"):
                    call(0, pair)
        if rank() < 2:
            with pytest.raises(ValueError, match="src= is a rank of the group, an int of 0 to 1, got 2; count within"):
                sync_state(2, pair)


@check(4)
def a_mesh_is_the_same_in_one_direction_and_different_in_the_other(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    dp, tp = mesh.get_group("dp"), mesh.get_group("tp")
    with deterministic(rank_seed(0, dp)):
        assert_in_sync(group=tp)
        assert_distinct("torch", group=dp)
        assert_in_sync(model(), streams=(), group=tp)
        if rank() == 3:
            torch.rand(1)
        if rank() < 2:
            assert_in_sync(group=tp)
        else:
            with pytest.raises(DesyncError, match="rank 3 in the stream torch: not as on rank 2") as caught:
                assert_in_sync(group=tp)
            assert caught.value.ranks == (3,)
        sync_state(0, tp)
        assert_in_sync(group=tp)
        assert_distinct(["python", "torch"], group=dp)
        with synced(0, dp):
            assert_in_sync()
        assert_distinct("torch", group=dp)


@check(4)
def rows_and_then_columns_find_what_all_would_find(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("row", "column"))
    found = []
    for value in (0, int(rank() == 2)):
        found.append(0)
        for dim in ("row", "column"):
            try:
                assert_in_sync(value, streams=(), group=mesh.get_group(dim))
            except DesyncError:
                found[-1] += 1
    hit: list[Any] = [None] * size()
    dist.all_gather_object(hit, found)
    assert [each[0] for each in hit] == [0, 0, 0, 0]
    assert [each[1] for each in hit] == [1, 0, 2, 1]


@check(4)
def who_asks_two_groups_and_then_all_hears_of_both(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    dp, tp = mesh.get_group("dp"), mesh.get_group("tp")
    for drift in (False, True):
        with deterministic(rank_seed(0, dp)):
            if drift and rank() == 3:
                torch.rand(1)
            errors = []
            for call in (lambda: assert_in_sync(group=tp), lambda: assert_distinct("torch", group=dp)):
                try:
                    call()
                except DesyncError as error:
                    errors.append(error)
            found = torch.tensor(len(errors))
            dist.all_reduce(found)
            assert (len(errors), int(found)) == ((int(rank() >= 2), 2) if drift else (0, 0))


@check()
def states_of_all_ranks_go_into_one_dict(folder: Path) -> None:
    rng = StatefulRng(seed=5, gather=True)
    with isolated(40 + rank()):
        saved, expected = rng.state_dict(), kit.continuation()
        assert [key for key in saved if key.startswith("rank")] == [f"rank{each}" for each in range(size())]
        kit.draws()
        rng.load_state_dict(saved)
        assert kit.continuation() == expected
    assert_in_sync(saved, streams=())


@check()
def states_of_two_groups_go_into_one_checkpoint(folder: Path) -> None:
    half = size() // 2
    groups = [dist.new_group(list(range(half))), dist.new_group(list(range(half, size())))]
    rng = StatefulRng(group=groups[rank() >= half])
    with isolated(40 + rank()):
        saved, expected = rng.state_dict(), kit.continuation()
        of_all: list[Any] = [None] * size()
        dist.all_gather_object(of_all, saved)
        kit.draws()
        rng.load_state_dict({key: value for each in of_all for key, value in each.items()})
        assert kit.continuation() == expected


@check()
def the_state_of_another_rank_is_refused(folder: Path) -> None:
    rng, saved = StatefulRng(), [StatefulRng().state_dict()]
    assert list(saved[0]) == ["format", "version", "world_size", "seed", "derived", f"rank{rank()}"]
    dist.broadcast_object_list(saved, src=0)
    before = kit.everything()
    if rank():
        told = (
            f"the state is of rank 0, this is rank {rank()} of {size()}; load the checkpoint that this rank has saved"
        )
        with pytest.raises(StateMismatchError, match=re.escape(told)):
            rng.load_state_dict(saved[0])
        assert kit.everything() == before
    else:
        rng.load_state_dict(saved[0])


@check()
def another_number_of_ranks_is_an_error_or_derives_new_streams(folder: Path) -> None:
    pair = [dist.new_group([each, each + 1]) for each in range(0, size(), 2)][rank() // 2]
    alone = [dist.new_group([each]) for each in range(size())][rank()]
    source = pair if size() > 2 else alone
    with isolated(rank()):
        saved = StatefulRng(seed=9, group=source, gather=True).state_dict()
        before = kit.everything()
        told = f"the state is of {source.size()} ranks, here are {size()}; resume on as many"
        with pytest.raises(StateMismatchError, match=re.escape(told)):
            StatefulRng().load_state_dict(saved)
        without_seed = {**saved, "seed": None}
        with pytest.raises(StateMismatchError, match="and holds no seed to derive from"):
            StatefulRng(on_topology_change="derive").load_state_dict(without_seed)
        assert kit.everything() == before

        generator = torch.Generator()
        rng = StatefulRng(on_topology_change="derive", also=generator)
        with pytest.warns(RestoreWarning, match="are seeded anew by fold_in"):
            rng.load_state_dict(saved)
        child = fold_in(9, "derived", 1, source.size(), size(), "rank", rank())
        assert kit.continuation(1) == kit.reference(child)
        assert generator.initial_seed() == fold_in(child, "also", 0)
        assert_distinct(["python", "numpy", "torch"])
        again = rng.state_dict()
        assert (again["world_size"], again["seed"], again["derived"]) == (size(), 9, 1)


@check()
def a_distributed_checkpoint_holds_every_rank(folder: Path) -> None:
    parts = {"model": nn.Linear(2, 2), "rng": StatefulRng(seed=3, also=[np.random.default_rng(rank())])}
    with isolated(50 + rank()):
        kit.draws()
        state = {"model": parts["model"].state_dict(), "rng": parts["rng"]}
        dcp.save(state, checkpoint_id=str(folder / "dcp"))
        expected = kit.continuation()
        kit.draws()
        dcp.load(state, checkpoint_id=str(folder / "dcp"))
        assert kit.continuation() == expected
    (folder / f"expected{rank()}.json").write_text(json.dumps(expected))


@check(4)
def a_distributed_checkpoint_of_more_ranks_is_refused_or_derived_from(folder: Path) -> None:
    half = dist.new_group([0, 1])
    dcp.save({"rng": StatefulRng(seed=3)}, checkpoint_id=str(folder / "four"))
    if rank() < 2:
        before = kit.everything()
        with pytest.raises(StateMismatchError, match="the state is of 4 ranks, here are 2; resume on as many"):
            dcp.load({"rng": StatefulRng(group=half)}, checkpoint_id=str(folder / "four"), process_group=half)
        assert kit.everything() == before
        with isolated():
            rng = StatefulRng(group=half, on_topology_change="derive")
            with pytest.warns(RestoreWarning, match="are seeded anew by fold_in"):
                dcp.load({"rng": rng}, checkpoint_id=str(folder / "four"), process_group=half)
            assert kit.continuation(1) == kit.reference(fold_in(3, "derived", 1, 4, 2, "rank", rank()))


@check(4)
def a_distributed_checkpoint_of_fewer_ranks_is_refused_or_derived_from(folder: Path) -> None:
    half = dist.new_group([0, 1])
    where = str(folder / "two")
    if rank() < 2:
        dcp.save({"rng": StatefulRng(seed=3, group=half)}, checkpoint_id=where, process_group=half)
    dist.barrier()
    partly = dcp.DefaultLoadPlanner(allow_partial_load=True)
    before = kit.everything()
    with pytest.raises(CheckpointException, match=r"Missing key in checkpoint state_dict: rng\.rank2"):
        dcp.load({"rng": StatefulRng()}, checkpoint_id=where)
    with pytest.raises(StateMismatchError, match="the state is of 2 ranks, here are 4"):
        dcp.load({"rng": StatefulRng()}, checkpoint_id=where, planner=partly)
    assert kit.everything() == before
    with isolated():
        with pytest.warns(RestoreWarning, match="are seeded anew by fold_in"):
            dcp.load({"rng": StatefulRng(on_topology_change="derive")}, checkpoint_id=where, planner=partly)
        assert kit.continuation(1) == kit.reference(fold_in(3, "derived", 1, 2, 4, "rank", rank()))
        assert_distinct("torch")


@check()
def a_rank_that_cannot_save_its_streams_is_heard_by_all(folder: Path) -> None:
    class Broken(random.Random):
        def getstate(self) -> Any:
            raise OSError("no state today")

    rng = StatefulRng(gather=True, also=Broken() if rank() == size() - 1 else random.Random())
    with pytest.raises(OSError if rank() == size() - 1 else DesyncError, match="no state today"):
        rng.state_dict()


@check()
def a_damaged_state_changes_nothing_on_any_rank(folder: Path) -> None:
    rng = StatefulRng(gather=True)
    saved = rng.state_dict()
    saved[f"rank{rank()}"] = saved[f"rank{rank()}"].replace("A", "B", 1)
    before = kit.everything()
    with pytest.raises(StateFormatError, match="the text of the state is damaged"):
        resume({"rng": saved}, rng=rng)
    assert kit.everything() == before


@check()
def a_rank_that_does_not_come_is_an_error_in_time(folder: Path) -> None:
    group = dist.new_group(timeout=datetime.timedelta(seconds=5))
    if rank() == 0:
        told = f"rank 0 has waited for {others(0)}, and not all of them came or stayed: timeout=0.2 seconds are over."
        with pytest.raises(DesyncError, match=re.escape(told)):
            assert_in_sync(group=group, timeout=0.2)
    if rank() < 2:
        patient = dist.new_group([0, 1], timeout=datetime.timedelta(seconds=0.3), use_local_synchronization=True)
    if rank() == 0:
        with pytest.raises(DesyncError, match="The group cannot be used any more: end this process"):
            sync_state(group=patient)
    dist.barrier()


@check()
def a_source_that_does_not_come_is_an_error_in_time(folder: Path) -> None:
    group = dist.new_group()
    if rank() == 0:
        with pytest.raises(DesyncError, match=re.escape("timeout=0.2 seconds are over.")):
            Ranks(group, 0.2).broadcast(b"", 8, 1)
    dist.barrier()


@check()
def a_torch_whose_collectives_take_no_timeout_waits_as_well(folder: Path) -> None:
    group = dist.new_group(timeout=datetime.timedelta(seconds=5))
    older = types.ModuleType("dist")
    vars(older).update(vars(dist), distributed_c10d=types.SimpleNamespace(BroadcastOptions=object))
    with pytest.MonkeyPatch.context() as patch, deterministic(rank()):
        patch.setattr(ranks, "dist", older)
        sync_state(timeout=30)
        assert_in_sync(timeout=30)
        if rank() == 0:
            with pytest.raises(DesyncError, match=re.escape("timeout=0.2 seconds are over.")):
                assert_in_sync(group=group, timeout=0.2)
    dist.barrier()


@check()
def who_comes_within_the_timeout_is_waited_for(folder: Path) -> None:
    for _ in range(3):
        with deterministic(rank_seed(0)):
            assert_distinct("torch", timeout=30.5)
            sync_state(timeout=30)
            assert_in_sync(model(), timeout=30)


def main(folder: Path) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    results = {}
    for name, (sizes, function) in CHECKS.items():
        if size() not in sizes:
            continue
        try:
            with isolated():
                function(folder)
            results[name] = ""
        except BaseException:
            results[name] = traceback.format_exc()
        (folder / f"{rank()}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
