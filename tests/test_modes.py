"""A scope restores exactly inside every mode of torch that changes what a tensor operation does."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from scoped_rng import RngState, capture, deterministic, fixed_seed, isolated, replay
from tests import kit


class Counts(TorchDispatchMode):
    """Note every operation that reaches the dispatcher, and run it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class PassesOn(TorchFunctionMode):
    """Stand in front of every torch function, and run it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def meta_by_default() -> Any:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


def inside(mode: Callable[[], Any]) -> Callable[[Callable[[], Any]], Any]:
    def run(body: Callable[[], Any]) -> Any:
        with mode():
            return body()

    return run


def transformed(transform: Callable[..., Any], **options: Any) -> Callable[[Callable[[], Any]], Any]:
    """Run a body inside a function transform, once."""

    def run(body: Callable[[], Any]) -> Any:
        results = []

        def function(x: torch.Tensor) -> torch.Tensor:
            results.append(body())
            return (x * x).sum()

        transform(function, **options)(torch.ones(3, 2))
        (result,) = results
        return result

    return run


def forward_mode(function: Callable[..., Any]) -> Callable[..., Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch scripts its decompositions on the first call
        torch.func.jvp(torch.sin, (torch.ones(1),), (torch.ones(1),))
    return lambda x: torch.func.jvp(function, (x,), (x,))


MODES: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "fake tensors": inside(FakeTensorMode),
    "fake and real tensors": inside(lambda: FakeTensorMode(allow_non_fake_inputs=True)),
    "meta device": inside(lambda: torch.device("meta")),
    "meta by default": inside(meta_by_default),
    "inference": inside(torch.inference_mode),
    "no grad": inside(torch.no_grad),
    "autocast": inside(lambda: torch.autocast("cpu", torch.bfloat16)),
    "anomaly": inside(lambda: torch.autograd.set_detect_anomaly(True, check_nan=False)),
    "dispatch mode": inside(Counts),
    "function mode": inside(PassesOn),
    "vmap": transformed(torch.vmap),
    "vmap, different": transformed(torch.vmap, randomness="different"),
    "vmap, same": transformed(torch.vmap, randomness="same"),
    "grad": transformed(torch.func.grad),
    "vmap of grad": transformed(lambda function: torch.vmap(torch.func.grad(function))),
    "jvp": transformed(forward_mode),
    "functionalize": transformed(torch.func.functionalize),
}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Callable[[Callable[[], Any]], Any]:
    """Run a function inside each of the modes."""
    return MODES[request.param]


def move_all() -> tuple[float, float, float, int]:
    """Move every stream without looking into a tensor, which a fake one does not allow."""
    with contextlib.suppress(RuntimeError):  # vmap refuses to draw unless told how
        torch.rand(3)
    drawn = random.random(), random.gauss(0, 1), float(np.random.standard_normal()), torch.initial_seed()
    torch.default_generator.manual_seed(99)
    return drawn


def seeded_moves(seed: int) -> tuple[float, float, float, int]:
    saved = kit.ambient()
    try:
        kit.seed_everything(seed)
        return move_all()
    finally:
        kit.put_ambient(saved)


@pytest.fixture(autouse=True)
def half_drawn() -> None:
    """Leave a gaussian cached in every stream, which is the harder case."""
    kit.draws()


@pytest.mark.parametrize("form", kit.FORMS)
@pytest.mark.parametrize("scope", [deterministic(3), isolated(3)], ids=repr)
def test_a_body_draws_from_the_seed_and_everything_is_put_back(mode: Any, form: str, scope: Any) -> None:
    expected = seeded_moves(3)
    ambient = kit.everything()
    assert mode(lambda: kit.FORMS[form](scope, move_all)) == expected
    assert kit.everything() == ambient


def test_an_isolated_block_puts_everything_back(mode: Any) -> None:
    ambient = kit.everything()
    mode(lambda: kit.FORMS["with"](isolated(), move_all))
    assert kit.everything() == ambient


def test_a_body_that_raises_leaves_everything_as_it_was(mode: Any) -> None:
    def body() -> None:
        move_all()
        raise ValueError("from the body")

    ambient = kit.everything()
    with pytest.raises(ValueError, match="from the body"):
        mode(lambda: kit.FORMS["with"](deterministic(3), body))
    assert kit.everything() == ambient


def test_the_values_drawn_inside_are_those_of_the_seed() -> None:
    (expected,) = kit.reference(3)
    for manager in (torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu"), Counts, PassesOn):
        with manager(), deterministic(3):
            assert kit.draws() == expected


def test_a_user_generator_is_held(mode: Any) -> None:
    generator, numpy_generator = torch.Generator().manual_seed(5), np.random.default_rng(5)
    state, numpy_state = generator.get_state(), numpy_generator.bit_generator.state

    def body() -> None:
        with deterministic(3, also=[generator, numpy_generator]):
            generator.manual_seed(6)
            numpy_generator.random()

    mode(body)
    assert torch.equal(generator.get_state(), state)
    assert numpy_generator.bit_generator.state == numpy_state


def test_a_state_captured_inside_is_the_state_outside(mode: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    expected = capture(also=generator)
    inside, digest = mode(lambda: (lambda state: (state, state.digest()))(capture(also=generator)))
    assert (inside, digest) == (expected, expected.digest())


def test_a_state_is_restored_inside(mode: Any) -> None:
    state, expected = capture(), kit.continuation()

    def body() -> None:
        move_all()
        state.restore()

    mode(body)
    assert kit.continuation() == expected


def test_a_replay_inside_repeats_and_puts_everything_back(mode: Any) -> None:
    state, expected = capture(), seeded_moves_from_here()
    kit.draws()
    ambient = kit.everything()
    assert mode(lambda: kit.FORMS["with"](replay(state), move_all)) == expected
    assert kit.everything() == ambient


def seeded_moves_from_here() -> tuple[float, float, float, int]:
    saved = kit.ambient()
    try:
        return move_all()
    finally:
        kit.put_ambient(saved)


def test_a_state_dict_made_outside_is_read_inside(mode: Any) -> None:
    state = capture()
    plain = state.state_dict()
    assert mode(lambda: RngState.from_state_dict(plain)) == state


def test_a_state_dict_made_inside_is_read_outside(mode: Any) -> None:
    state = capture()
    assert RngState.from_state_dict(mode(state.state_dict)) == state


@pytest.mark.parametrize("form", kit.FORMS)
def test_a_dispatch_mode_sees_no_operation_of_a_scope(form: str) -> None:
    generator = torch.Generator()
    state = capture(also=generator)
    scopes = [
        deterministic(3, also=generator),
        deterministic(3, strict=True),
        isolated(),
        replay(state, also=generator),
    ]
    with Counts() as counts:
        for scope in scopes:
            kit.FORMS[form](scope, lambda: None)
    assert counts.seen == []


def test_a_dispatch_mode_sees_no_operation_of_a_state() -> None:
    generator = torch.Generator()
    with Counts() as counts:
        state = capture(also=generator)
        state.restore(also=generator)
        state.digest()
        RngState.from_state_dict(state.state_dict())
    assert counts.seen == []


def test_a_generator_suspended_inside_a_mode_goes_on_outside() -> None:
    @fixed_seed(3)
    def generate() -> Any:
        while True:
            yield random.random(), torch.default_generator.get_state()

    with deterministic(3):
        pass
    expected = [row[0] for row in (next(fresh) for fresh in [generate()])]
    ambient = kit.everything()
    for name in ("fake tensors", "inference", "meta device", "dispatch mode"):
        generator = generate()
        first, state = MODES[name](lambda generator=generator: next(generator))
        _, again = next(generator)
        assert [first] == expected
        assert torch.equal(state, again)
        generator.close()
    assert kit.everything() == ambient


@pytest.mark.parametrize("entered_inside", [True, False], ids=["entered inside", "left inside"])
@pytest.mark.parametrize(
    "manager", [torch.inference_mode, torch.no_grad, FakeTensorMode, Counts, lambda: torch.device("meta")]
)
def test_a_scope_may_cross_the_border_of_a_mode(manager: Any, entered_inside: bool) -> None:
    (expected,) = kit.reference(3)
    ambient = kit.everything()
    scope = deterministic(3)
    with manager() if entered_inside else contextlib.nullcontext():
        scope.__enter__()
    drawn = kit.draws()
    with contextlib.nullcontext() if entered_inside else manager():
        scope.__exit__(None, None, None)
    assert drawn == expected
    assert kit.everything() == ambient


# Modules, whose buffers are tensors.


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4))


def buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_buffers(module: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    now = buffers(module)
    assert list(now) == list(expected)
    assert all(torch.equal(now[name], expected[name]) for name in expected)


@pytest.mark.parametrize("form", kit.FORMS)
def test_a_modules_buffers_are_put_back_inside(mode: Any, form: str) -> None:
    with isolated(0):
        module = network()
        module(torch.randn(5, 2))
    expected, given = buffers(module), {id(buffer) for buffer in module.buffers()}
    mode(lambda: kit.FORMS[form](deterministic(3, also=module), module.eval))
    assert_buffers(module, expected)
    assert {id(buffer) for buffer in module.buffers()} == given
    assert module.training


def test_a_state_with_a_modules_buffers_is_captured_and_restored_inside(mode: Any) -> None:
    with isolated(0):
        module = network()
    expected = buffers(module)
    outside = capture(also=module)

    def body() -> RngState:
        state = capture(also=module)
        state.restore(also=module)
        with replay(state, also=module):
            pass
        return state

    assert mode(body) == outside
    assert_buffers(module, expected)


@pytest.mark.parametrize("entered_inside", [True, False], ids=["entered inside", "left inside"])
@pytest.mark.parametrize("manager", [torch.inference_mode, torch.no_grad, Counts], ids=lambda manager: manager.__name__)
def test_a_scope_that_holds_buffers_may_cross_the_border_of_a_mode(manager: Any, entered_inside: bool) -> None:
    with isolated(0):
        module = network()
        data = torch.randn(5, 2)
    expected = buffers(module)
    scope = isolated(3, also=module)
    with manager() if entered_inside else contextlib.nullcontext():
        scope.__enter__()
    module(data).sum().backward()
    with contextlib.nullcontext() if entered_inside else manager():
        scope.__exit__(None, None, None)
    assert_buffers(module, expected)
    module(data).sum().backward()


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_a_module_of_fake_tensors_can_be_held(where: str) -> None:
    with isolated(), FakeTensorMode() as mode:
        module = network()
    with mode if where == "inside" else contextlib.nullcontext():
        with isolated(3, also=module):
            module.eval()
    assert module.training


def test_a_module_on_the_meta_device_can_be_held() -> None:
    with isolated(), torch.device("meta"):
        module = network()
    with isolated(3, also=module):
        module.eval()
        module(torch.empty(5, 2, device="meta"))
    assert module.training
    assert all(buffer.is_meta for buffer in module.buffers())


def test_buffers_updated_by_a_forward_under_autocast_are_put_back() -> None:
    with isolated(0):
        module, data = network(), torch.randn(5, 2)
    expected = buffers(module)
    with torch.autocast("cpu", torch.bfloat16), isolated(3, also=module):
        module(data)
        assert int(module[1].num_batches_tracked) == 1
    assert_buffers(module, expected)


@pytest.mark.parametrize("held", ["outside", "inside"])
def test_functional_calls_with_wrapped_buffers_leave_a_held_module_as_it_was(held: str) -> None:
    with isolated(0):
        module, data = network(), torch.randn(5, 2)
    expected = buffers(module)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    given = {name: buffer.clone() for name, buffer in module.named_buffers()}

    class Held(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with isolated(3, also=module) if held == "inside" else contextlib.nullcontext():
                return self.inner(x)

    def loss(parameters: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(outer, ({**parameters, **given},), (data,)).square().sum()

    outer = Held()
    parameters = {f"inner.{name}": parameter for name, parameter in parameters.items()}
    given = {f"inner.{name}": buffer for name, buffer in given.items()}
    reference = torch.func.grad(loss)(parameters, {name: buffer.clone() for name, buffer in given.items()})
    with isolated(4, also=module):
        gradients = torch.func.grad(loss)(parameters, given)
    assert all(torch.equal(gradients[name], reference[name]) for name in reference)
    assert_buffers(module, expected)


# Activation checkpointing, which runs a function again during backward.


def checkpointed(function: Callable[..., Any], x: torch.Tensor, use_reentrant: bool) -> torch.Tensor:
    result: torch.Tensor = checkpoint(function, x, use_reentrant=use_reentrant)
    return result


def layers() -> tuple[torch.nn.Module, torch.Tensor]:
    with isolated(0):
        module = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.ReLU(), torch.nn.Linear(8, 4), torch.nn.Dropout(0.5)
        )
        return module, torch.randn(6, 4, requires_grad=True)


def gradients(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    collected = [parameter.grad for parameter in (*module.parameters(), x)]
    module.zero_grad()
    x.grad = None
    assert all(gradient is not None for gradient in collected)
    return collected


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
class TestCheckpointing:
    @pytest.mark.parametrize("backward", ["inside", "outside"])
    def test_it_works_inside_a_scope(self, use_reentrant: bool, backward: str) -> None:
        module, x = layers()
        with deterministic(3):
            module(x).sum().backward()
        expected = gradients(module, x)
        ambient = kit.everything()
        with deterministic(3):
            loss = checkpointed(module, x, use_reentrant).sum()
            if backward == "inside":
                loss.backward()
        if backward == "outside":
            loss.backward()
        assert all(map(torch.equal, gradients(module, x), expected))
        assert kit.everything() == ambient

    @pytest.mark.parametrize("form", ["with", "function"])
    def test_a_scope_in_the_function_repeats_when_it_is_run_again(self, use_reentrant: bool, form: str) -> None:
        module, x = layers()

        def scoped(x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            result: torch.Tensor = kit.FORMS[form](deterministic(3, also=module), lambda: module(x))
            return result

        calls: list[int] = []
        scoped(x).sum().backward()
        expected = gradients(module, x)
        ambient = kit.everything()
        checkpointed(scoped, x, use_reentrant).sum().backward()
        assert len(calls) == 3
        assert all(map(torch.equal, gradients(module, x), expected))
        assert kit.everything() == ambient

    def test_a_run_that_is_stopped_within_the_block_restores_everything(self, use_reentrant: bool) -> None:
        # Without reentry torch ends the second run as soon as it has all it needs, by an exception in the body.
        module, x = layers()
        ended: list[str] = []

        def scoped(x: torch.Tensor) -> torch.Tensor:
            with deterministic(3):
                try:
                    result: torch.Tensor = module(x).exp()
                    random.random()
                    ended.append("whole")
                except BaseException as error:
                    ended.append(type(error).__name__)
                    raise
            return result

        ambient = kit.everything()
        checkpointed(scoped, x, use_reentrant).sum().backward()
        assert ended == ["whole", "whole" if use_reentrant else "_StopRecomputationError"]
        assert kit.everything() == ambient

    def test_backward_inside_another_scope_is_nested_in_it(self, use_reentrant: bool) -> None:
        module, x = layers()

        @fixed_seed(3)
        def scoped(x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = module(x)
            return result

        scoped(x).sum().backward()
        expected = gradients(module, x)
        (reference,) = kit.reference(4)
        ambient = kit.everything()
        loss = checkpointed(scoped, x, use_reentrant).sum()
        with deterministic(4):
            loss.backward()
            assert kit.draws() == reference
        assert all(map(torch.equal, gradients(module, x), expected))
        assert kit.everything() == ambient
