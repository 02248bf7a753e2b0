"""Random state in checkpoints: it comes back exactly, or not at all and with an error that says why."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import importlib.util
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.utils.data import DataLoader

from scoped_rng import (
    RestoreWarning,
    RngState,
    StateFormatError,
    StateMismatchError,
    capture,
    checkpoint,
    deterministic,
    fold_in,
    isolated,
    register_stream,
    unregister_stream,
)
from scoped_rng.checkpoint import StatefulRng, files, load_state, resume, save_state
from scoped_rng.data import seeded_loader
from scoped_rng.state.text import from_text, to_text
from tests import kit
from tests.fake_device import NAME, FakeGeneratorsModule

ROOT = Path(__file__).parents[1]
NO_GROUP = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def through_file(value: Any, path: Path) -> Any:
    torch.save(value, path)
    return torch.load(path, weights_only=True)


class TestStatefulRng:
    @pytest.mark.parametrize("stream", kit.STREAMS)
    def test_a_stream_goes_on_where_it_was_saved(self, stream: str, tmp_path: Path) -> None:
        rng = StatefulRng()
        kit.draw(stream)
        saved, expected = rng.state_dict(), kit.continuation()
        kit.draw(stream)
        StatefulRng().load_state_dict(through_file(saved, tmp_path / "file"))
        assert kit.continuation() == expected

    def test_it_is_what_checkpoint_tools_ask_for(self) -> None:
        assert isinstance(StatefulRng(), Stateful)

    def test_a_state_is_text_and_numbers_alone(self) -> None:
        saved = StatefulRng(seed=4).state_dict()
        text = saved.pop("rank0")
        assert type(text) is str
        assert saved == {
            "format": "scoped_rng.StatefulRng",
            "version": 1,
            "world_size": 1,
            "seed": 4,
            "derived": 0,
        }

    def test_saving_moves_no_stream(self) -> None:
        before = kit.everything()
        StatefulRng(gather=True).state_dict()
        assert kit.everything() == before

    def test_objects_of_the_users_come_back(self) -> None:
        objects = [np.random.default_rng(1), torch.Generator().manual_seed(2), nn.BatchNorm1d(2), random.Random(3)]
        rng = StatefulRng(also=objects)
        saved = rng.state_dict()
        expected = objects[0].random(), torch.rand(1, generator=objects[1]), objects[3].random()
        objects[2](torch.ones(2, 2))
        rng.load_state_dict(saved)
        assert (objects[0].random(), torch.rand(1, generator=objects[1]), objects[3].random()) == expected
        assert torch.equal(objects[2].running_mean, torch.zeros(2))

    def test_the_fresh_entropy_of_a_scope_comes_back_in_a_scope(self) -> None:
        with deterministic(0):
            rng = StatefulRng()
            saved, expected = rng.state_dict(), np.random.default_rng().random()
            rng.load_state_dict(saved)
            assert np.random.default_rng().random() == expected

    @pytest.mark.parametrize("scope", [contextlib.nullcontext, isolated], ids=["no scope", "isolated"])
    @pytest.mark.parametrize("on_topology_change", ["error", "derive"])
    def test_what_a_seeded_scope_has_saved_is_refused_outside_of_one(self, scope: Any, on_topology_change: Any) -> None:
        with deterministic(0):
            saved = StatefulRng(seed=1).state_dict()
        before = kit.everything()
        told = (
            "the state was saved inside a seeded scope and holds NumPy's fresh entropy (numpy.entropy), which is a "
            "stream only there; resume inside the same scope: with deterministic(seed)"
        )
        with scope(), pytest.raises(StateMismatchError, match=re.escape(told)):
            StatefulRng(on_topology_change=on_topology_change).load_state_dict(saved)
        assert kit.everything() == before

    def test_what_was_saved_outside_is_loaded_inside_and_leaves_the_entropy_of_the_scope(self) -> None:
        saved = StatefulRng().state_dict()
        with deterministic(3):
            expected = np.random.default_rng().random()
        with deterministic(3):
            StatefulRng().load_state_dict(saved)
            assert np.random.default_rng().random() == expected

    @NO_GROUP
    def test_a_distributed_checkpoint_of_one_process_holds_it(self, tmp_path: Path) -> None:
        rng = StatefulRng(also=random.Random(1))
        dcp.save({"rng": rng}, checkpoint_id=str(tmp_path), no_dist=True)
        expected = kit.continuation()
        kit.draws()
        kit.draw("torch gaussian")  # one in store, so that the state has another length
        dcp.load({"rng": rng}, checkpoint_id=str(tmp_path), no_dist=True)
        assert kit.continuation() == expected

    def test_it_takes_20_kilobytes_at_most_and_16_bytes_a_device(self, tmp_path: Path) -> None:
        torch.save(StatefulRng(seed=2**64 - 1).state_dict(), tmp_path / "rng.pt")
        save_state(tmp_path / "state.pt", capture())
        sizes = [file.stat().st_size for file in tmp_path.iterdir()]
        assert max(sizes) <= 20_000
        devices = {f"cuda:{index}": {"kind": "torch", "device": "cuda", "bytes": bytes(16)} for index in range(8)}
        save_state(tmp_path / "state.pt", RngState({**capture()._packed, **devices}))
        assert (tmp_path / "state.pt").stat().st_size <= 20_000 + 16 * 8

    def test_other_objects_are_refused_and_nothing_changes(self) -> None:
        saved = StatefulRng(also=random.Random(1)).state_dict()
        before = kit.everything()
        with pytest.raises(StateMismatchError, match=re.escape("the state holds also[0], which is not here")):
            StatefulRng().load_state_dict(saved)
        with pytest.raises(StateMismatchError, match=re.escape("'also[0]' is of another kind in the state")):
            StatefulRng(also=torch.Generator()).load_state_dict(saved)
        assert kit.everything() == before

    @pytest.mark.parametrize("on_topology_change", ["error", "derive"])
    def test_a_restore_that_fails_raises_and_changes_nothing(self, on_topology_change: Any) -> None:
        class Broken(random.Random):
            broken = False

            def setstate(self, state: Any) -> None:
                if self.broken:
                    self.broken = False
                    raise OSError("no more")
                super().setstate(state)

            def seed(self, *args: Any) -> None:
                if self.broken:
                    raise OSError("no more")
                super().seed(*args)

        broken = Broken(1)
        rng = StatefulRng(also=broken, seed=1, on_topology_change=on_topology_change)
        saved = rng.state_dict()
        if on_topology_change == "derive":
            saved["world_size"] = 2
        kit.draws()
        before, broken.broken = kit.everything(), True
        with pytest.raises(OSError, match="no more"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RestoreWarning)
            rng.load_state_dict(saved)
        assert kit.everything() == before


class TestTopology:
    def test_another_number_of_ranks_is_refused_and_nothing_changes(self) -> None:
        saved = {**StatefulRng(seed=1).state_dict(), "world_size": 8}
        before = kit.everything()
        told = (
            "the state is of 8 ranks, here are 1; resume on as many (initialise the devices first), or seed the ranks "
            'anew: StatefulRng(on_topology_change="derive")'
        )
        with pytest.raises(StateMismatchError, match=re.escape(told)):
            StatefulRng().load_state_dict(saved)
        assert kit.everything() == before

    def test_new_streams_are_derived_from_the_saved_seed_and_a_warning_says_so(self) -> None:
        saved = {**StatefulRng(seed=6).state_dict(), "world_size": 8}
        told = (
            "the state is of 8 ranks, here are 1: the streams do not go on from it but are seeded anew by "
            "fold_in(6, 'derived', 1, 8, 1, 'rank', 0), from the seed that it holds; what follows is not the run that "
            "was saved"
        )
        with pytest.warns(RestoreWarning, match=re.escape(told)) as caught:
            StatefulRng(on_topology_change="derive").load_state_dict(saved)
        assert [warning.filename for warning in caught] == [__file__]
        assert kit.continuation(1) == kit.reference(fold_in(6, "derived", 1, 8, 1, "rank", 0))

    def test_where_the_warning_is_an_error_nothing_changes(self) -> None:
        saved = {**StatefulRng(seed=6).state_dict(), "world_size": 8}
        before = kit.everything()
        with pytest.raises(RestoreWarning):
            StatefulRng(on_topology_change="derive").load_state_dict(saved)
        assert kit.everything() == before

    @given(st.lists(st.integers(2, 5), min_size=2, max_size=8), st.integers(0, 2**64 - 1))
    def test_no_stream_comes_twice_in_a_run_whose_number_of_ranks_changes(self, sizes: list[int], seed: int) -> None:
        firsts = [kit.reference(fold_in(seed, "rank", rank))[0] for rank in range(5)]
        rng = StatefulRng(seed=seed)
        with isolated(fold_in(seed, "rank", 0)):
            for size in sizes:  # there and back, as often as wanted
                saved = {**rng.state_dict(), "world_size": size}
                rng = StatefulRng(on_topology_change="derive")
                with pytest.warns(RestoreWarning):
                    rng.load_state_dict(saved)
                firsts += kit.continuation(1)
        assert len(set(firsts)) == 5 + len(sizes)

    def test_without_a_seed_nothing_is_derived(self) -> None:
        saved = {**StatefulRng().state_dict(), "world_size": 2}
        told = (
            "the state is of 2 ranks, here are 1, and holds no seed to derive from on rank 0; save it from "
            "StatefulRng(seed=...)"
        )
        with pytest.raises(StateMismatchError, match=re.escape(told)):
            StatefulRng(on_topology_change="derive", seed=3).load_state_dict(saved)

    def test_a_scope_has_its_entropy_derived_too(self) -> None:
        saved = {**StatefulRng(seed=6).state_dict(), "world_size": 8}
        found = []
        for _ in range(2):
            with deterministic(len(found)):
                with pytest.warns(RestoreWarning):
                    StatefulRng(on_topology_change="derive").load_state_dict(saved)
                found.append(np.random.default_rng().random())
        assert found[0] == found[1]

    def test_a_state_of_no_rank_here_says_of_which_it_is(self) -> None:
        saved = StatefulRng().state_dict()
        del saved["rank0"]
        with pytest.raises(
            StateMismatchError, match="the state is of no rank, this is rank 0 of 1; load the checkpoint"
        ):
            StatefulRng().load_state_dict(saved)

    def test_a_device_that_is_not_here_or_is_new_is_refused_or_derived(self, monkeypatch: pytest.MonkeyPatch) -> None:
        without = StatefulRng(seed=1).state_dict()
        device = FakeGeneratorsModule()
        monkeypatch.setattr(torch, NAME, device, raising=False)
        names = f"{NAME}:0, {NAME}:1"
        before = device.ahead()
        with pytest.raises(
            StateMismatchError, match=f"is of the devices none, initialised here are {names}; resume on"
        ):
            StatefulRng().load_state_dict(without)
        assert device.ahead() == before
        rng = StatefulRng(seed=1, on_topology_change="derive")
        having = rng.state_dict()
        with pytest.warns(
            RestoreWarning, match=f"devices none, initialised here are {names}: the streams do not go on"
        ):
            rng.load_state_dict(without)
        assert device.ahead() != before
        rng.load_state_dict(having)
        assert device.ahead() == before
        monkeypatch.delattr(torch, NAME)
        with pytest.raises(
            StateMismatchError, match=f"is of the devices {names}, initialised here are none; resume on"
        ):
            StatefulRng().load_state_dict(having)

    @pytest.mark.parametrize("policy", ["skip", None, True])
    def test_another_policy_is_refused(self, policy: Any) -> None:
        with pytest.raises(ValueError, match='on_topology_change= is "error" or "derive", got'):
            StatefulRng(on_topology_change=policy)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"also": [object()]}, "also= takes random.Random"),
            ({"seed": "x"}, "a seed must be an int"),
            ({"gather": 1}, "gather= is True or False"),
        ],
    )
    def test_wrong_arguments_are_refused(self, options: Any, message: str) -> None:
        with pytest.raises(TypeError, match=re.escape(message)):
            StatefulRng(**options)


class TestAllRanks:
    """With ``"derive"`` they do the same; here the answers of the others are made up."""

    @pytest.fixture
    def other(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Return what makes this the first rank of a group of two, and the other one answer so."""

        class TwoRanks(checkpoint.Ranks):
            rank, size, names, answer = 0, 2, [4, 7], b"\0\0"

            def __init__(self, group: Any, timeout: Any) -> None:
                pass

            def ask(self, answer: Any) -> list[bytes]:
                return [each.ljust(56, b"\0") for each in (answer()[1], self.answer)]

        monkeypatch.setattr(checkpoint, "Ranks", TwoRanks)
        return TwoRanks

    def saved(self, **changes: Any) -> Any:
        with isolated():
            kit.seed_everything(5)
            text = to_text(capture())
        plain = {"format": "scoped_rng.StatefulRng", "version": 1, "world_size": 2, "seed": 9, "derived": 0}
        return {**plain, "rank4": text, **changes}

    def test_what_one_cannot_go_on_from_all_derive_from(self, other: Any) -> None:
        saved = self.saved()
        other.answer = b"\1\0"
        told = (
            "the state is of as many ranks and devices as here, but not so on another rank: the streams do not go on "
            "from it but are seeded anew by fold_in(9, 'derived', 1, 2, 2, 'rank', 0)"
        )
        with pytest.warns(RestoreWarning, match=re.escape(told)):
            StatefulRng(on_topology_change="derive").load_state_dict(saved)
        assert kit.continuation(1) == kit.reference(fold_in(9, "derived", 1, 2, 2, "rank", 0))

    @pytest.mark.parametrize("answer", [b"\0\0", b"\0\1"], ids=["with a seed", "without"])
    def test_what_all_can_restore_is_restored(self, other: Any, answer: bytes) -> None:
        other.answer = answer
        StatefulRng(on_topology_change="derive").load_state_dict(self.saved())
        assert kit.continuation(1) == kit.reference(5)

    @pytest.mark.parametrize(
        ("answer", "changes", "told"),
        [
            (
                b"\0\1",
                {"world_size": 3},
                "the state is of 3 ranks, here are 2, and holds no seed to derive from on rank 7",
            ),
            (b"\1\1", {}, "as here, but not so on another rank, and holds no seed to derive from on rank 7"),
            (b"\1\0", {"seed": None}, "but not so on another rank, and holds no seed to derive from on rank 4"),
        ],
    )
    def test_where_one_has_no_seed_none_derives(self, other: Any, answer: bytes, changes: Any, told: str) -> None:
        before, other.answer = kit.everything(), answer
        with pytest.raises(StateMismatchError, match=re.escape(f"{told}; save it from StatefulRng(seed=...)")):
            StatefulRng(on_topology_change="derive").load_state_dict(self.saved(**changes))
        assert kit.everything() == before

    def test_without_derive_a_rank_loads_by_itself(self, other: Any) -> None:
        other.ask = None
        StatefulRng().load_state_dict(self.saved())
        assert kit.continuation(1) == kit.reference(5)


