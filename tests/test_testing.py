"""``assert_repeatable`` and its kin: what passes, what fails, and that nothing outside is moved."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import random
import re
import subprocess
import sys
import textwrap
import threading
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import scoped_rng.trace
from scoped_rng import deterministic, fixed_seed, register_stream, unregister_stream
from scoped_rng.testing import assert_bitwise_equal, assert_does_not_touch, assert_repeatable, repeatable
from tests import kit

ROOT = Path(__file__).parents[1]


class Ticking:
    """Something that is another one in each run."""

    def __init__(self) -> None:
        self.ticks = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Ticking:
        return self

    def __call__(self) -> int:
        self.ticks += 1
        return self.ticks


def training() -> tuple[nn.Module, torch.optim.Optimizer, torch.Tensor]:
    with deterministic(0):
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))
        return model, torch.optim.Adam(model.parameters()), torch.randn(16, 4)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    loss: torch.Tensor = model(x + torch.randn_like(x) * random.random() * np.random.rand()).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss


def state_of(it: Any) -> Any:
    # NumPy before 2 copies a generator without its seeds.
    return it.bit_generator.state if isinstance(it, np.random.Generator) else copy.deepcopy(it)


def message(call: Callable[[], Any], kind: type[BaseException] = AssertionError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


# assert_bitwise_equal


def test_equal_values_pass() -> None:
    assert_bitwise_equal({"x": [torch.ones(2), 0.5]}, {"x": [torch.ones(2), 0.5]})


def test_the_failure_says_where_the_first_difference_is() -> None:
    assert message(lambda: assert_bitwise_equal({"x": [0.0]}, {"x": [-0.0]})) == (
        "not the same bit for bit: ['x'][0]: 0.0 against -0.0, 0 ULPs apart"
    )


def test_gradients_are_compared_on_request() -> None:
    first, second = torch.ones(2), torch.ones(2, requires_grad=True)
    assert_bitwise_equal(first, second)
    assert "requires_grad differs" in message(lambda: assert_bitwise_equal(first, second, grad=True))


# assert_repeatable


def test_a_whole_training_step_repeats_and_gives_what_the_first_run_gave() -> None:
    model, optimizer, x = training()
    loss = assert_repeatable(step, model, optimizer, x, seed=3)
    with deterministic(3):
        assert_bitwise_equal(step(*copy.deepcopy((model, optimizer, x))), loss)


def test_nothing_outside_is_changed() -> None:
    model, optimizer, x = training()
    rng = np.random.default_rng(0)
    before, everything = (copy.deepcopy((model, optimizer, x)), rng.bit_generator.state), kit.everything()
    assert_repeatable(lambda *args: (step(*args[:3]), args[3].random()), model, optimizer, x, rng)
    assert kit.everything() == everything
    assert_bitwise_equal(((model, optimizer, x), rng.bit_generator.state), before, grad=True)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_outside_is_changed_by_a_call_that_raises(error: type[BaseException]) -> None:
    def fn(items: list[float]) -> None:
        items.extend(kit.draws())
        raise error("mine")

    everything, items = kit.everything(), [0.0]
    assert message(lambda: assert_repeatable(fn, items), error) == "mine"
    assert kit.everything() == everything
    assert items == [0.0]


def test_copying_and_comparing_may_draw_without_moving_anything() -> None:
    class Drawing:
        def __deepcopy__(self, memo: dict[int, Any]) -> Drawing:
            kit.draws()
            return Drawing()

        def __eq__(self, other: object) -> bool:
            kit.draws()
            return True

        __hash__ = None  # type: ignore[assignment]

    everything = kit.everything()
    assert assert_repeatable(lambda it: kit.draws(), Drawing(), seed=5) == kit.reference(5)[0]
    assert kit.everything() == everything


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_every_run_starts_from_the_seed(seed: int) -> None:
    seen = []
    assert_repeatable(lambda: seen.append(kit.draws()), seed=seed, runs=3)
    assert seen == kit.reference(seed) * 3


def test_strict_is_passed_on() -> None:
    x = torch.zeros(4)

    def put(x: torch.Tensor) -> torch.Tensor:
        return x.put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))

    with pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation"):
        assert_repeatable(put, x, strict=True)


def test_a_failure_tells_the_leaf_the_run_the_distance_and_the_stream() -> None:
    ticks = Ticking()

    def fn(model: nn.Linear, x: torch.Tensor, *rest: Any, note: str) -> dict[str, Any]:
        if ticks() == 3:
            torch.rand(1)
        with torch.no_grad():
            model.weight[1, 0] = min(ticks.ticks, 2) / 2
        return {"out": [torch.tensor([1.0, 1 + (ticks.ticks > 2) * 2**-23])], "note": note}

    text = message(lambda: assert_repeatable(fn, nn.Linear(2, 2), torch.ones(2), 3, note="n", runs=3, seed=4))
    assert text == (
        "test_a_failure_tells_the_leaf_the_run_the_distance_and_the_stream.<locals>.fn does not repeat under seed 4: "
        "run 2 differs from run 1\n"
        "  argument model.weight: 1 of 4 elements differ, the first at [1, 0]: 0.5 against 1.0, 8388608 ULPs apart\n"
        "The runs drew the same numbers. Look for what stays from run to run: a global, a cache, or what a closure "
        "holds (hand that over as an argument: each run gets a copy); for the time and the system's own entropy; and "
        "for operations without a deterministic algorithm (strict=True makes them errors)."
    )
    ticks.ticks = 1
    text = message(lambda: assert_repeatable(fn, nn.Linear(2, 2), torch.ones(2), 3, note="n", runs=3, seed=4))
    assert text == (
        "test_a_failure_tells_the_leaf_the_run_the_distance_and_the_stream.<locals>.fn does not repeat under seed 4: "
        "run 2 differs from run 1\n"
        "  result['out'][0]: 1 of 2 elements differ, the first at [1]: 1.0 against 1.0000001192092896, 1 ULP apart\n"
        "  run 2 has consumed torch differently from run 1\n"
        "Look for a draw that does not happen in each run: one that depends on a cache, a global, the time, or the "
        "order of a set."
    )


@pytest.mark.parametrize("stream", kit.STREAMS)
def test_a_draw_more_in_one_run_is_found_in_any_stream(stream: str) -> None:
    ticks = Ticking()

    def fn() -> None:
        if ticks() == 2:
            kit.draw(stream)

    assert f"  run 2 has consumed {stream.split()[0]} differently from run 1\n" in message(
        lambda: assert_repeatable(fn)
    )


def test_a_draw_more_of_fresh_entropy_and_of_a_registered_stream_is_found() -> None:
    ticks = Ticking()

    def fn() -> None:
        if ticks() == 2:
            np.random.default_rng()
            dice.random()

    dice = random.Random(0)
    register_stream("dice", dice)
    try:
        assert "run 2 has consumed numpy.entropy, dice differently" in message(lambda: assert_repeatable(fn))
    finally:
        unregister_stream("dice")


def test_only_the_last_run_may_differ() -> None:
    ticks = Ticking()
    text = message(lambda: assert_repeatable(lambda: ticks() == 4, runs=4))
    assert "run 4 differs from run 1\n  result: type" not in text
    assert "run 4 differs from run 1\n  result: False against True\n" in text


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda args, value: args["list"].append(value), "argument args['list'][1]"),
        (lambda args, value: args["array"].fill(value), "argument args['array']"),
        (lambda args, value: args["tensor"].fill_(value), "argument args['tensor']"),
        (lambda args, value: setattr(args["leaf"], "grad", torch.tensor(float(value))), "argument args['leaf'].grad"),
        (lambda args, value: args["norm"].running_mean.fill_(value), "argument args['norm'].running_mean"),
        (lambda args, value: args["norm"].train(value > 1), "argument args['norm'].training"),
        (lambda args, value: args["rng"].random(value), "argument args['rng'].bit_generator.state['state']['state']"),
        (lambda args, value: args["generator"].manual_seed(value), "argument args['generator'].get_state()"),
        (
            lambda args, value: args["adam"].param_groups[0].update(lr=value),
            "argument args['adam'].param_groups[0]['lr']",
        ),
    ],
)
def test_what_a_call_does_to_its_arguments_is_compared(change: Callable[[Any, int], Any], path: str) -> None:
    ticks = Ticking()
    norm = nn.BatchNorm1d(1)
    args = {
        "list": [0],
        "array": np.zeros(2),
        "tensor": torch.zeros(2),
        "leaf": torch.tensor(0.0, requires_grad=True),
        "norm": norm,
        "rng": np.random.default_rng(0),
        "generator": torch.Generator(),
        "adam": torch.optim.Adam(norm.parameters()),
    }

    def same(args: Any) -> None:
        change(args, 1)

    def other(args: Any) -> None:
        change(args, ticks())

    assert_repeatable(same, args)
    assert f"\n  {path}: " in message(lambda: assert_repeatable(other, args))


def test_a_module_is_copied_along_and_so_its_buffers_start_afresh() -> None:
    norm = nn.BatchNorm1d(2)
    assert_repeatable(norm, torch.randn(4, 2))
    assert_repeatable(norm.forward, torch.randn(4, 2))
    assert_repeatable(functools.partial(norm, torch.randn(4, 2)))
    assert norm.num_batches_tracked == 0


def test_a_module_that_changes_itself_otherwise_is_found() -> None:
    ticks = Ticking()

    class Counting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count = ticks()
            return x

    text = message(lambda: assert_repeatable(Counting(), x=torch.ones(2)))
    assert "Counting does not repeat under seed 0: run 2 differs from run 1\n  function.count: 1 against 2\n" in text


@pytest.mark.parametrize(
    "make",
    [
        lambda: [].append,
        lambda: torch.ones(2).add_,
        lambda: random.Random(0).gauss,
        lambda: random.Random(0).randrange,
        lambda: np.random.default_rng(0).random,
        lambda: np.random.RandomState(0).rand,
        lambda: "{}".format,
    ],
)
def test_the_object_of_a_bound_method_is_copied(make: Callable[[], Any]) -> None:
    method = make()
    before = state_of(method.__self__)
    assert_repeatable(method, 2, **({"sigma": 1} if method.__name__ == "gauss" else {}))
    assert_bitwise_equal(state_of(method.__self__), before)


def test_a_method_of_c_that_changes_its_object_differently_is_found() -> None:
    class Item:
        def __deepcopy__(self, memo: dict[int, Any]) -> int:
            return ticks()

    ticks = Ticking()
    assert "  function[0]: 1 against 2\n" in message(lambda: assert_repeatable([].append, Item()))


@pytest.mark.parametrize(
    ("draw", "stream"),
    [
        (random.random, 0),
        (lambda: random.gauss(0, 1), 1),
        (np.random.random_sample, 2),
        (np.random.mtrand._rand.random_sample, 2),  # type: ignore[attr-defined]
        (functools.partial(np.random.standard_normal), 3),
        (functools.partial(torch.rand, (), dtype=torch.float64, generator=torch.default_generator), 4),
    ],
)
def test_the_global_generators_are_not_copied_but_seeded(draw: Callable[[], Any], stream: int) -> None:
    with deterministic(5):
        expected = draw()
    everything = kit.everything()
    assert_bitwise_equal(assert_repeatable(draw, seed=5), expected)
    assert kit.everything() == everything


def test_a_generator_over_the_global_bit_generator_is_seeded_too() -> None:
    rng = np.random.Generator(np.random.get_bit_generator())  # type: ignore[attr-defined]
    with deterministic(5):
        expected = rng.random()
    assert assert_repeatable(lambda rng: rng.random(), rng, seed=5) == expected


def test_children_that_a_copied_generator_spawns_repeat() -> None:
    rng = np.random.default_rng(0)
    rng.spawn(1)
    state = rng.bit_generator.seed_seq.state  # type: ignore[attr-defined]

    def fn(rng: np.random.Generator, bits: np.random.BitGenerator) -> Any:
        return rng, np.random.default_rng(bits.seed_seq.spawn(1)[0]).random(), rng.spawn(1)[0].random()

    assert assert_repeatable(fn, rng, np.random.PCG64(1))[2] == np.random.default_rng(0).spawn(2)[1].random()
    assert rng.bit_generator.seed_seq.state == state  # type: ignore[attr-defined]
    legacy = np.random.MT19937()
    legacy._legacy_seeding(0)  # which leaves it without a seed sequence
    assert_repeatable(lambda bits: bits.random_raw(), legacy)


def test_a_result_that_is_handed_out_again_is_compared_as_it_was() -> None:
    history: list[Any] = []
    buffer = torch.zeros(1)

    def append() -> list[Any]:
        history.append(0)
        return history

    assert "  result: structure differs: only the second has [1]\n" in message(lambda: assert_repeatable(append))
    assert "  result: 1.0 against 2.0" not in message(lambda: assert_repeatable(lambda: buffer.add_(1)))
    assert "  result: 1 of 1 elements differ, the first at [0]: 3.0 against 4.0" in message(
        lambda: assert_repeatable(lambda: buffer.add_(1))
    )


def test_a_computed_result_that_is_changed_later_is_compared_as_it_was() -> None:
    weight = torch.ones(1, requires_grad=True)
    kept = weight * 1
    kept.retain_grad()

    def fn() -> dict[str, Any]:
        kept.detach().add_(1)
        return {"kept": kept, "lock": [kept], "kind": int}

    assert "  result['kept']: 1 of 1 elements differ" in message(lambda: assert_repeatable(fn))
    kept.sum().backward()  # type: ignore[no-untyped-call]
    assert "  result['kept']: 1 of 1 elements differ" in message(lambda: assert_repeatable(fn))
    assert_repeatable(lambda: [kept, kept])


def test_a_result_that_cannot_be_copied_is_compared_as_it_is() -> None:
    lock = threading.Lock()
    assert assert_repeatable(lambda: [lock]) == [lock]
    text = message(lambda: assert_repeatable(lambda: [threading.Lock()]), TypeError)
    assert text.startswith("result[0]: _thread.lock objects cannot be compared")


def test_what_cannot_be_compared_is_a_wrong_argument_of_assert_bitwise_equal() -> None:
    text = message(lambda: assert_bitwise_equal([threading.Lock()], [threading.Lock()]), TypeError)
    assert text.startswith("[0]: _thread.lock objects cannot be compared")


def test_a_result_without_bits_is_refused() -> None:
    text = message(lambda: assert_repeatable(lambda: [torch.ones(2, device="meta")]), TypeError)
    assert text.startswith("result: [0] cannot be compared: a meta or fake tensor has a shape, but no bits")


def test_an_error_of_a_later_run_alone_is_the_failure() -> None:
    ticks = Ticking()

    def fn() -> None:
        if ticks() == 2:
            raise ValueError("second\ntime")

    with pytest.raises(AssertionError) as caught:
        assert_repeatable(fn)
    assert str(caught.value) == (
        "test_an_error_of_a_later_run_alone_is_the_failure.<locals>.fn does not repeat under seed 0: run 2 raises "
        "ValueError: second; run 1 does not\n"
        "Look for what run 1 has left behind: a global, a cache, a file, or what a closure holds (hand that over as an "
        "argument: each run gets a copy)."
    )
    assert isinstance(caught.value.__cause__, ValueError)


def parting(call: Callable[[], object]) -> str:
    """Return what a failure tells of the torch ops, where the runs part."""
    told = [line for line in message(call).splitlines() if "runs part at" in line or "torch ops" in line]
    assert len(told) == 1
    return told[0]


@pytest.mark.parametrize("runs", [2, 3])
def test_with_a_trace_the_failure_names_the_first_op(runs: int) -> None:
    ticks = Ticking()

    def step(data: torch.Tensor) -> torch.Tensor:
        late = ticks() == runs
        return data.exp() * (2.0 if late else 1.0)

    line = step.__code__.co_firstlineno + 2
    assert parting(lambda: assert_repeatable(step, torch.ones(3), runs=runs, trace=True)) == (
        f"  the runs part at aten::mul.Tensor (record 1, forward) at {__file__}:{line} in step: something that it "
        "reads differs, and no op before it made that: it came from outside torch. It was called with (1.0) in "
        "the first run and with (2.0) in the second. No random stream had parted by then: look for what was read from "
        "a file, the order of a directory or of a set (PYTHONHASHSEED), the time, another thread or process, or a "
        "generator made before the recording."
    )


def test_with_a_trace_a_failure_outside_of_torch_says_so() -> None:
    ticks = Ticking()
    assert parting(lambda: assert_repeatable(lambda: (torch.ones(3), ticks()), trace=True)) == (
        "  the torch ops of both runs agree: what differs came from elsewhere, or is memory that no op has written"
    )


@pytest.mark.parametrize("raises", [False, True])
def test_the_general_hint_stays_away_where_a_trace_has_named_the_op(raises: bool) -> None:
    ticks = Ticking()

    def fn() -> torch.Tensor:
        late = ticks() == 2
        result = torch.ones(3) * (2.0 if late else 1.0)
        if raises and late:
            raise ValueError("second time")
        return result

    told = message(lambda: assert_repeatable(fn, trace=True))
    assert told.endswith(" or a generator made before the recording.")
    assert "Look for what" not in told


def test_the_general_hint_is_given_where_a_trace_has_named_no_op() -> None:
    ticks = Ticking()
    told = message(lambda: assert_repeatable(lambda: (torch.ones(3), ticks()), trace=True))
    assert "has written\nThe runs drew the same numbers. Look for what stays" in told


def test_with_a_trace_an_error_of_a_later_run_names_the_op_as_well() -> None:
    ticks = Ticking()

    def fn() -> None:
        torch.ones(ticks())
        if ticks() == 4:
            raise ValueError("second time")

    assert parting(lambda: assert_repeatable(fn, trace=True)).startswith("  the runs part at aten::ones (record 0, ")


def test_with_a_trace_what_repeats_passes_and_nothing_outside_is_changed() -> None:
    before = kit.everything()
    assert assert_repeatable(torch.rand, 3, trace=True).shape == (3,)
    assert kit.everything() == before


def test_without_what_a_trace_needs_nothing_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("recorder", "fingerprint"):
        monkeypatch.delitem(sys.modules, f"scoped_rng.trace.{name}", raising=False)
        monkeypatch.delattr(scoped_rng.trace, name, raising=False)
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(ImportError, match=re.escape("install it with: pip install 'scoped-rng[cli]'")):
        assert_repeatable(pytest.fail, trace=True)


def test_a_trace_is_asked_for_with_true_or_false() -> None:
    assert message(lambda: assert_repeatable(pytest.fail, trace=1), TypeError) == (  # type: ignore[arg-type]
        "trace= is True or False, got int 1"
    )


def test_an_interrupt_of_a_later_run_goes_on() -> None:
    ticks = Ticking()

    def fn() -> None:
        if ticks() == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assert_repeatable(fn)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: assert_repeatable(torch.sum, 1, input=x), "input"),
        (lambda x: assert_repeatable(lambda a, b: None, 1, x), "b"),
        (lambda x: assert_repeatable(lambda a, *b: None, 1, 2, x), "2"),
        (lambda x: assert_repeatable(nn.ReLU(), x), "input"),
        (lambda x: assert_repeatable(max, x), "0"),
    ],
)
def test_an_argument_that_cannot_be_copied_is_named(call: Callable[[Any], Any], name: str) -> None:
    text = message(lambda: call(torch.ones(2, requires_grad=True) * 2), TypeError)
    assert text.startswith(
        f"argument {name} cannot be copied, and each run needs a copy of its own (RuntimeError: Only Tensors created "
        "explicitly by the user"
    )
    assert text.endswith("; make it inside of the function, or hand over tensor.detach()")


def test_a_function_that_cannot_be_copied_is_named() -> None:
    lock = threading.Lock()
    assert message(lambda: assert_repeatable(functools.partial(print, lock)), TypeError).startswith("partial cannot be")


def test_a_coroutine_or_generator_has_not_run() -> None:
    async def coroutine() -> None: ...
    def generator() -> Any:
        yield

    async def async_generator() -> Any:
        yield

    def awaitable() -> Any:
        return asyncio.Future(loop=loop)

    loop = asyncio.new_event_loop()
    try:
        for fn in (coroutine, generator, async_generator, awaitable):
            for check in (assert_repeatable, assert_does_not_touch):
                text = message(functools.partial(check, fn), TypeError)
                assert re.search(
                    f"{fn.__name__} has returned a \\w+, whose body runs later, outside of the check; hand over a "
                    r"plain function that runs it to its end, with list\(\) or asyncio.run\(\) say$",
                    text,
                )
    finally:
        loop.close()
    assert_repeatable(lambda: asyncio.run(coroutine()))
    assert_repeatable(lambda: list(generator()))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"runs": 1}, ValueError, "runs= must be 2 or more, since a run is compared with the first, got 1"),
        ({"runs": 2.0}, TypeError, "runs= is a whole number of 2 or more, got float 2.0"),
        ({"runs": True}, TypeError, "runs= is a whole number of 2 or more, got bool True"),
        ({"seed": -1}, ValueError, "a seed must be in [0, 2**64), got -1"),
        ({"strict": 1}, TypeError, "strict= is True or False, got int 1"),
    ],
)
def test_wrong_options_are_refused_before_the_call(options: Any, error: type[Exception], text: str) -> None:
    for call in (lambda: assert_repeatable(pytest.fail, **options), lambda: repeatable(**options)):
        with pytest.raises(error, match="^" + re.escape(text)):
            call()


def test_what_cannot_be_called_is_refused() -> None:
    assert message(lambda: assert_repeatable(3), TypeError) == (  # type: ignore[arg-type]
        "assert_repeatable takes a function and its arguments, got int 3"
    )


def test_options_of_the_same_name_go_through_a_partial() -> None:
    assert assert_repeatable(functools.partial(lambda seed, runs: (seed, runs), seed=1, runs=1)) == (1, 1)


# assert_does_not_touch


def test_a_call_that_draws_from_its_own_generators_passes_and_gives_its_result() -> None:
    rng = np.random.default_rng(0)
    assert assert_does_not_touch(lambda rng, n: rng.integers(n), rng, n=3) == np.random.default_rng(0).integers(3)
    assert isinstance(assert_does_not_touch(np.random.default_rng), np.random.Generator)


@pytest.mark.parametrize("stream", kit.STREAMS)
def test_a_draw_from_any_stream_is_found_and_put_back(stream: str) -> None:
    everything = kit.everything()
    name = stream.split()[0]
    assert message(lambda: assert_does_not_touch(kit.draw, stream)) == (
        f"draw has moved the global stream {name}; let it draw from a generator that it is given, or in a block of "
        "isolated()"
    )
    assert kit.everything() == everything


def test_all_streams_that_have_moved_are_named() -> None:
    assert "has moved the global streams python, numpy, torch; " in message(lambda: assert_does_not_touch(kit.draws))


def test_a_call_that_puts_back_what_it_drew_passes() -> None:
    assert_does_not_touch(fixed_seed(kit.draws))


def test_only_the_streams_asked_for_count_and_the_others_come_back_too() -> None:
    everything = kit.everything()
    assert_does_not_touch(kit.draw, "numpy", streams=["python", "torch"])
    assert_does_not_touch(kit.draw, "numpy", streams="torch")
    with pytest.raises(AssertionError, match="stream numpy;"):
        assert_does_not_touch(kit.draws, streams=["numpy"])
    assert kit.everything() == everything


@pytest.mark.parametrize(
    ("streams", "named"), [(["torch", "nunpy"], "'nunpy'"), ("cuda:7", "'cuda:7'"), ([], "no stream")]
)
def test_an_unknown_stream_is_refused_before_the_call(streams: Any, named: str) -> None:
    assert message(lambda: assert_does_not_touch(pytest.fail, streams=streams), ValueError) == (
        f"streams= names {named}; there are python, numpy, torch"
    )


def test_registered_streams_count() -> None:
    dice = random.Random(0)
    register_stream("dice", dice)
    try:
        assert "stream dice;" in message(lambda: assert_does_not_touch(dice.random, streams=["dice"]))
    finally:
        unregister_stream("dice")


def test_fresh_entropy_of_a_scope_is_no_global_stream() -> None:
    with deterministic(0):
        assert_does_not_touch(np.random.default_rng)
        with pytest.raises(ValueError, match=r"names 'numpy\.entropy'"):
            assert_does_not_touch(np.random.default_rng, streams=["numpy.entropy"])


def test_its_error_goes_on_and_the_streams_come_back() -> None:
    def fn() -> None:
        kit.draws()
        raise ValueError("mine")

    everything = kit.everything()
    assert message(lambda: assert_does_not_touch(fn), ValueError) == "mine"
    assert kit.everything() == everything


# repeatable


@pytest.fixture
def samples() -> list[float]:
    return [0.5]


@pytest.fixture
def model() -> nn.Module:
    return training()[0]


SEEN: list[Any] = []


@repeatable
def test_each_run_has_fixtures_of_its_own(samples: list[float], model: nn.Module) -> None:
    assert samples == [0.5]
    samples.append(random.random())
    model(torch.randn(4, 4))
    assert model[1].num_batches_tracked == 1  # type: ignore[index]


@repeatable(7, runs=3)
def test_each_run_starts_from_the_seed() -> None:
    assert kit.draws() == kit.reference(7)[0]


@repeatable(seed=8)
@pytest.mark.parametrize("value", [[1], [2]])
def test_marks_below_apply(value: list[int]) -> None:
    value.append(0)
    assert len(value) == 2


@pytest.mark.parametrize("value", [[1], [2]])
@repeatable(strict=True)
def test_marks_above_apply(value: list[int], request: pytest.FixtureRequest) -> None:
    value.append(0)
    assert request.node.name.startswith("test_marks_above_apply[value")
    assert len(value) == 2


@repeatable
def test_what_belongs_to_pytest_is_handed_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, caplog: Any
) -> None:
    monkeypatch.setenv("SCOPED_RNG", "1")
    print("hello")
    assert capsys.readouterr().out == "hello\n"
    (tmp_path / "file").write_text("x")


@pytest.mark.asyncio
@repeatable(seed=3)
async def test_a_coroutine_stays_one_and_gives_way(samples: list[float]) -> None:
    samples.append(0)
    assert len(samples) == 2
    await asyncio.sleep(0)
    assert kit.draws() == kit.reference(3)[0]


class TestMethods:
    count = 0

    @repeatable
    def test_self_is_copied(self, samples: list[float]) -> None:
        self.count += 1
        samples.append(0)
        assert (self.count, len(samples)) == (1, 2)

    @repeatable
    @staticmethod
    def test_a_static_method(samples: list[float]) -> None:
        assert samples == [0.5]

    @staticmethod
    @repeatable
    def test_a_static_method_above(samples: list[float]) -> None:
        assert samples == [0.5]

    @repeatable
    @classmethod
    def test_a_class_method(cls, samples: list[float]) -> None:
        assert cls is TestMethods

    @given(st.integers())
    @repeatable
    def test_a_property(self, number: int) -> None:
        assert kit.draws() == kit.reference(0)[0]


class TestCase(unittest.TestCase):
    @repeatable
    def test_a_test_case_is_handed_over(self) -> None:
        assert self._testMethodName
        assert kit.draws() == kit.reference(0)[0]


@given(st.lists(st.integers()))
@repeatable(seed=1)
def test_below_given_each_example_runs_twice(numbers: list[int]) -> None:
    numbers.append(random.randrange(9))
    assert kit.draws()


@repeatable(seed=1)
@settings(max_examples=5)
@given(st.lists(st.integers()))
def test_above_given_each_example_runs_twice(numbers: list[int]) -> None:
    SEEN.append(len(numbers))
    assert kit.draws() == kit.reference(1)[0]


def test_above_given_a_draw_that_does_not_repeat_fails() -> None:
    ticks = Ticking()

    @repeatable
    @settings(database=None)
    @given(st.integers())
    def fn(number: int) -> None:
        random.randrange(1 + ticks())
        if ticks.ticks % 2:
            random.random()

    with pytest.raises(AssertionError, match="run 2 has consumed python differently from run 1"):
        fn()


def test_name_docs_signature_and_result_are_kept() -> None:
    def fn(a: int, *, b: str = "x") -> tuple[int, str]:
        """Do it."""
        return a, b

    decorated = repeatable(fn)
    assert (decorated.__name__, decorated.__doc__) == ("fn", "Do it.")
    assert inspect.signature(decorated) == inspect.signature(fn)
    assert decorated(1, b="y") == (1, "y")


def test_a_test_that_does_not_repeat_fails() -> None:
    ticks = Ticking()

    @repeatable(seed=2)
    def fn(samples: list[int]) -> None:
        samples.append(ticks())

    text = message(lambda: fn(samples=[0]))
    assert "fn does not repeat under seed 2: run 2 differs from run 1\n  argument samples[1]: 1 against 2\n" in text


def test_a_coroutine_that_does_not_repeat_fails() -> None:
    ticks, everything = Ticking(), kit.everything()

    @repeatable
    async def differs() -> int:
        await asyncio.sleep(0)
        kit.draws()
        return ticks()

    @repeatable
    async def raises() -> None:
        await asyncio.sleep(0)
        if not ticks() % 2:
            raise ValueError("mine")

    assert inspect.iscoroutinefunction(differs)
    assert "  result: 1 against 2\n" in message(lambda: asyncio.run(differs()))
    assert "run 2 raises ValueError: mine; run 1 does not" in message(lambda: asyncio.run(raises()))
    assert asyncio.run(repeatable(_forty_two)()) == 42
    assert kit.everything() == everything


async def _forty_two() -> int:
    return 42


def test_coroutines_that_interleave_do_not_disturb_each_other() -> None:
    @repeatable(seed=4)
    async def fn() -> list[Any]:
        seen = []
        for _ in range(3):
            seen.append(kit.draws())
            await asyncio.sleep(0)
        return seen

    async def main() -> list[Any]:
        return await asyncio.gather(fn(), fn())

    assert asyncio.run(main()) == [kit.reference(4, 3)] * 2


def test_what_is_no_test_function_is_refused() -> None:
    def generator() -> Any:
        yield

    async def async_generator() -> Any:
        yield

    for fn, named in (
        (TestMethods, "class TestMethods"),
        (generator, "generator function generator"),
        (async_generator, "generator function async_generator"),
        (pytest.fixture(lambda: 1), "FixtureFunctionDefinition <lambda>"),
    ):
        assert message(functools.partial(repeatable, fn), TypeError) == (
            f"repeatable decorates test functions, methods and coroutines, got the {named}; put it on each test"
        )
    assert message(lambda: repeatable(seed=0)(3), TypeError).startswith("repeatable decorates test functions")


# The module


def test_it_imports_neither_pytest_nor_hypothesis() -> None:
    code = "import scoped_rng.testing, sys; print({'pytest', 'hypothesis', '_pytest'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("set()\n", 0), result.stderr


def test_pytest_hides_its_frames(tmp_path: Path) -> None:
    test = """
        import random
        from scoped_rng.testing import repeatable
        SEEN = []
        @repeatable
        def test_it():
            SEEN.append(0)
            assert len(SEEN) < 2, "the second run"
        @repeatable
        def test_more():
            SEEN.append(0)
            return len(SEEN)
    """
    (tmp_path / "test_it.py").write_text(textwrap.dedent(test))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", "-q", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "run 2 raises AssertionError: the second run; run 1 does not" in result.stdout
    assert "2 failed" in result.stdout
    assert "def repeat" not in result.stdout
