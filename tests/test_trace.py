"""What a recording writes down, and that it leaves everything else alone."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.random.bit_generator as bit_generator
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint

from scoped_rng import deterministic, isolated
from scoped_rng.streams.numpy import NumPyStream
from scoped_rng.streams.python import PythonStream
from scoped_rng.trace import Record, Trace, first_divergence, observe, places, record
from scoped_rng.trace import recorder as module
from scoped_rng.trace.fingerprint import fingerprint, shape_fingerprint
from scoped_rng.trace.ops import Op
from tests import kit


def ops(trace: Trace) -> list[str]:
    return [one.op.removeprefix("aten::") for one in trace]


def line(function: Any, offset: int) -> int:
    return int(function.__code__.co_firstlineno) + offset


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.linear(x)).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.aside = [nn.Tanh()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.aside[0](x).sum()


def test_a_record_tells_all_of_its_op() -> None:
    one = torch.arange(3.0)
    with record() as trace:
        two = torch.add(one, one, alpha=2)
    assert len(trace) == 1
    found = trace[0]
    assert (found.index, found.op, found.scalars) == (0, "aten::add.Tensor", "alpha=2")
    assert (found.inputs, found.outputs) == ((fingerprint(one),) * 2, (fingerprint(two),))
    assert (found.module, found.phase, found.opaque, found.unwritten, found.entropy) == ("", "forward", False, {}, None)
    assert found.source is not None
    assert (found.source.file, found.source.function) == (__file__, "test_a_record_tells_all_of_its_op")
    assert found.source.line == line(test_a_record_tells_all_of_its_op, 3)


def test_inputs_are_taken_before_an_op_in_place_changes_them() -> None:
    tensor = torch.ones(3)
    before = fingerprint(tensor)
    with record() as trace:
        tensor.add_(1)
    assert (trace[0].inputs, trace[0].outputs) == ((before,), (fingerprint(tensor),))


def test_lists_of_tensors_are_read_and_written_one_by_one() -> None:
    tensors = [torch.ones(2), torch.zeros(3)]
    before = tuple(map(fingerprint, tensors))
    with record() as trace:
        torch._foreach_add_(tensors, 1)
    assert (trace[0].inputs, trace[0].outputs) == (before, tuple(map(fingerprint, tensors)))


def test_an_output_argument_is_written_and_not_read() -> None:
    given = torch.ones(2)
    with record() as trace:
        torch.mul(torch.ones(2), 3, out=given)
    assert (ops(trace), len(trace[1].inputs)) == (["ones", "mul.out"], 1)
    assert fingerprint(given) in trace[1].outputs
    assert len(trace[1].outputs) == 1


def test_tensors_by_keyword_are_read() -> None:
    order = torch.tensor([2, 1, 0])
    with record() as trace:
        torch.searchsorted(torch.tensor([3.0, 2.0, 1.0]), torch.tensor(2.5), sorter=order)
    assert fingerprint(order) in trace[-1].inputs


def test_running_statistics_are_written_though_the_schema_does_not_say_so() -> None:
    norm = nn.BatchNorm1d(2)
    with record() as trace:
        norm(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    found = next(one for one in trace if "batch_norm" in one.op)
    assert fingerprint(norm.running_mean) in found.outputs
    assert fingerprint(norm.running_mean) not in found.inputs


def test_numbers_that_ops_return_are_outputs() -> None:
    with record() as trace:
        torch.tensor(3.5).item()
        torch.tensor(2.5).item()
    first, second = (one for one in trace if one.op == "aten::_local_scalar_dense")
    assert first.outputs != second.outputs


def test_a_long_list_of_numbers_is_cut_and_stays_apart() -> None:
    with record() as trace:
        for last in (1, 2):
            torch.ones([1] * 100 + [last])
    texts = [one.scalars for one in trace]
    assert texts[0] != texts[1]
    assert max(map(len, texts)) < 300


def test_objects_without_a_value_are_named_by_their_type() -> None:
    with record() as trace:
        torch.rand(2, generator=torch.Generator())
    assert trace[0].scalars == "[2], generator=<Generator>, device=device(type='cpu'), pin_memory=False"


def test_the_module_is_told_by_its_path() -> None:
    net = Net()
    with record() as trace:
        net(torch.ones(2, 3)).backward()
    modules = {one.op: one.module for one in trace if one.phase == "forward" and one.index > 8}
    assert modules["aten::addmm"] == "layers.1.linear"
    assert modules["aten::bernoulli_.float"] == "layers.1.dropout"
    assert modules["aten::relu"] == "layers.1"
    assert modules["aten::sum"] == "Net"
    assert modules["aten::tanh"] == "Tanh"  # which is not registered
    assert trace[0].module == ""


def test_backward_has_the_module_and_the_line_of_its_forward_op() -> None:
    net = Net()
    with record() as trace:
        net(torch.ones(2, 3)).backward()
    backward = {one.op: one for one in trace if one.phase == "backward"}
    assert backward["aten::threshold_backward"].module == "layers.0"
    assert backward["aten::tanh_backward"].module == "Tanh"
    source = backward["aten::threshold_backward"].source
    assert source is not None
    assert (source.function, source.line) == ("forward", line(Block.forward, 1))
    assert {one.phase for one in trace if one.op == "aten::relu"} == {"forward"}


def test_a_module_that_is_called_alone_first_is_told_by_its_path_later() -> None:
    net = Net()
    with record() as trace:
        net.layers[0].linear(torch.ones(1, 3))
        net(torch.ones(2, 3))
        net.layers[0].linear(torch.ones(1, 3))
    assert [one.module for one in trace if one.op == "aten::addmm"][:3] == [
        "Linear",
        "layers.0.linear",
        "layers.1.linear",
    ]


def test_a_module_that_raises_leaves_no_path_behind() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

    with record() as trace:
        with pytest.raises(KeyboardInterrupt):
            nn.Sequential(Broken())(torch.ones(2))
        torch.zeros(2)
    assert (trace[-1].op, trace[-1].module) == ("aten::zeros", "")


def test_a_module_that_is_built_anew_is_told_by_its_own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_MOST_SOURCES", 2)
    with record() as trace:
        for size in range(1, 5):
            nn.Sequential(nn.Identity(), nn.Sequential(nn.Linear(size, 1)))(torch.ones(1, size))
    assert {one.module for one in trace if one.op == "aten::addmm"} == {"1.0"}


def test_lines_of_libraries_are_not_the_users() -> None:
    assert not places._of_user(torch.nn.functional.__file__)
    assert not places._of_user(module.__file__)
    assert not places._of_user(threading.__file__)
    assert not places._of_user("<frozen importlib._bootstrap>")
    assert not places._of_user("<eval_with_key>.3")
    assert places._of_user(pytest.__file__)
    assert places._of_user("<stdin>")


def test_a_recording_inside_of_a_module_knows_the_modules_round_it() -> None:
    traces: list[Trace] = []

    class Recorded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with record() as trace:
                x = self.layer(x) + 1
            traces.append(trace)
            return x

    nn.Sequential(nn.Sequential(Recorded()))(torch.ones(1, 2))
    (found,) = ({one.op: one.module for one in trace} for trace in traces)
    assert (found["aten::addmm"], found["aten::add.Tensor"]) == ("0.0.layer", "0.0")


def test_a_recording_that_was_begun_by_another_function_has_lines_and_modules() -> None:
    def begin(stack: contextlib.ExitStack) -> Trace:
        return stack.enter_context(record())

    with contextlib.ExitStack() as stack:
        trace = begin(stack)
        nn.Linear(2, 2)(torch.ones(1, 2))
    found = trace[-1]
    assert found.source is not None
    assert (found.op, found.module, found.source.file) == ("aten::addmm", "Linear", __file__)


def test_lines_of_what_wraps_a_deprecated_function_are_not_the_users() -> None:
    import typing_extensions

    assert not places._of_user(typing_extensions.__file__)


def test_without_a_line_of_the_user_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_is_users", {frame.filename: False for frame in _stack()})
    monkeypatch.setattr(places, "_of_user", lambda file: False)
    assert places.source_line() is None
    with record() as trace:
        torch.ones(2)
    assert trace[0].source is None


def _stack() -> list[Any]:
    import traceback

    return list(traceback.extract_stack())


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 2


class Doubles(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Doubled.apply(x)


def test_a_backward_of_the_users_has_its_own_line() -> None:
    with record() as trace:
        x = torch.ones(2, requires_grad=True)
        nn.Sequential(Doubles())(x).sum().backward()
    forward, backward = (one for one in trace if one.op == "aten::mul.Tensor")
    assert (forward.phase, backward.phase) == ("forward", "backward")
    assert (forward.module, backward.module) == ("0", "0")
    assert backward.source is not None
    assert (backward.source.function, backward.source.line) == ("backward", line(Doubled.backward, 2))


def test_a_graph_from_before_the_recording_has_the_line_that_calls_backward() -> None:
    x = torch.ones(2, requires_grad=True)
    loss = (x * 3).sum()
    with record() as trace:
        loss.backward()
    mul = next(one for one in trace if one.op == "aten::mul.Tensor")
    assert (mul.phase, mul.module) == ("backward", "")
    assert mul.source is not None
    assert mul.source.function == test_a_graph_from_before_the_recording_has_the_line_that_calls_backward.__name__


def test_gradients_of_gradients_are_recorded() -> None:
    with record() as trace:
        x = torch.ones(2, requires_grad=True)
        (grad,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
        grad.sum().backward()
    assert sum(one.phase == "backward" for one in trace) > 5


def test_checkpointed_modules_run_again_in_backward() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    with record() as trace:
        checkpoint(net, torch.ones(2, 3), use_reentrant=False).sum().backward()
    found = [(one.phase, one.module) for one in trace if one.op == "aten::addmm"]
    assert found == [("forward", "0"), ("backward", "0")]
    first, second = (one for one in trace if one.op == "aten::bernoulli_.float")
    assert first.outputs == second.outputs


def test_of_what_is_viewed_only_the_shape_is_read() -> None:
    one = torch.ones(2, 3)
    with record() as trace:
        one.t()
    assert (trace[0].op, trace[0].inputs) == ("aten::t", (shape_fingerprint(one),))
    assert trace[0].outputs == (shape_fingerprint(one.t()),)


def test_what_enters_from_python_or_numpy_is_read_where_it_enters() -> None:
    with record() as trace:
        one = torch.tensor([1.0])
        other = torch.from_numpy(np.ones(2))
    assert [made.inputs for made in trace] == [(fingerprint(one),), (fingerprint(other),)]


def test_the_torch_stream_is_looked_at_where_an_op_draws() -> None:
    torch.manual_seed(0)
    with record() as trace:
        torch.ones(1)
        torch.rand(1)
        torch.rand(1)
        torch.rand(1, generator=torch.Generator())
    looked = [one.streams for one in trace]
    assert "torch" not in looked[0]
    assert looked[1]["torch"] != looked[2]["torch"]
    assert set(looked[3]) == {"generator"}


@pytest.mark.parametrize("stream", ["python", "python gaussian", "numpy"])
def test_streams_are_told_where_they_have_moved(stream: str) -> None:
    with record() as trace:
        torch.ones(1)
        torch.ones(1)
        kit.draw(stream)
        torch.ones(1)
    assert [list(one.streams) for one in trace] == [["python", "numpy", "numpy.entropy"], [], [stream.split()[0]]]


def test_in_a_seeded_scope_entropy_is_a_stream() -> None:
    with deterministic(0), record() as trace:
        torch.ones(1)
        np.random.default_rng()
        torch.ones(1)
    assert list(trace[1].streams) == ["numpy.entropy"]
    assert trace[1].entropy is None


@pytest.mark.parametrize("stream", ["python", "numpy"])
def test_a_state_that_cannot_be_read_in_place_is_looked_at_as_inputs_enter(
    stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"python": "numpy", "numpy": "python"}[stream]
    monkeypatch.setattr({"python": observe.PYTHON, "numpy": observe.NUMPY}[stream], "memory", lambda: None)
    outside = torch.ones(1)
    with record() as trace:
        torch.zeros(1)
        kit.draw(stream)
        one = outside + 1
        kit.draw(stream)
        kit.draw(other)
        one + 1
    assert [set(one.streams) for one in trace] == [{other, "numpy.entropy"}, {stream}, {other}]


@pytest.mark.parametrize("direct", [True, False])
def test_states_move_with_their_streams_and_not_by_being_looked_at(direct: bool) -> None:
    python, numpy = PythonStream(direct), NumPyStream(direct)
    assert observe.are_cheap(python, numpy) == direct
    looks = {"python": lambda: observe.python_state(python), "numpy": lambda: observe.numpy_state(numpy)}
    for stream, look in looks.items():
        before, everything = look(), kit.everything()
        assert look() == before
        assert kit.everything() == everything
        kit.draw(stream)
        assert look() != before


def test_another_bit_generator_of_numpys_is_looked_at_as_well() -> None:
    np.random.set_bit_generator(np.random.PCG64(0))
    before = observe.numpy_state()
    np.random.random()
    assert observe.numpy_state() != before


def test_a_device_without_generators_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    class Generator:
        device = torch.device("cuda", 0)

        def get_state(self) -> torch.Tensor:
            return torch.ones(2, dtype=torch.uint8)

    assert observe.torch_state(torch.device("meta"), None) == {}
    monkeypatch.setattr(observe, "default_generators", lambda: [Generator()])
    assert observe.torch_state(torch.device("cuda:1"), None) == {}
    assert observe.torch_state(torch.device("cuda"), None).keys() == {"torch"}
    assert observe.torch_state(torch.device("cuda:0"), None).keys() == {"torch"}


def work() -> list[torch.Tensor]:
    torch.manual_seed(3)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), foreach=True)
    for _ in range(2):
        net(torch.randn(2, 3)).backward()
        optimizer.step()
    return [*net.parameters(), torch.from_numpy(np.random.random(2)), torch.tensor(random.random())]


def test_a_recording_changes_nothing() -> None:
    kit.seed_everything(5)
    first, after = work(), kit.everything()[:4]  # and not the text of the stack that manual_seed keeps
    kit.seed_everything(5)
    with record():
        second = work()
    assert all(map(torch.equal, first, second))
    assert kit.everything()[:4] == after
    assert not _get_current_dispatch_mode_stack()


def test_an_empty_recording_moves_nothing() -> None:
    before, hook = kit.everything(), bit_generator.randbits  # type: ignore[attr-defined]
    with record() as trace:
        assert kit.flags() == before[3]
    assert kit.everything() == before
    assert bit_generator.randbits is hook  # type: ignore[attr-defined]
    assert len(trace) == 0


def test_autograd_sees_the_graph_that_it_would_see() -> None:
    def graph() -> list[str]:
        node: Any = (torch.ones(2, requires_grad=True) * 3).t().sum().grad_fn
        names = []
        while node is not None:
            names.append(node.name())
            node = node.next_functions[0][0] if node.next_functions else None
        return names

    plain = graph()
    with record():
        assert graph() == plain


def test_tensors_live_no_longer_than_without() -> None:
    with record():
        tensor = torch.ones(3)
        kept, storage = weakref.ref(tensor), weakref.ref(tensor.untyped_storage())
        tensor = tensor + 1
        gc.collect()
        assert kept() is None
        assert storage() is None


def test_memory_that_was_never_written_is_kept_no_longer_than_it_lives() -> None:
    with record():
        (recorder,) = _get_current_dispatch_mode_stack()
        alive = [torch.empty(3) for _ in range(20)]
        assert len(recorder._unwritten) == 20
        alive[0].zero_()
        assert len(recorder._unwritten) == 19
        del alive
        assert len(recorder._unwritten) == 0


def test_what_is_kept_does_not_grow_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe.PYTHON, "memory", lambda: None)
    monkeypatch.setattr(module, "_MOST_GIVEN", 8)
    with record():
        (recorder,) = _get_current_dispatch_mode_stack()
        for number in range(20):
            torch.full((2,), number)
        assert len(recorder._given) == 8


def test_tensors_without_elements_of_unwritten_memory_are_left_out() -> None:
    with record() as trace:
        torch.empty(0)
        torch.zeros(0)
    assert [made.op for made in trace] == ["aten::zeros"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_body_that_raises_leaves_a_whole_trace(error: type[BaseException]) -> None:
    with pytest.raises(error):
        with record() as trace:
            torch.ones(1)
            raise error
    assert ops(trace) == ["ones"]
    assert not _get_current_dispatch_mode_stack()


def test_an_op_that_raises_is_not_recorded_and_raises_on() -> None:
    with record() as trace:
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
            torch.ones(2, 3) @ torch.ones(2, 3)
        torch.ones(1)
    assert ops(trace) == ["ones", "ones", "ones"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file that Python itself closes
def test_an_interrupt_at_any_call_leaves_nothing_behind(tmp_path: Path) -> None:
    hook = bit_generator.randbits  # type: ignore[attr-defined]

    def run(at: int) -> bool:
        count = 0

        def interrupt(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            if event == "call" and frame.f_globals.get("__name__", "").startswith("scoped_rng"):
                count += 1
                if count == at:
                    sys.setprofile(None)
                    raise KeyboardInterrupt

        sys.setprofile(interrupt)
        try:
            with record(tmp_path / "trace"):
                torch.ones(2) + 1
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(None)
        return False

    at = 1
    while run(at):
        left, module._recorders = _get_current_dispatch_mode_stack(), weakref.WeakSet()
        assert not left, at
        assert bit_generator.randbits is hook, at  # type: ignore[attr-defined]
        at += 1
    assert at > 20
    assert len(Trace(tmp_path / "trace")) == 2


def test_recordings_nest() -> None:
    with record() as outer:
        torch.ones(1)
        with record() as inner:
            torch.arange(6.0).reshape(2, 3)[:, 1] + 1  # whose copy is not an op of the user's
        torch.zeros(1)
    assert ops(inner) == ["arange", "view", "select.int", "add.Tensor"]
    assert ops(outer) == ["ones", *ops(inner), "zeros"]
    assert [one.outputs for one in inner] == [one.outputs for one in outer][1:-1]
    assert {one.source and one.source.file for one in outer} == {__file__}


def test_nested_recordings_both_see_entropy() -> None:
    with record() as outer, record() as inner:
        np.random.default_rng()
        torch.ones(1)
    for trace in (outer, inner):
        assert trace[0].entropy is not None
        assert trace[0].entropy.line == line(test_nested_recordings_both_see_entropy, 2)


@pytest.mark.parametrize("scope", [deterministic, isolated])
def test_a_scope_inside_is_not_seen(scope: Any) -> None:
    net = nn.BatchNorm1d(2)
    with record() as trace:
        with scope(0, also=net):
            torch.rand(1)
    assert ops(trace) == ["rand"]


def test_the_same_scope_gives_the_same_trace_inside_and_around() -> None:
    def inside() -> Trace:
        with record() as trace:
            with deterministic(0):
                work()
        return trace

    def around() -> Trace:
        with deterministic(0), record() as trace:
            work()
        return trace

    assert first_divergence(inside(), inside()) is None
    assert first_divergence(around(), around()) is None


def test_a_scope_that_is_left_inside_stays_left() -> None:
    hook = bit_generator.randbits  # type: ignore[attr-defined]
    scope = deterministic(0)
    scope.__enter__()
    with record():
        scope.__exit__(None, None, None)
    assert bit_generator.randbits is hook  # type: ignore[attr-defined]


def test_a_scope_that_is_entered_inside_and_left_behind_it() -> None:
    scope = deterministic(0)
    before, entropy = kit.everything()[0], bit_generator.randbits
    with record():
        scope.__enter__()
    scope.__exit__(None, None, None)
    assert kit.everything()[0] == before
    assert bit_generator.randbits is entropy


class Counting(TorchDispatchMode):
    """Count the ops that come through."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops += 1
        return func(*args, **(kwargs or {}))


