"""Random state in checkpoints: it comes back exactly, or not at all and with an error that says why."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
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
    RngState,
    StateFormatError,
    StateMismatchError,
    capture,
    deterministic,
    fold_in,
    isolated,
    register_stream,
    unregister_stream,
)
from scoped_rng.checkpoint import StatefulRng, load_state, resume, save_state
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
        with pytest.raises(OSError, match="no more"):
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

    def test_new_streams_are_derived_from_the_saved_seed_each_time_others(self) -> None:
        saved = {**StatefulRng(seed=6).state_dict(), "world_size": 8}
        found = []
        for time in (1, 2):
            rng = StatefulRng(on_topology_change="derive")
            rng.load_state_dict(saved)
            found += kit.continuation(1)
            assert found[-1:] == kit.reference(fold_in(6, "topology", time, "rank", 0))
            saved = {**rng.state_dict(), "world_size": 8}
        assert found[0] != found[1]

    def test_without_a_seed_nothing_is_derived(self) -> None:
        saved = {**StatefulRng().state_dict(), "world_size": 2}
        told = (
            "the state is of 2 ranks, here are 1, and holds no seed to derive from; save it from StatefulRng(seed=...)"
        )
        with pytest.raises(StateMismatchError, match=re.escape(told)):
            StatefulRng(on_topology_change="derive", seed=3).load_state_dict(saved)

    def test_a_scope_has_its_entropy_derived_too(self) -> None:
        saved = {**StatefulRng(seed=6).state_dict(), "world_size": 8}
        found = []
        for _ in range(2):
            with deterministic(len(found)):
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

    @pytest.mark.parametrize("step", ["torch.save", "os.fsync", "os.replace"])
    def test_a_kill_at_any_step_leaves_the_old_file(self, step: str, tmp_path: Path) -> None:
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
            with pytest.raises(StateFormatError, match=r"rng\.pt' is truncated, damaged, or no file of save_state"):
                load_state(tmp_path / "rng.pt")

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
            ({"format": "scoped_rng.state", "version": 1}, "the text of the state is damaged: AttributeError"),
            (random.Random(1), "is truncated, damaged, or no file of save_state(): Weights only load failed"),
        ],
    )
    def test_another_file_is_refused(self, content: Any, message: str, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(StateFormatError, match=re.escape(message)):
            load_state(tmp_path / "other.pt")

    def test_a_file_that_is_not_there_is_said_so(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            load_state(tmp_path / "rng.pt")
        with pytest.raises(FileNotFoundError):
            save_state(tmp_path / "nowhere" / "rng.pt", capture())

    def test_what_is_no_state_is_not_written(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=re.escape("save_state writes the RngState that capture() gives, got dict")):
            save_state(tmp_path / "rng.pt", capture().state_dict())  # type: ignore[arg-type]
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

        with isolated(5):
            unbroken = Run().train()
        with isolated(5):
            run = Run()
            begun = run.train(stop=9)
            checkpoint = through_file({name: part.state_dict() for name, part in run.parts.items()}, tmp_path / "file")
        with isolated():
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
        assert (model.state_dict(), kit.everything()) == before


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
