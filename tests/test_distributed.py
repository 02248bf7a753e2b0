"""Streams, objects and seeds across ranks: every check with 2 and with 4 processes, and what holds in one."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from scoped_rng import RestoreWarning, RngState, StateMismatchError, deterministic, distributed, fold_in
from scoped_rng.checkpoint import StatefulRng
from scoped_rng.distributed import assert_distinct, assert_in_sync, rank_seed, sync_state, synced
from scoped_rng.distributed.ranks import Ranks, listed
from scoped_rng.state import codecs
from scoped_rng.state.text import to_text
from tests import kit
from tests.distributed.checks import CHECKS, SIZES
from tests.fake_device import NAME, FakeGeneratorsModule

ROOT = Path(__file__).parents[1]
MINUTES = 4


def run(command: list[str], **environment: str) -> str:
    """Run a command with everything that it starts in a group of its own, which ends with it in any case."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(
        [sys.executable, *command],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=60 * MINUTES)
    except BaseException:
        process.terminate()  # torchrun ends its workers then, which are in groups of their own
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        raise
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, output
    return output


def torchrun(size: int, *command: str, **environment: str) -> str:
    return run(["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", *command], **environment)


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what starts all checks for so many ranks, once for all processes of the suite, and where they write."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if os.environ.get("PYTEST_XDIST_WORKER") else shared

    def launch(size: int) -> Path:
        folder = shared / f"ranks{size}"
        with open(shared / f"ranks{size}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                folder.mkdir()
                torchrun(size, "-m", "tests.distributed.checks", str(folder))
        return folder

    return launch


PAIRS = [pytest.param(name, size, id=f"{name}-{size}") for size in SIZES for name in CHECKS if size in CHECKS[name][0]]


@pytest.mark.parametrize(("name", "size"), PAIRS)
def test_on_every_rank(name: str, size: int, launched: Any) -> None:
    folder = launched(size)
    for rank in range(size):
        failure = json.loads((folder / f"{rank}.json").read_text())[name]
        assert not failure, f"on rank {rank}:\n{failure}"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("size", SIZES)
def test_a_distributed_checkpoint_is_refused_or_derived_from_in_one_process(size: int, launched: Any) -> None:
    where = str(launched(size) / "dcp")
    before = kit.everything()
    with pytest.raises(StateMismatchError, match=f"the state is of {size} ranks, here are 1"):
        dcp.load({"rng": StatefulRng()}, checkpoint_id=where, no_dist=True)
    assert kit.everything() == before
    rng = StatefulRng(on_topology_change="derive")
    with pytest.warns(RestoreWarning, match="are seeded anew by fold_in"):
        dcp.load({"rng": rng}, checkpoint_id=where, no_dist=True)
    assert kit.continuation(1) == kit.reference(fold_in(3, "derived", 1, size, 1, "rank", 0))


def pair(script: str) -> tuple[Future[str], Future[str]]:
    """Start a script as two ranks that no launcher watches, and return what they will have written."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    begin = """
        import contextlib, os, signal
        import torch
        import torch.distributed as dist
        from scoped_rng.distributed import DesyncError, assert_in_sync
        dist.init_process_group("gloo")
    """
    code = ["-c", textwrap.dedent(begin) + textwrap.dedent(script)]
    environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    with ThreadPoolExecutor() as pool:
        first, second = (pool.submit(run, code, RANK=str(rank), **environment) for rank in range(2))
    return first, second


def test_a_rank_that_dies_is_an_error_on_the_others() -> None:
    survivor, killed = pair("""
        assert_in_sync(1, streams=())
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            assert_in_sync(1, streams=())
        except DesyncError as error:
            print(error)
    """)
    assert killed.exception() is not None
    assert "rank 0 has waited for rank 1, and not all of them came or stayed: " in survivor.result()


def test_a_process_whose_check_timed_out_ends() -> None:
    # The group itself would wait for 30 minutes; rank 1 ends when it hears that rank 0 has.
    waited, absent = pair("""
        if dist.get_rank() == 1:
            with contextlib.suppress(RuntimeError):
                dist.recv(torch.zeros(1), 0)
        else:
            try:
                assert_in_sync(1, streams=(), timeout=0.5)
            except DesyncError as error:
                print(error)
    """)
    assert "rank 0 has waited for rank 1, and not all of them came or stayed: timeout=0.5 seconds" in waited.result()
    absent.result()


def test_a_training_that_is_killed_twice_ends_with_the_same_weights(tmp_path: Path) -> None:
    options = [str(ROOT / "benchmarks" / "workloads" / "digits_ddp.py"), "--epochs", "2", "--checkpoint"]
    expected = torchrun(3, *options, str(tmp_path / "unbroken.pt"))
    options.append(str(tmp_path / "killed.pt"))
    for step, rank in ((5, 1), (17, 0)):
        with pytest.raises(AssertionError, match="SIGKILL"):
            torchrun(3, *options, "--kill", str(step), str(rank))
    output = torchrun(3, *options)
    assert "resumed at step 15" in output
    assert weights(output) == weights(expected)


def weights(output: str) -> str:
    found = re.search(r"^weights (\w{16})$", output, re.MULTILINE)
    assert found, output
    return found[1]


class TestAlone:
    """Without a process group this process is rank 0 of 1."""

    def test_everything_is_in_sync_and_distinct_and_nothing_moves(self) -> None:
        with deterministic(0):
            model, before = torch.nn.Linear(2, 2), kit.everything()
            assert_in_sync(model)
            assert_in_sync(streams="torch", timeout=1)
            assert_distinct(["python", "numpy", "torch"])
            sync_state()
            assert rank_seed(3) == fold_in(3, "rank", 0)
            assert kit.everything() == before

    def test_a_synced_block_goes_on_from_the_own_streams_and_puts_them_back(self) -> None:
        before = kit.everything()
        expected = kit.continuation(1)
        with synced():
            assert [kit.draws()] == expected
        assert kit.everything() == before

        @synced()
        def draws() -> Any:
            return kit.draws()

        assert [draws()] == expected
        assert kit.everything() == before

    def test_a_group_without_an_initialised_one_is_refused(self) -> None:
        with pytest.raises(ValueError, match=re.escape("group= is given, but no process group is initialised; call")):
            assert_in_sync(group=object())

    @pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), True, "5", datetime.timedelta(1)])
    def test_a_timeout_that_is_none_is_refused(self, timeout: Any) -> None:
        kind = ValueError if type(timeout) in (int, float) else TypeError
        told = (
            f"timeout= is a number of seconds above 0, or None to wait as long as the group does, got {timeout!r}; for"
        )
        with pytest.raises(kind, match=re.escape(told)):
            assert_in_sync(timeout=timeout)

    @pytest.mark.parametrize("timeout", [5, 0.5, np.float32(2), np.int64(3), 1e300])
    def test_any_other_number_of_seconds_is_a_timeout(self, timeout: Any) -> None:
        assert_in_sync(timeout=timeout)

    @pytest.mark.parametrize("src", [-1, 1])
    def test_a_source_that_is_not_there_is_refused(self, src: int) -> None:
        told = f"src= is a rank of the group, an int of 0 to 0, got {src}; count within the group: its first rank is 0"
        with pytest.raises(ValueError, match=re.escape(told)):
            sync_state(src)
        before = kit.everything()
        with pytest.raises(ValueError, match="src= is a rank of the group"), synced(src):
            pass
        assert kit.everything() == before

    @pytest.mark.parametrize("src", ["0", 0.0, None, False])
    def test_a_source_that_is_no_number_is_refused(self, src: Any) -> None:
        told = f"src= is a rank of the group, an int of 0 to 0, got {src!r}; for the first rank of any group pass 0"
        with pytest.raises(TypeError, match=re.escape(told)):
            sync_state(src)

    @pytest.mark.parametrize("call", [lambda: assert_in_sync(streams="dice"), lambda: assert_distinct(["dice"])])
    def test_a_stream_that_is_not_there_is_refused(self, call: Any) -> None:
        told = (
            "streams= names 'dice', not of those here: python, numpy, torch; name one of these, or register_stream() it"
        )
        with pytest.raises(ValueError, match=re.escape(told)):
            call()

    @pytest.mark.parametrize("streams", [5, ["torch", 5], b"torch"])
    def test_streams_that_are_no_names_are_refused(self, streams: Any) -> None:
        told = f'streams= is the name of a stream, several of them, or None for all, got {streams!r}; pass "torch", say'
        with pytest.raises(TypeError, match=re.escape(told)):
            assert_in_sync(streams=streams)

    def test_what_cannot_be_read_is_refused(self) -> None:
        with pytest.raises(TypeError, match=re.escape("objects[1] cannot be read: generator objects")):
            assert_in_sync(0, iter(()) and (i for i in ()))


def test_of_an_accelerator_the_current_device_counts_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeGeneratorsModule()
    monkeypatch.setattr(torch, NAME, device, raising=False)
    device.set_device(0)
    there, other = ahead(device)
    text = to_text(RngState({name: codecs.pack(held) for name, held in distributed._global_streams().items()}))
    device.set_device(1)
    assert there != other
    monkeypatch.setattr(Ranks, "broadcast", lambda *_: text.encode())  # as it comes from a rank with the other one
    sync_state()
    assert ahead(device) == [there, there]
    assert_in_sync(streams=NAME)
    with synced():
        device.draws()
        assert ahead(device)[1] != there
    assert ahead(device) == [there, there]


def ahead(device: FakeGeneratorsModule) -> list[Any]:
    """Return what each of the devices would draw."""
    return list(map(list, zip(*device.ahead(), strict=True)))


def test_many_ranks_are_listed_by_the_first_of_them() -> None:
    assert listed(list(range(8))) == "ranks 0, 1, 2, 3, 4, 5, 6 and 7"
    assert listed(list(range(10, 1010))) == "ranks 10, 11, 12, 13, 14, 15 and 994 more"


def test_the_backend_says_where_tensors_go(monkeypatch: pytest.MonkeyPatch) -> None:
    for backends, expected in (
        ("cpu:gloo,cuda:nccl", "cpu"),
        ("cuda:nccl", "cuda"),
        ("cuda:nccl,cpu:gloo", "cpu"),
        ("xpu:ccl,cuda:nccl", "xpu"),
    ):
        monkeypatch.setattr(torch.distributed, "get_backend_config", lambda group, backends=backends: backends)
        assert Ranks()._device() == torch.device(expected)