def test_modes_that_are_entered_inside_and_not_left_stay_in_force_behind_it() -> None:
    outer, inner = Counting(), Counting()
    with record() as trace:
        outer.__enter__()
        inner.__enter__()
        torch.ones(1)
    try:
        assert _get_current_dispatch_mode_stack() == [outer, inner]
        torch.ones(1)
    finally:
        inner.__exit__(None, None, None)
        outer.__exit__(None, None, None)
    assert [op.op for op in trace] == ["aten::ones"]
    assert (outer.ops, inner.ops) == (2, 2)


def test_a_numpy_without_its_one_place_for_entropy_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(bit_generator, "randbits")
    with record() as trace:
        torch.ones(1)
    assert trace[0].streams["numpy.entropy"] == 0
    assert not hasattr(bit_generator, "randbits")


def test_other_threads_are_not_seen() -> None:
    found: list[torch.Tensor] = []
    with record() as trace:
        thread = threading.Thread(target=lambda: found.append(torch.ones(2) * 3))
        thread.start()
        thread.join()
        found[0] + 1
    assert ops(trace) == ["add.Tensor"]
    assert trace[0].inputs == (fingerprint(found[0]),)


def test_gradients_may_be_off() -> None:
    net = Net()
    for mode in (torch.no_grad, torch.inference_mode):
        with record() as trace, mode():
            net(torch.ones(2, 3))
        assert {one.phase for one in trace} == {"forward"}
        assert "layers.1.dropout" in {one.module for one in trace}


