"""What only a real CUDA device can show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

from scoped_rng import RngState, capture, deterministic, fixed_seed, isolated, replay
from tests import kit

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def draw(device: int = 0) -> list[float]:
    values: list[float] = torch.rand(3, device=f"cuda:{device}").tolist()
    return values + torch.randn(3, device=f"cuda:{device}").tolist()


def ahead() -> list[list[float]]:
    """Return what the next draws on every device would be, without drawing them."""
    torch.cuda.init()
    saved = torch.cuda.get_rng_state_all()
    try:
        return [draw(device) for device in range(torch.cuda.device_count())]
    finally:
        torch.cuda.set_rng_state_all(saved)


def seeded(seed: int) -> list[float]:
    """Return the first draws under ``torch.cuda.manual_seed_all``, without moving anything."""
    torch.cuda.init()
    saved = torch.cuda.get_rng_state_all()
    try:
        torch.cuda.manual_seed_all(seed)
        return draw()
    finally:
        torch.cuda.set_rng_state_all(saved)


@pytest.mark.parametrize("form", kit.FORMS)
@pytest.mark.parametrize("seed", [3, 2**64 - 1])
def test_the_device_draws_from_the_seed_and_goes_on_as_without_the_scope(form: str, seed: int) -> None:
    expected = seeded(seed)
    ambient, devices, first = kit.everything(), ahead(), torch.cuda.initial_seed()
    assert kit.FORMS[form](deterministic(seed), draw) == expected
    assert (kit.everything(), ahead(), torch.cuda.initial_seed()) == (ambient, devices, first)


def test_the_cpu_and_the_device_are_two_streams() -> None:
    (cpu,), cuda = kit.reference(3), seeded(3)
    with deterministic(3):
        assert (kit.draws(), draw()) == (cpu, cuda)
    with deterministic(3):
        assert (draw(), kit.draws()) == (cuda, cpu)


def test_every_device_is_seeded_and_put_back() -> None:
    expected, devices = seeded(3), ahead()
    with deterministic(3):
        assert [draw(device) for device in range(torch.cuda.device_count())] == [expected] * len(devices)
    assert ahead() == devices


def test_the_pattern_of_dropout_repeats() -> None:
    ones = torch.ones(1 << 16, device="cuda")
    with isolated(3):
        first = dropout(ones, 0.5)
    draw()
    with isolated(3):
        assert torch.equal(dropout(ones, 0.5), first)


def test_a_sum_with_collisions_is_the_same_on_every_call() -> None:
    with isolated(0):
        index = torch.randint(0, 16, (1 << 18,), device="cuda")
        values = torch.randn(1 << 18, device="cuda")
    sums = []
    for _ in range(5):
        with deterministic(3):
            sums.append(torch.zeros(16, device="cuda").index_put_((index,), values, accumulate=True))
    assert all(torch.equal(sums[0], later) for later in sums)


@pytest.mark.parametrize("chosen", [["cuda:0"], ["cuda"], [0], [torch.device("cuda", 0)]], ids=str)
def test_a_chosen_device_is_seeded_and_put_back(chosen: Any) -> None:
    expected, devices = seeded(3), ahead()
    with deterministic(3, devices=chosen):
        assert draw() == expected
    assert ahead() == devices


def test_devices_that_are_not_chosen_are_left_alone() -> None:
    first, *_ = ahead()
    with deterministic(3, devices=[]):
        assert draw() == first


def test_an_index_out_of_range_is_refused() -> None:
    torch.cuda.init()
    count = torch.cuda.device_count()
    message = f"the device 'cuda:{count}' is not there: cuda has {count} device(s)"
    with pytest.raises(ValueError, match=re.escape(message)), deterministic(3, devices=[f"cuda:{count}"]):
        pytest.fail("the body has run")


def test_a_generator_of_the_user_is_held() -> None:
    generator = torch.Generator("cuda").manual_seed(5)
    expected = generator.get_state()
    with deterministic(3, also=generator):
        inside = torch.rand(3, device="cuda", generator=generator)
        assert not torch.equal(inside, torch.rand(3, device="cuda"))
    with deterministic(3, also=generator):
        assert torch.equal(torch.rand(3, device="cuda", generator=generator), inside)
    assert torch.equal(generator.get_state(), expected)


def test_a_state_goes_through_a_checkpoint_and_back(tmp_path: Path) -> None:
    draw()
    state = capture()
    first = draw()
    torch.save(state.state_dict(), tmp_path / "state.pt")
    for location in ("cpu", "cuda"):
        loaded = RngState.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True, map_location=location))
        assert loaded == state
        with replay(loaded):
            assert draw() == first
        loaded.restore()
        assert draw() == first


def test_a_module_on_the_device_is_put_back() -> None:
    with isolated(0):
        module, data = torch.nn.BatchNorm1d(4).cuda(), torch.randn(8, 4, device="cuda")
        module(data)
    expected = [buffer.clone() for buffer in module.buffers()]
    state = capture(also=module)
    with deterministic(3, also=module):
        loss = module(data).square().sum()
        module.eval()
        module.cpu()
        module.cuda()
    loss.backward()
    assert module.training
    assert all(map(torch.equal, module.buffers(), expected))
    assert capture(also=module).diff(state) == []


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_a_scope_opened_on_the_thread_that_runs_backward_is_nested(use_reentrant: bool) -> None:
    @fixed_seed(4)
    def scoped(x: torch.Tensor) -> torch.Tensor:
        return dropout(x, 0.5) * x

    x = torch.ones(64, device="cuda", requires_grad=True)
    scoped(x).sum().backward()
    expected, x.grad = x.grad, None
    ambient, devices = kit.everything(), ahead()
    with deterministic(3):
        checkpoint(scoped, x, use_reentrant=use_reentrant).sum().backward()
    assert x.grad is not None
    assert expected is not None
    assert torch.equal(x.grad, expected)
    assert (kit.everything(), ahead()) == (ambient, devices)


def test_a_scope_cannot_be_opened_while_a_graph_is_recorded() -> None:
    x, graph = torch.ones(8, device="cuda"), torch.cuda.CUDAGraph()
    (x * 2).sum()
    torch.cuda.synchronize()
    ambient, devices = kit.everything(), ahead()
    message = (
        "a scope was opened or a state captured while cuda records a graph, when the generators' states cannot be "
        "read; open the scope round the capture, or leave the devices out: devices=[]"
    )
    with torch.cuda.graph(graph):
        y = x * 2
        for refused in (deterministic(3).__enter__, capture):
            with pytest.raises(RuntimeError, match=re.escape(message)):
                refused()
        with deterministic(3, devices=[]):
            y = y + 1
    graph.replay()
    assert torch.equal(y, x * 2 + 1)
    assert (kit.everything(), ahead()) == (ambient, devices)


def test_a_recorded_graph_repeats_under_a_scope() -> None:
    x, graph = torch.ones(1 << 12, device="cuda"), torch.cuda.CUDAGraph()
    dropout(x, 0.5)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        y = dropout(x, 0.5)
    results = []
    for _ in range(2):
        with deterministic(3):
            graph.replay()
            results.append(y.clone())
    assert torch.equal(*results)


def run_python(code: str, **environment: str) -> None:
    """Run a program in a fresh interpreter, with warnings as errors."""
    inherited = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        cwd=Path(__file__).parent.parent,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]


def test_a_scope_does_not_initialise_cuda() -> None:
    run_python(
        """
        import torch
        from scoped_rng import capture, deterministic, fixed_seed, isolated, replay

        with deterministic(3, strict=True), isolated(), replay(capture()):
            fixed_seed(lambda: None)()
        assert not torch.cuda.is_initialized()
        """
    )


@pytest.mark.parametrize("pending", ["torch.manual_seed(7)", "torch.cuda.manual_seed(7)", "pass"])
def test_a_body_that_initialises_cuda_draws_from_the_seed_and_the_device_is_ambient_after_it(pending: str) -> None:
    run_python(
        f"""
        import torch
        from scoped_rng import deterministic

        {pending}
        with deterministic(3):
            drawn = torch.rand(3, device="cuda"), torch.rand(3, device="cuda")
        assert torch.cuda.is_initialized()
        after = torch.rand(3, device="cuda")
        generator = torch.Generator("cuda").manual_seed(3)
        assert all(torch.equal(torch.rand(3, device="cuda", generator=generator), given) for given in drawn)
        if {pending != "pass"}:
            generator.manual_seed(7)
            assert torch.equal(torch.rand(3, device="cuda", generator=generator), after)
        else:
            assert torch.cuda.initial_seed() != 3
            assert not torch.equal(torch.rand(3, device="cuda", generator=generator), after)
        """
    )


def test_a_scope_is_safe_in_a_forked_child() -> None:
    run_python(
        """
        import os
        import warnings
        import torch
        from scoped_rng import capture, deterministic

        warnings.simplefilter("ignore", DeprecationWarning)  # CUDA has threads, and Python 3.12 warns of forking then
        device = torch.rand(3, device="cuda")
        expected = torch.Generator().manual_seed(3)
        with deterministic(4):
            child = os.fork()
            if not child:
                status = 1
                try:
                    with deterministic(3):
                        assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))
                    assert not any(name.startswith("cuda") for name in capture().names)
                    status = 0
                finally:
                    os._exit(status)
            _, status = os.waitpid(child, 0)
        assert status == 0
        """
    )


def test_matrix_products_are_deterministic_where_cuda_starts_within_a_strict_scope() -> None:
    run_python(
        """
        import os
        import torch
        from scoped_rng import deterministic

        with deterministic(3, strict=True):
            x = torch.rand(64, 64, device="cuda")
            x @ x
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        """
    )


def test_a_strict_scope_says_when_it_is_too_late_for_cublas() -> None:
    run_python(
        """
        import re
        import torch
        import pytest
        from scoped_rng import DeterminismWarning, deterministic

        torch.cuda.init()
        message = "start the program with CUBLAS_WORKSPACE_CONFIG=:4096:8 in its environment"
        with pytest.warns(DeterminismWarning, match=re.escape(message)), deterministic(3, strict=True):
            pass
        """
    )
