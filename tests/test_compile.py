"""``torch.compile``: a scope round a compiled call works, and one inside a compiled function runs eagerly."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._dynamo.testing
from torch.nn.functional import dropout

from scoped_rng import RngState, capture, deterministic, dynamo, fixed_seed, fold_in, isolated, replay
from tests import kit

# torch 2.7 does not hand on what is said of a function that is not to be compiled.
TELLS_WHY = "reason" in inspect.signature(torch.compiler.disable).parameters
REFUSED = dynamo.MESSAGE if TELLS_WHY else "Skip inlining `torch.compiler.disable()`d function"
INDUCTOR = pytest.param(
    "inductor",
    # torch scripts functions of its own while it imports inductor, and says that one should not.
    marks=pytest.mark.filterwarnings("ignore:.*torch.jit"),
)
X = torch.linspace(1, 2, 8)


@pytest.fixture(autouse=True)
def nothing_compiled(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start without compiled code, and leave none, nor processes that compile."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "inductor"))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiler(backend: str = "eager") -> Any:
    """Return a backend that counts the graphs it is given."""
    return torch._dynamo.testing.CompileCounterWithBackend(backend)


def noise(x: torch.Tensor) -> torch.Tensor:
    return dropout(x, 0.5) * 2 + torch.rand(8)


class TestRoundACompiledCall:
    @pytest.mark.parametrize(
        ("backend", "make"),
        [
            ("eager", deterministic),
            ("eager", isolated),
            ("aot_eager", deterministic),
            pytest.param("inductor", deterministic, marks=INDUCTOR.marks),
        ],
    )
    def test_the_call_repeats_and_everything_is_put_back(self, backend: str, make: Any) -> None:
        counter = compiler(backend)
        compiled = torch.compile(noise, backend=counter)
        ambient = kit.everything()
        results = []
        for _ in range(3):
            with make(3):
                results.append(compiled(X))
        assert kit.everything() == ambient
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])
        assert counter.frame_count == 1
        with make(4):
            assert not torch.equal(compiled(X), results[0])

    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_a_backend_that_draws_as_eager_does_gives_the_numbers_of_eager(self, backend: str) -> None:
        compiled = torch.compile(noise, backend=compiler(backend))
        with deterministic(3):
            expected = noise(X)
        with deterministic(3):
            assert torch.equal(compiled(X), expected)

    @pytest.mark.parametrize("form", kit.FORMS)
    def test_every_form_may_hold_a_compiled_call(self, form: str) -> None:
        counter = compiler()
        compiled = torch.compile(noise, backend=counter)
        ambient = kit.everything()
        first, again = (kit.FORMS[form](deterministic(3), lambda: compiled(X)) for _ in range(2))
        assert torch.equal(first, again)
        assert counter.frame_count == 1
        assert kit.everything() == ambient

    def test_a_training_step_repeats_with_its_gradients(self) -> None:
        with isolated(0):
            model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))
            data = torch.randn(6, 8)
        compiled = torch.compile(model, backend=compiler("aot_eager"))
        ambient, results = kit.everything(), []
        for _ in range(2):
            model.zero_grad()
            with deterministic(3, also=model):
                loss = compiled(data).square().sum()
                loss.backward()
            results.append([loss, model[0].weight.grad, *(buffer.clone() for buffer in model.buffers())])
        assert all(map(torch.equal, *results))
        assert int(model[1].num_batches_tracked) == 0
        assert kit.everything() == ambient

    def test_a_replayed_call_repeats(self) -> None:
        compiled = torch.compile(noise, backend=compiler())
        state = capture()
        first = compiled(X)
        with replay(state):
            assert torch.equal(compiled(X), first)

    @pytest.mark.skipif(not kit.INDUCTOR_HAS_A_SWITCH, reason="inductor has no switch of its own in this torch")
    @INDUCTOR.marks[0]
    def test_the_switch_of_inductor_is_put_back(self) -> None:
        compiled = torch.compile(noise, backend=compiler("inductor"))
        config = importlib.import_module("torch._inductor.config")
        expected = config.deterministic
        with deterministic(3):
            compiled(X)
            assert config.deterministic
        assert config.deterministic == expected


class TestRecompiling:
    def test_isolated_does_not_compile_again(self) -> None:
        counter = compiler()
        compiled = torch.compile(noise, backend=counter)
        for _ in range(2):
            compiled(X)
            with isolated(3):
                compiled(X)
            with isolated():
                compiled(X)
        assert counter.frame_count == 1

    def test_deterministic_compiles_a_second_time_and_no_more(self) -> None:
        counter = compiler()
        compiled = torch.compile(noise, backend=counter)
        for seed in range(3):
            compiled(X)
            with deterministic(seed):
                compiled(X)
        assert counter.frame_count == 2


# Functions that open a scope themselves. Module level, as users write them.

OUTSIDE = deterministic(3)
STATE: RngState | None = None


def with_deterministic(x: torch.Tensor) -> torch.Tensor:
    before = x + 1
    with deterministic(3):
        inside = dropout(before, 0.5) + torch.rand(8)
    return inside * 2


def with_strict(x: torch.Tensor) -> torch.Tensor:
    before = x + 1
    with deterministic(3, strict=True) as opened:
        inside = dropout(before, 0.5) + opened.seed
    return inside * 2


def with_isolated(x: torch.Tensor) -> torch.Tensor:
    before = x + 1
    with isolated(3):
        inside = dropout(before, 0.5) + torch.rand(8)
    return inside * 2


def with_replay(x: torch.Tensor) -> torch.Tensor:
    before = x + 1
    assert STATE is not None
    with replay(STATE):
        inside = dropout(before, 0.5) + torch.rand(8)
    return inside * 2


def with_two(x: torch.Tensor) -> torch.Tensor:
    before = x + 1
    with isolated(3), deterministic(4):
        inside = dropout(before, 0.5) + torch.rand(8)
    return inside * 2


def with_one_made_outside(x: torch.Tensor) -> torch.Tensor:
    before = x + 1
    with OUTSIDE:
        inside = dropout(before, 0.5) + torch.rand(8)
    return inside * 2


def with_a_loop(x: torch.Tensor) -> torch.Tensor:
    for seed in range(2):
        with deterministic(seed):
            x = dropout(x, 0.5)
    return x + 1


WITHS = [
    with_deterministic,
    with_strict,
    with_isolated,
    with_replay,
    with_two,
    with_one_made_outside,
    with_a_loop,
]


@pytest.fixture(autouse=True)
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "STATE", capture())


def by_name(fn: Any) -> str:
    return str(getattr(fn, "__name__", fn))


class TestAFunctionWithABlock:
    @pytest.mark.parametrize("backend", ["eager", INDUCTOR])
    @pytest.mark.parametrize("fn", WITHS, ids=by_name)
    def test_it_runs_eagerly_and_whole(self, fn: Any, backend: str) -> None:
        counter = compiler(backend)
        expected = fn(X)
        compiled = torch.compile(fn, backend=counter)
        ambient = kit.everything()
        for _ in range(2):
            assert torch.equal(compiled(X), expected)
        assert counter.frame_count == 0
        assert kit.everything() == ambient

    @pytest.mark.parametrize(
        ("fn", "backend"),
        [
            (with_deterministic, "eager"),
            (with_replay, "aot_eager"),
            (with_one_made_outside, "eager"),
            pytest.param(with_isolated, "inductor", marks=INDUCTOR.marks),
        ],
        ids=by_name,
    )
    def test_its_caller_breaks_round_it(self, fn: Any, backend: str) -> None:
        def caller(x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = fn(x * 3) + 1
            return result

        counter = compiler(backend)
        expected = caller(X)
        compiled = torch.compile(caller, backend=counter)
        for _ in range(2):
            assert torch.equal(compiled(X), expected)
        assert counter.frame_count == 2

    def test_a_forward_method_runs_eagerly_and_whole(self) -> None:
        class Module(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                before = x + 1
                with deterministic(3):
                    return dropout(before, 0.5)

        counter, module = compiler(), Module()
        expected = module(X)
        assert torch.equal(torch.compile(module, backend=counter)(X), expected)
        assert counter.frame_count == 0

    @pytest.mark.parametrize("fn", [fn for fn in WITHS if fn is not with_one_made_outside], ids=by_name)
    def test_under_fullgraph_the_error_says_to_move_the_scope_outside(self, fn: Any) -> None:
        ambient = kit.everything()
        with pytest.raises(torch._dynamo.exc.Unsupported, match=re.escape(REFUSED)):
            torch.compile(fn, backend="eager", fullgraph=True)(X)
        assert kit.everything() == ambient

    def test_under_fullgraph_a_scope_made_outside_is_refused_by_dynamo(self) -> None:
        # Dynamo does not come as far as asking what it is that it cannot enter, up to torch 2.13.
        message = "Dynamo does not know how to enter a `Scope` context manager."
        with pytest.raises(torch._dynamo.exc.Unsupported, match=f"{re.escape(message)}|{re.escape(REFUSED)}"):
            torch.compile(with_one_made_outside, backend="eager", fullgraph=True)(X)

    @pytest.mark.parametrize("kind", ["torch", "numpy", "module", "list"])
    def test_a_block_with_user_objects_gives_what_eager_gives(self, kind: str) -> None:
        import numpy as np

        also: Any = {
            "torch": torch.Generator(),
            "numpy": np.random.default_rng(0),
            "module": torch.nn.BatchNorm1d(2),
            "list": [torch.Generator(), np.random.default_rng(0)],
        }[kind]

        def fn(x: torch.Tensor) -> torch.Tensor:
            before = x + 1
            with isolated(3, also=also):
                return dropout(before, 0.5) + torch.rand(8)

        expected = fn(X)
        compiled = torch.compile(fn, backend=compiler())
        ambient = kit.everything()
        for _ in range(2):
            assert torch.equal(compiled(X), expected)
        assert kit.everything() == ambient
        with pytest.raises(torch._dynamo.exc.Unsupported, match=re.escape(REFUSED)):
            torch.compile(fn, backend="eager", fullgraph=True)(X)

    def test_what_the_block_calls_repeats(self) -> None:
        def fn(x: torch.Tensor) -> torch.Tensor:
            with deterministic(3):
                return noise(x) + 1

        compiled = torch.compile(fn, backend=compiler())
        ambient = kit.everything()
        assert torch.equal(compiled(X), fn(X))
        assert torch.equal(compiled(X), compiled(X))
        assert kit.everything() == ambient

    def test_an_error_in_the_block_comes_through_and_everything_is_put_back(self) -> None:
        def fn(x: torch.Tensor) -> torch.Tensor:
            with deterministic(3):
                dropout(x, 0.5)
                raise ValueError("from the body")

        ambient = kit.everything()
        with pytest.raises(ValueError, match="from the body"):
            torch.compile(fn, backend=compiler())(X)
        assert kit.everything() == ambient

    def test_a_wrong_seed_is_refused_as_ever(self) -> None:
        def fn(x: torch.Tensor) -> torch.Tensor:
            with deterministic("seven"):
                return x + 1

        message = "a seed must be an int in [0, 2**64), got str 'seven'"
        with pytest.raises(TypeError, match=re.escape(message)):
            torch.compile(fn, backend=compiler())(X)

    def test_a_scope_made_in_a_compiled_function_works_outside(self) -> None:
        def fn(x: torch.Tensor) -> Any:
            return x + 1, deterministic(3)

        result, made = torch.compile(fn, backend=compiler())(X)
        assert torch.equal(result, X + 1)
        (expected,) = kit.reference(3)
        with made:
            assert kit.draws() == expected


@fixed_seed(3)
def decorated(x: torch.Tensor) -> torch.Tensor:
    return noise(x) + 1


class Decorated(torch.nn.Module):
    @fixed_seed(3)
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return noise(x) + 1


@fixed_seed(3)
def decorated_generator(x: torch.Tensor) -> Iterator[torch.Tensor]:
    while True:
        yield noise(x) + 1


MODULE = Decorated()
CALLERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "function": lambda x: decorated(x * 3) * 2,
    "forward": lambda x: MODULE(x * 3) * 2,
    "isolated": lambda x: isolated(3)(noise)(x * 3) * 2,
}


class TestADecoratedFunction:
    @pytest.mark.parametrize("backend", ["eager", INDUCTOR])
    @pytest.mark.parametrize("fn", [decorated, MODULE], ids=["function", "module"])
    def test_compiled_it_runs_eagerly_with_all_that_it_calls(self, fn: Any, backend: str) -> None:
        counter = compiler(backend)
        expected = fn(X)
        compiled = torch.compile(fn, backend=counter)
        ambient = kit.everything()
        for _ in range(2):
            assert torch.equal(compiled(X), expected)
        assert counter.frame_count == 0
        assert kit.everything() == ambient

    def test_a_module_compiled_in_place_runs_eagerly(self) -> None:
        counter, module = compiler(), Decorated()
        expected = module(X)
        module.compile(backend=counter)
        assert torch.equal(module(X), expected)
        assert counter.frame_count == 0

    @pytest.mark.parametrize(
        ("kind", "backend"),
        [
            ("function", "eager"),
            ("forward", "eager"),
            ("isolated", "eager"),
            pytest.param("function", "inductor", marks=INDUCTOR.marks),
        ],
    )
    def test_its_caller_breaks_round_it(self, kind: str, backend: str) -> None:
        counter = compiler(backend)
        expected = CALLERS[kind](X)
        compiled = torch.compile(CALLERS[kind], backend=counter)
        ambient = kit.everything()
        for _ in range(2):
            assert torch.equal(compiled(X), expected)
        assert counter.frame_count in (1, 2)
        assert kit.everything() == ambient

    @pytest.mark.parametrize("kind", ["function", "forward"])
    def test_under_fullgraph_the_error_says_to_move_the_scope_outside(self, kind: str) -> None:
        with pytest.raises(torch._dynamo.exc.Unsupported, match=re.escape(REFUSED)):
            torch.compile(CALLERS[kind], backend="eager", fullgraph=True)(X)

    def test_compiled_under_fullgraph_it_is_refused(self) -> None:
        with pytest.raises(RuntimeError, match="fullgraph=True found no compiled frames"):
            torch.compile(decorated, backend="eager", fullgraph=True)(X)

    def test_a_generator_that_a_compiled_function_consumes_gives_what_eager_gives(self) -> None:
        def consume(x: torch.Tensor) -> torch.Tensor:
            generator = decorated_generator(x * 3)
            result = next(generator) + next(generator)
            generator.close()
            return result * 2

        expected = consume(X)
        compiled = torch.compile(consume, backend=compiler())
        ambient = kit.everything()
        assert torch.equal(compiled(X), expected)
        assert kit.everything() == ambient

    def test_a_compiled_function_may_be_decorated(self) -> None:
        counter = compiler()
        compiled = torch.compile(noise, backend=counter)
        wrapped = fixed_seed(3)(compiled)
        with deterministic(3):
            expected = noise(X)
        ambient = kit.everything()
        assert torch.equal(wrapped(X), expected)
        assert torch.equal(wrapped(X), expected)
        assert counter.frame_count == 1
        assert kit.everything() == ambient


class TestStates:
    def test_a_capture_in_a_compiled_function_breaks_the_graph_there(self) -> None:
        def fn(x: torch.Tensor) -> Any:
            before = x + 1
            return capture(), before * 2

        counter, expected = compiler(), capture()
        compiled = torch.compile(fn, backend=counter)
        for _ in range(2):
            state, result = compiled(X)
            assert state == expected
            assert torch.equal(result, (X + 1) * 2)
        with pytest.raises(torch._dynamo.exc.Unsupported, match=re.escape(REFUSED)):
            torch.compile(fn, backend="eager", fullgraph=True)(X)

    def test_a_restore_in_a_compiled_function_is_done_in_its_place(self) -> None:
        def fn(x: torch.Tensor) -> Any:
            first = x + torch.rand(8)
            assert STATE is not None
            STATE.restore()
            return first, x + torch.rand(8)

        compiled = torch.compile(fn, backend=compiler())
        for _ in range(2):
            assert STATE is not None
            STATE.restore()
            first, again = compiled(X)
            assert torch.equal(first, again)
        with pytest.raises(torch._dynamo.exc.Unsupported, match=re.escape(REFUSED)):
            torch.compile(fn, backend="eager", fullgraph=True)(X)

    def test_a_state_dict_goes_through_a_compiled_function(self) -> None:
        def fn(x: torch.Tensor) -> Any:
            assert STATE is not None
            return x + 1, RngState.from_state_dict(STATE.state_dict())

        _, state = torch.compile(fn, backend=compiler())(X)
        assert state == STATE


def test_fold_in_gives_the_same_in_a_compiled_function() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return x + fold_in(0, "layer", 3) % 7

    assert torch.equal(torch.compile(fn, backend=compiler())(X), fn(X))


def run_python(code: str, *arguments: str) -> str:
    """Run a program in a fresh interpreter, with warnings as errors; return what it prints."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.mark.parametrize("use", ["block", "capture"])