def test_subclasses_are_taken_apart() -> None:
    with record() as trace:
        two = TwoTensor(torch.ones(2), torch.zeros(2))
        two + 1
    assert ops(trace)[-2:] == ["add.Tensor", "add.Tensor"]
    assert trace[-1].outputs != trace[-2].outputs


def test_subclasses_without_a_dispatch_of_their_own_are_tensors() -> None:
    class Named(torch.Tensor):
        pass

    with record() as trace:
        torch.ones(2).as_subclass(Named) + 1
    assert ops(trace)[-1] == "add.Tensor"
    assert trace[-1].inputs == (fingerprint(torch.ones(2)),)


def test_modes_of_the_user_see_what_they_would_see() -> None:
    seen: list[str] = []

    class Logging(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    def body() -> None:
        torch.arange(6.0).reshape(2, 3)[:, 1] + torch.rand(2)

    expected = ["aten::arange", "aten::view", "aten::select.int", "aten::rand", "aten::add.Tensor"]
    with Logging(), record() as trace:
        body()
    assert seen == expected == [one.op for one in trace]
    seen.clear()
    with record() as trace, Logging():
        body()
    assert seen == expected == [one.op for one in trace]


def test_transforms_of_functions_are_recorded() -> None:
    with record() as trace:
        torch.func.vmap(torch.func.grad(lambda x: (x**2).sum()))(torch.ones(3, 2))
    assert "sum.dim_IntList" in ops(trace) or "sum" in ops(trace)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_are_read_and_written() -> None:
    with record() as trace:
        sparse = torch.eye(3).to_sparse()
        torch.sparse.mm(sparse, torch.ones(3, 1))
        sparse.add_(sparse)
    assert fingerprint(sparse) in trace[-1].outputs


def test_sparse_tensors_beside_unwritten_memory_are_read_and_written() -> None:
    with record() as trace:
        kept = torch.empty(3)
        torch.eye(2).to_sparse() * 2
        kept.add_(1)
    assert [made.unwritten for made in trace] == [{}] * (len(trace) - 1) + [{0: 0}]


def test_ops_of_a_higher_order_are_recorded_with_what_they_give() -> None:
    class Twice(torch._ops.HigherOrderOperator):
        def __init__(self) -> None:
            super().__init__("scoped_rng_twice")

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return super().__call__(x)

    twice = Twice()
    twice.fallthrough(torch._C.DispatchKey.AutogradCPU)
    twice.py_impl(torch._C.DispatchKey.CompositeExplicitAutograd)(lambda x: x + x)
    with record() as trace:
        twice(torch.ones(2))
    assert "scoped_rng_twice" in ops(trace)[-1]
    assert trace[-1].outputs == (fingerprint(torch.full((2,), 2.0)),)


def test_bookkeeping_of_torch_is_left_out() -> None:
    with record() as trace, torch.profiler.record_function("step"):
        torch.ones(1)
    assert ops(trace) == ["ones"]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.usefixtures("group")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_collectives_have_finished_when_they_are_hashed() -> None:
    from torch.distributed._functional_collectives import all_reduce

    tensor = torch.ones(3)
    with record() as trace:
        work = dist.all_reduce(tensor, async_op=True)
        again = all_reduce(tensor, "sum", dist.group.WORLD)
        again + 1
    assert work is not None
    work.wait()
    found = [one for one in trace if one.op in ("c10d::allreduce_", "_c10d_functional::all_reduce")]
    assert len(found) == 2
    for one in found:
        assert fingerprint(torch.ones(3)) in one.outputs


def test_whatever_a_collective_gives_is_waited_for() -> None:
    waited = []

    class Work:
        def wait(self) -> None:
            waited.append(self)

    work, others = Work(), []  # type: ignore[var-annotated]
    assert module._tensors(Op("c10d::send", is_collective=True), [([torch.ones(2)], work)], others)
    assert waited == [work]
    assert others == []


class Augmented(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((2,), float(index)) + 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_workers_of_a_loader_are_not_seen_and_write_nothing() -> None:
    def run() -> Trace:
        with deterministic(0), record() as trace:
            for batch in torch.utils.data.DataLoader(Augmented(), 2, num_workers=2, multiprocessing_context="fork"):
                batch * 2
        return trace

    one = run()
    assert "full" not in ops(one)
    assert ops(one).count("mul.Tensor") == 2
    assert first_divergence(one, run()) is None


def in_a_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_first_op_imports_neither_dynamo_nor_inductor() -> None:
    code = (
        "import sys, torch\nbefore = set(sys.modules)\nfrom scoped_rng.trace.recorder import record\nwith record():\n"
        "    torch.ones(2)\nprint(*[name for name in sys.modules if name in ('torch._dynamo', 'torch._inductor')])"
    )
    assert in_a_process(code) == ""


def test_a_torch_that_cannot_skip_frames_keeps_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not module._Recorder._should_skip_dynamo()
    monkeypatch.setattr(module, "_SKIPS_FRAMES", False)
    assert module._Recorder._should_skip_dynamo()


def test_reading_and_comparing_imports_no_torch(tmp_path: Path) -> None:
    with record(tmp_path / "trace"):
        torch.ones(1)
    code = (
        "import sys\nfrom scoped_rng.trace.divergence import first_divergence\n"
        f"print(first_divergence({str(tmp_path / 'trace')!r}, {str(tmp_path / 'trace')!r}), 'torch' in sys.modules)"
    )
    assert in_a_process(code) == "None False"


def noisy(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return nn.functional.dropout((x @ weight).sin(), 0.5) + 1


def test_dynamo_compiles_the_same_with_a_recording_round_it() -> None:
    compiled = torch.compile(noisy, backend="eager", fullgraph=True)
    x, weight = torch.ones(2, 2), torch.ones(2, 2, requires_grad=True)
    with deterministic(0), record() as trace:
        inside = compiled(x, weight)
    with deterministic(0):
        assert torch.equal(compiled(x, weight), inside)
    assert {"mm", "sin", "bernoulli_.float"} <= set(ops(trace))


class Graph:
    """Stand for a graph that inductor has compiled; it empties the list of its inputs, as those do."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run

    def __call__(self, inputs: list[Any]) -> Any:
        values = list(inputs)
        inputs.clear()
        return self.run(*values)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> type[Graph]:
    class CompiledFxGraph(Graph):
        def __call__(self, inputs: list[Any]) -> Any:
            return super().__call__(inputs)

    output_code = type(sys)("output_code")
    output_code.CompiledFxGraph = CompiledFxGraph  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch._inductor.output_code", output_code)
    return CompiledFxGraph


def test_a_compiled_region_is_one_record_of_its_inputs_and_outputs(compiled: type[Graph]) -> None:
    x, weight = torch.ones(2, 2), torch.ones(2, 2)
    graph = compiled(lambda x, weight, _: (noisy(x, weight), 3))
    with record() as trace:
        result, _ = graph([x, weight, 7])
        result + 1
    assert ops(trace) == ["torch.compile", "add.Tensor"]
    region: Record = trace[0]
    assert region.opaque
    assert region.inputs == (fingerprint(x), fingerprint(weight))
    assert fingerprint(result) in region.outputs
    assert region.scalars == "7"
    assert {"python", "numpy", "torch"} <= region.streams.keys()
    assert not trace[1].opaque


def test_what_a_compiled_region_writes_into_its_inputs_is_among_its_outputs(compiled: type[Graph]) -> None:
    x = torch.ones(2)
    with record() as trace:
        compiled(lambda given: (given.add_(1) * 2,))([x])
    assert fingerprint(x) in trace[0].outputs
    assert len(trace[0].outputs) == 2


def test_a_compiled_region_frees_its_inputs_as_it_would(compiled: type[Graph]) -> None:
    with record():
        inputs = [torch.ones(2)]
        kept = weakref.ref(inputs[0])

        def run(given: torch.Tensor) -> Any:
            del given
            return ()

        compiled(run)(inputs)
        assert kept() is None


def test_a_compiled_region_that_raises_does_not_silence_the_recording(compiled: type[Graph]) -> None:
    def run(given: torch.Tensor) -> Any:
        raise KeyboardInterrupt

    with record() as trace:
        with pytest.raises(KeyboardInterrupt):
            compiled(run)([torch.ones(2)])
        torch.zeros(1)
    assert ops(trace) == ["ones", "zeros"]


def test_a_compiled_region_without_a_recording_runs_as_it_is(compiled: type[Graph]) -> None:
    with record():
        pass
    with record():
        module._watch_compiled()
    assert compiled(lambda given: given + 1)([3]) == 4


def test_a_region_that_inductor_has_compiled_is_opaque() -> None:
    code = """
import torch
from scoped_rng.trace.recorder import record
def noisy(x, weight):
    return torch.nn.functional.dropout((x @ weight).sin(), 0.5) + 1
compiled = torch.compile(noisy, fullgraph=True)
x, weight = torch.ones(4, 4), torch.ones(4, 4, requires_grad=True)
with record() as trace:
    compiled(x, weight).sum().backward()
    with torch.no_grad():
        compiled(x, weight)
print([one.phase for one in trace if one.op == "torch.compile" and one.opaque])
print("mm" in " ".join(one.op for one in trace))
"""
    assert in_a_process(code).splitlines() == ["['forward', 'backward', 'forward']", "False"]