def test_two_processes_derive_where_one_has_another_device_and_refuse_where_one_refuses(tmp_path: Path) -> None:
    code = """
        import sys, warnings
        import torch
        import torch.distributed as dist
        from scoped_rng import RestoreWarning, StateFormatError, fold_in
        from scoped_rng.checkpoint import StatefulRng
        from scoped_rng.distributed import DesyncError
        from tests import kit
        from tests.fake_device import NAME, FakeGeneratorsModule

        rank = int(sys.argv[1])
        dist.init_process_group("gloo", store=dist.FileStore(sys.argv[2], 2), rank=rank, world_size=2)
        saved = StatefulRng(seed=3).state_dict()
        if rank == 1:
            setattr(torch, NAME, FakeGeneratorsModule())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            StatefulRng(on_topology_change="derive").load_state_dict(saved)
        assert [warning.category for warning in caught] == [RestoreWarning]
        assert kit.continuation(1) == kit.reference(fold_in(3, "derived", 1, 2, 2, "rank", rank))
        before = kit.everything()
        try:
            StatefulRng(on_topology_change="derive").load_state_dict({} if rank else saved)
        except (StateFormatError, DesyncError) as error:
            assert "StateFormatError: this is not the state_dict() of a StatefulRng" in str(error) or rank
            assert isinstance(error, StateFormatError if rank else DesyncError)
        else:
            raise AssertionError("what one rank refuses is loaded by none")
        assert kit.everything() == before
        dist.barrier()
        dist.destroy_process_group()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], cwd=ROOT, env=env, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=120)[1].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told


DAMAGES: dict[str, Any] = {
    "no dict": lambda it: [it],
    "empty": lambda it: {},
    "another format": lambda it: {**it, "format": "scoped_rng.RngState"},
    "a format that is no str": lambda it: {**it, "format": torch.zeros(2)},
    "another version": lambda it: {**it, "version": 2},
    "a version that is a bool": lambda it: {**it, "version": True},
    "no ranks": lambda it: {**it, "world_size": 0},
    "ranks in letters": lambda it: {**it, "world_size": "1"},
    "a seed that is negative": lambda it: {**it, "seed": -1},
    "a seed that is too large": lambda it: {**it, "seed": 2**64},
    "a count that is None": lambda it: {**it, "derived": None},
    "no text": lambda it: {**it, "rank0": b""},
    "None for the text": lambda it: {**it, "rank0": None},
    "a rank alone": lambda it: {"rank0": None},
    "None": lambda it: None,
    "empty text": lambda it: {**it, "rank0": ""},
    "half of the text": lambda it: {**it, "rank0": it["rank0"][: len(it["rank0"]) // 2]},
    "another digest": lambda it: {**it, "rank0": "0" * 16 + it["rank0"][16:]},
    "no JSON": lambda it: {**it, "rank0": it["rank0"].replace("{", "[")},
    "no base64": lambda it: {**it, "rank0": it["rank0"].replace('"base64":"', '"base64":"!')},
    "another key": lambda it: {**it, "rank0": it["rank0"].replace("base64", "base65")},
    "a number for base64": lambda it: {**it, "rank0": re.sub('"base64":"[^"]*"', '"base64":1', it["rank0"])},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_and_nothing_changes(damage: str) -> None:
    saved = DAMAGES[damage](StatefulRng(seed=1).state_dict())
    kit.draws()
    before = kit.everything()
    with pytest.raises(StateFormatError):
        StatefulRng(on_topology_change="derive").load_state_dict(saved)
    assert kit.everything() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank0": None}, "'rank0' of the state is not text but NoneType; it is damaged, take another checkpoint"),
        ({"seed": torch.zeros(9999)}, "'seed' of the state cannot be tensor("),
        ({"version": "x" * 9999}, "the state is of version 'xxxxxxxxxxxx...xxxxxxxxxxxxx', this is for version 1"),
    ],
)
def test_an_error_says_what_is_damaged_in_a_few_words(changes: Any, message: str) -> None:
    with pytest.raises(StateFormatError, match=re.escape(message)) as caught:
        StatefulRng().load_state_dict({**StatefulRng().state_dict(), **changes})
    assert len(str(caught.value)) < 200


@given(st.data())
def test_any_letter_of_the_text_that_is_changed_is_found_or_does_not_count(data: st.DataObject) -> None:
    text = to_text(capture())
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.characters(codec="ascii").filter(lambda it: it != text[place]))
    with contextlib.suppress(StateFormatError):
        assert from_text(text[:place] + letter + text[place + 1 :]) == capture()


def test_all_kinds_of_objects_go_through_text() -> None:
    objects = [
        np.random.default_rng(1),
        np.random.RandomState(2),
        torch.Generator(),
        nn.BatchNorm1d(2),
        random.Random(3),
    ]
    objects[0].spawn(2)
    objects[4].gauss(0, 1)
    state = capture(also=objects)
    assert from_text(to_text(state)) == state
    assert json.loads(to_text(state).partition(" ")[2])["format"] == "scoped_rng.RngState"


class TestFile:
    def test_a_state_comes_back(self, tmp_path: Path) -> None:
        kit.draws()
        state = capture()
        save_state(tmp_path / "rng.pt", state)
        save_state(str(tmp_path / "rng.pt"), state)
        assert load_state(str(tmp_path / "rng.pt")) == state
        assert [file.name for file in tmp_path.iterdir()] == ["rng.pt"]
        assert sorted(torch.load(tmp_path / "rng.pt", weights_only=True)) == ["format", "state", "version"]

    def test_writing_and_reading_move_no_stream(self, tmp_path: Path) -> None:
        before = kit.everything()
        save_state(tmp_path / "rng.pt", capture())
        load_state(tmp_path / "rng.pt")
        assert kit.everything() == before

    def test_a_file_is_for_whom_the_user_makes_files(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        save_state(tmp_path / "rng.pt", capture())
        assert (tmp_path / "rng.pt").stat().st_mode == (tmp_path / "plain").stat().st_mode

    @pytest.mark.parametrize("step", ["torch.save", "os.fsync", "os.replace"])
    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    def test_what_fails_at_any_step_leaves_the_old_file(
        self, step: str, error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = capture()
        save_state(tmp_path / "rng.pt", state)
        kit.draws()

        def fail(*_: Any) -> None:
            raise error("full")

        module, _, name = step.partition(".")
        monkeypatch.setattr(sys.modules[module], name, fail)
        with pytest.raises(error, match="full"):
            save_state(tmp_path / "rng.pt", capture())
        assert load_state(tmp_path / "rng.pt") == state
        assert [file.name for file in tmp_path.iterdir()] == ["rng.pt"]

    def test_a_file_that_is_replaced_keeps_its_permissions(self, tmp_path: Path) -> None:
        save_state(tmp_path / "rng.pt", capture())
        (tmp_path / "rng.pt").chmod(0o600)
        save_state(tmp_path / "rng.pt", capture())
        assert stat.S_IMODE((tmp_path / "rng.pt").stat().st_mode) == 0o600

    @pytest.mark.parametrize("old", [True, False], ids=["of a file", "of nothing"])
    def test_a_link_stays_and_its_target_is_written(self, old: bool, tmp_path: Path) -> None:
        (tmp_path / "runs").mkdir()
        (tmp_path / "last.pt").symlink_to(Path("runs", "7.pt"))
        if old:
            (tmp_path / "runs" / "7.pt").write_text("old")
        state = capture()
        save_state(tmp_path / "last.pt", state)
        assert (tmp_path / "last.pt").is_symlink()
        assert load_state(tmp_path / "runs" / "7.pt") == load_state(tmp_path / "last.pt") == state
        assert sorted(file.name for file in tmp_path.rglob("*")) == ["7.pt", "last.pt", "runs"]

    def test_a_name_may_be_as_long_as_names_can_be(self, tmp_path: Path) -> None:
        path = tmp_path / ("ü" * 127)
        save_state(path, capture())
        assert load_state(path) == capture()

    def test_what_is_no_plain_file_is_not_replaced(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "circle").symlink_to("circle")
        for path in (tmp_path, tmp_path / "pipe", tmp_path / "circle", "/dev/null"):
            with pytest.raises(FileExistsError, match="save_state writes plain files, and this is none: "):
                save_state(path, capture())
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["circle", "pipe"]

    def test_file_and_folder_are_on_the_disk_before_it_returns(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        fsync, replace = os.fsync, os.replace

        def noted_fsync(handle: int) -> None:
            done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"{os.fstat(handle).st_size > 9999}")
            fsync(handle)

        def noted_replace(*paths: Any) -> None:
            done.append("renamed")
            replace(*paths)

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(os, "replace", noted_replace)
        save_state(tmp_path / "rng.pt", capture())
        assert done == ["True", "renamed", "folder"]

    def test_saves_at_once_leave_a_whole_file_and_nothing_else(self, tmp_path: Path) -> None:
        states = [capture() for _ in range(4) if kit.draws()]
        failures: list[BaseException] = []

        def save(state: RngState) -> None:
            try:
                for _ in range(10):
                    save_state(tmp_path / "rng.pt", state)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=save, args=(state,)) for state in states]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert load_state(tmp_path / "rng.pt") in states
        assert [file.name for file in tmp_path.iterdir()] == ["rng.pt"]

    def test_a_save_under_way_is_left_alone_by_another(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        replace, inner = os.replace, capture()

        def save_between(source: Any, target: Any) -> None:
            monkeypatch.setattr(os, "replace", replace)
            save_state(tmp_path / "rng.pt", inner)
            assert load_state(tmp_path / "rng.pt") == inner
            replace(source, target)

        monkeypatch.setattr(os, "replace", save_between)
        kit.draws()
        save_state(tmp_path / "rng.pt", capture())
        assert load_state(tmp_path / "rng.pt") == capture()
        assert [file.name for file in tmp_path.iterdir()] == ["rng.pt"]

    def test_an_empty_file_beside_may_be_one_that_was_just_begun(self, tmp_path: Path) -> None:
        save_state(tmp_path / "rng.pt", capture())
        kept: list[str] = []
        unlink = os.replace
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", lambda source, target: (kept.append(str(source)), unlink(source, target)))
            save_state(tmp_path / "rng.pt", capture())
        Path(kept[0]).touch()
        save_state(tmp_path / "rng.pt", capture())
        assert Path(kept[0]).exists()

    def test_it_works_where_there_are_no_locks_to_be_had(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> None:
            raise OSError("no locks here")

        monkeypatch.setattr(fcntl, "flock", refuse)
        self.test_a_state_comes_back(tmp_path)

    def test_it_works_where_there_is_no_module_for_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "fcntl", None)
        spec: Any = importlib.util.spec_from_file_location("scoped_rng.checkpoint.windows", files.__file__)
        windows = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(windows)
        for _ in range(2):
            windows.save_state(tmp_path / "rng.pt", capture())
        assert windows.load_state(tmp_path / "rng.pt") == capture()
        assert [file.name for file in tmp_path.iterdir()] == ["rng.pt"]

    @pytest.mark.parametrize("step", ["torch.save", "os.fsync", "os.replace"])
    def test_a_kill_at_any_step_leaves_the_old_file_and_nothing_beside_the_next(
        self, step: str, tmp_path: Path
    ) -> None:
        state = capture()
        save_state(tmp_path / "rng.pt", state)
        code = f"""
            import os, random, signal, torch
            from scoped_rng import capture
            from scoped_rng.checkpoint import save_state
            {step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            save_state({str(tmp_path / "rng.pt")!r}, capture())
        """
        process = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT)
        assert process.returncode == -signal.SIGKILL
        assert load_state(tmp_path / "rng.pt") == state
        (tmp_path / ".scoped_rng-of-another-file").write_text("kept")
        kit.draws()
        save_state(tmp_path / "rng.pt", capture())
        assert load_state(tmp_path / "rng.pt") == capture()
        assert sorted(file.name for file in tmp_path.iterdir()) == [".scoped_rng-of-another-file", "rng.pt"]

    def test_a_folder_that_cannot_be_opened_is_no_trouble(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = os.open

        def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if Path(path).is_dir():
                raise PermissionError(path)
            return opened(path, flags, *args, **kwargs)

        monkeypatch.setattr(os, "open", refuse)
        save_state(tmp_path / "rng.pt", capture())
        assert load_state(tmp_path / "rng.pt") == capture()

    def test_a_file_that_is_truncated_anywhere_is_refused(self, tmp_path: Path) -> None:
        save_state(tmp_path / "rng.pt", capture())
        whole = (tmp_path / "rng.pt").read_bytes()
        for length in range(0, len(whole), 997):
            (tmp_path / "rng.pt").write_bytes(whole[:length])
            told = f"{str(tmp_path / 'rng.pt')!r}: the file is truncated, damaged, or none of save_state() ("
            with pytest.raises(StateFormatError, match=re.escape(told)) as caught:
                load_state(tmp_path / "rng.pt")
            assert str(caught.value).endswith("); take another checkpoint")
            assert ("(it is empty)" in str(caught.value)) == (length == 0)

    def test_a_file_with_any_byte_changed_is_refused_or_is_the_same_state(self, tmp_path: Path) -> None:
        state = capture()
        save_state(tmp_path / "rng.pt", state)
        whole = (tmp_path / "rng.pt").read_bytes()
        refused = 0
        for place in range(0, len(whole), 331):
            (tmp_path / "rng.pt").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            try:
                assert load_state(tmp_path / "rng.pt") == state  # a byte of the padding
            except StateFormatError:
                refused += 1
        assert refused > 30

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"model": torch.zeros(2)}, "this is not a file of save_state(): "),
            ([1], "this is not a file of save_state(): "),
            ({"format": "scoped_rng.state", "version": 7}, "the state is of version 7, this is for version 1"),
            ({"format": "scoped_rng.state", "version": 1}, "'state' of the state is not text but NoneType"),
            ({"format": "scoped_rng.state", "version": 1, "state": "x"}, "the text of the state is damaged: "),
            (random.Random(1), "damaged, or none of save_state() (torch.load: Weights only load failed)"),
        ],
    )
    def test_another_file_is_refused(self, content: Any, message: str, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(StateFormatError, match=rf"other\.pt': .*{re.escape(message)}"):
            load_state(tmp_path / "other.pt")

    def test_a_file_that_is_not_there_is_said_so(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            load_state(tmp_path / "rng.pt")
        told = f"save_state makes no folder, make it first: os.makedirs(folder): {str(tmp_path / 'nowhere')!r}"
        with pytest.raises(FileNotFoundError, match=re.escape(told)):
            save_state(tmp_path / "nowhere" / "rng.pt", capture())

    def test_what_is_no_state_is_not_written(self, tmp_path: Path) -> None:
        told = (
            "save_state writes the RngState that capture() gives, got dict; make one of a state dict by RngState.from"
        )
        with pytest.raises(TypeError, match=re.escape(told)) as caught:
            save_state(tmp_path / "rng.pt", capture().state_dict())  # type: ignore[arg-type]
        assert len(str(caught.value)) < 200
        assert not list(tmp_path.iterdir())


class TestResume:
    def test_a_training_goes_on_as_if_it_had_not_been_stopped(self, tmp_path: Path) -> None:
        class Run:
            def __init__(self) -> None:
                with isolated(0):
                    self.model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))
                self.optimizer = torch.optim.Adam(self.model.parameters())
                self.loader = seeded_loader(
                    torch.randn(20, 2, generator=torch.Generator()), seed=1, batch_size=3, shuffle=True
                )
                self.parts: Any = {**vars(self), "rng": StatefulRng()}

            def train(self, stop: int = 100) -> list[float]:
                losses = []
                for _ in range(self.loader.epoch, 2):
                    for batch in self.loader:
                        loss = self.model(batch + random.random()).square().mean()
                        self.optimizer.zero_grad()
                        loss.backward()
                        self.optimizer.step()
                        losses.append(loss.item())
                        if len(losses) == stop:
                            return losses
                return losses

        with deterministic(5):
            unbroken = Run().train()
        with deterministic(5):
            run = Run()
            begun = run.train(stop=9)
            checkpoint = through_file({name: part.state_dict() for name, part in run.parts.items()}, tmp_path / "file")
        with deterministic(6):
            run = Run()
            resume(checkpoint, **run.parts)
            assert begun + run.train() == unbroken

    def test_the_streams_come_last_whatever_the_others_draw(self) -> None:
        class Drawing:
            def load_state_dict(self, state: Any) -> None:
                kit.draws()

        rng = StatefulRng()
        checkpoint, expected = {"rng": rng.state_dict(), "loader": None}, kit.continuation()
        resume(checkpoint, rng=rng, loader=Drawing())
        assert kit.continuation() == expected

    def test_a_part_that_cannot_load_is_refused_before_anything_is_loaded(self) -> None:
        model, rng = nn.Linear(1, 1), StatefulRng()
        checkpoint = {"model": nn.Linear(1, 1).state_dict(), "rng": rng.state_dict(), "loader": 3}
        before = copy.deepcopy(model.state_dict()), kit.everything()
        told = "loader= is DataLoader, which has no load_state_dict(); bring it to where it was yourself, before"
        with pytest.raises(TypeError, match=re.escape(told)):
            resume(checkpoint, model=model, loader=DataLoader([1]), rng=rng)
        told = "the checkpoint has no optimizer, only model, rng, loader; save each part's state_dict() under its name"
        with pytest.raises(StateMismatchError, match=re.escape(told)):
            resume(checkpoint, model=model, rng=rng, optimizer=torch.optim.SGD(model.parameters()))
        with pytest.raises(StateMismatchError, match="the checkpoint has no rng, only nothing"):
            resume({}, rng=rng)
        flat = {f"layers.{place}.weight": None for place in range(100)}
        told = "has no rng, only layers.0.weight, layers.1.weight, layers.2.weight, layers.3.weight, layers.4.weight, "
        with pytest.raises(StateMismatchError, match=re.escape(f"{told}layers.5.weight and 94 more; save each")):
            resume(flat, rng=rng)
        with pytest.raises(TypeError, match=re.escape("rng= is NoneType, which has no load_state_dict(); give a Stat")):
            resume(checkpoint, rng=None)
        assert (model.state_dict(), kit.everything()) == before

    @pytest.mark.parametrize("checkpoint", [None, "rng.pt", [{"rng": None}]], ids=repr)
    def test_what_is_no_checkpoint_is_refused(self, checkpoint: Any) -> None:
        told = (
            f"resume takes a dict with the state_dict() of each part, got {type(checkpoint).__name__} {checkpoint!r}; "
            "read a file with torch.load(path, weights_only=True)"
        )
        with pytest.raises(TypeError, match=re.escape(told)):
            resume(checkpoint, rng=StatefulRng())


def test_a_registered_stream_is_in_the_state() -> None:
    dice = random.Random(4)
    register_stream("dice", dice)
    try:
        rng = StatefulRng()
        saved, expected = rng.state_dict(), dice.random()
        rng.load_state_dict(saved)
        assert dice.random() == expected
    finally:
        unregister_stream("dice")