def test_the_first_scope_of_a_process_may_be_inside_a_compiled_function(use: str) -> None:
    run_python(
        """
        import sys
        import scoped_rng
        import torch  # after it, so that nothing can have been prepared

        def block(x):
            before = x + 1
            with scoped_rng.deterministic(3):
                return torch.nn.functional.dropout(before, 0.5) + torch.rand(8)

        def capture(x):
            scoped_rng.capture()
            return x + 1

        fn = {"block": block, "capture": capture}[sys.argv[1]]
        x = torch.ones(8)
        compiled = torch.compile(fn, backend="eager")
        first, again = compiled(x), compiled(x)
        assert torch.equal(first, again)
        assert torch.equal(first, fn(x))
        """,
        use,
    )


def test_scopes_import_neither_dynamo_nor_inductor() -> None:
    run_python(
        """
        import sys
        import scoped_rng

        @scoped_rng.fixed_seed
        def draw():
            return 1

        draw()
        with scoped_rng.deterministic(0, strict=True), scoped_rng.isolated():
            state = scoped_rng.capture()
        with scoped_rng.replay(state):
            state.restore()
        assert "torch" in sys.modules
        assert not [name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor"))]
        """
    )


def test_a_torch_that_cannot_be_told_to_skip_frames_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(torch._C, "_dynamo", types.SimpleNamespace())
        drawn = deterministic(0)(kit.draws)
    assert drawn() == kit.reference(0)[0]
    assert dynamo.waiting == []


def test_a_decorated_compiled_function_keeps_its_scope_inside_of_another_compiled_one() -> None:
    inner = fixed_seed(torch.compile(lambda x: x * torch.rand(1), backend="eager"))
    outer = torch.compile(lambda x: inner(x) + 1, backend="eager")
    before = kit.continuation()
    assert outer(torch.ones(1)) == outer(torch.ones(1)) == inner(torch.ones(1)) + 1
    assert kit.continuation() == before
