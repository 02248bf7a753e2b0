"""Accelerators: every device of every initialised backend, pending seeds, forked children, states."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scoped_rng
from scoped_rng import RngState, StateMismatchError, capture, deterministic, fixed_seed, isolated, replay
from scoped_rng.streams.devices import check_devices
from tests import kit
from tests.fake_device import (
    NAME,
    FakeFunctionsModule,
    FakeGeneratorsModule,
    FakeLazyBackend,
    FakeModule,
    seeded_draws,
)

KINDS: dict[str, Callable[[], Any]] = {
    "generators": FakeGeneratorsModule,
    "functions": FakeFunctionsModule,
    "one device": FakeModule,
}


def register(monkeypatch: pytest.MonkeyPatch, module: Any) -> Any:
    """Make ``module`` the device module of the backend under PrivateUse1, for a test."""
    monkeypatch.setattr(torch, NAME, module, raising=False)
    return module


@pytest.fixture(params=KINDS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A backend of each kind, ready for use."""
    return register(monkeypatch, KINDS[request.param]())


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> Any:
    return register(monkeypatch, FakeGeneratorsModule())


def count_of(device: Any) -> int:
    return len(device.initial_seeds())


class TestInitialized:
    @pytest.mark.parametrize("form", kit.FORMS)
    def test_every_device_draws_from_the_seed(self, device: Any, form: str) -> None:
        drawn = kit.FORMS[form](deterministic(3), lambda: [device.draws(), device.draws()])
        assert drawn == [[number] * count_of(device) for number in seeded_draws(3, 2)]

    @pytest.mark.parametrize("form", kit.FORMS)
    @pytest.mark.parametrize("scope", [deterministic(3), isolated(3), isolated()], ids=repr)
    def test_every_device_goes_on_as_without_the_scope(self, device: Any, form: str, scope: Any) -> None:
        device.draws()
        expected, seeds = device.ahead(), device.initial_seeds()
        kit.FORMS[form](scope, lambda: [device.draws(), device.draws()])
        assert (device.ahead(), device.initial_seeds()) == (expected, seeds)

    @pytest.mark.parametrize("form", kit.FORMS)
    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_a_body_that_raises_leaves_every_device_as_it_was(
        self, device: Any, form: str, error: type[BaseException]
    ) -> None:
        def body() -> None:
            device.draws()
            raise error("from the body")

        expected = device.ahead()
        with pytest.raises(error, match="from the body"):
            kit.FORMS[form](deterministic(3), body)
        assert device.ahead() == expected

    def test_an_isolated_block_goes_on_from_the_ambient_state(self, device: Any) -> None:
        expected = device.ahead(2)
        with isolated():
            assert [device.draws(), device.draws()] == expected

    def test_a_seed_of_64_bits_reaches_the_devices_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = register(monkeypatch, FakeFunctionsModule())
        with isolated(2**64 - 1):
            assert device.initial_seeds() == [2**64 - 1] * 2

    def test_a_body_that_reseeds_the_devices_is_undone(self, device: Any) -> None:
        expected = device.ahead()
        with deterministic(3):
            device.manual_seed_all(4)
            device.draws()
        assert device.ahead() == expected

    def test_nested_scopes_each_put_back_their_own(self, device: Any) -> None:
        expected = device.ahead()
        with deterministic(3):
            outer = [device.draws()]
            with deterministic(4):
                inner = device.draws()
            outer.append(device.draws())
        assert inner == seeded_draws(4) * count_of(device)
        assert outer == [[number] * count_of(device) for number in seeded_draws(3, 2)]
        assert device.ahead() == expected

    def test_a_half_consumed_generator_and_its_caller_do_not_see_each_other(self, device: Any) -> None:
        @fixed_seed(3)
        def generate() -> Any:
            while True:
                yield device.draws()

        expected = device.ahead(2)
        generator = generate()
        drawn = [next(generator)]
        outside = [device.draws()]
        drawn.append(next(generator))
        outside.append(device.draws())
        generator.close()
        assert drawn == [[number] * count_of(device) for number in seeded_draws(3, 2)]
        assert outside == expected

    def test_the_current_device_stays_the_current_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = register(monkeypatch, FakeFunctionsModule())
        device.set_device(1)
        with deterministic(3):
            assert device.current_device() == 1
        assert device.current_device() == 1

    def test_a_device_that_fails_to_seed_leaves_all_as_they_were(
        self, two_devices: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(seed: int) -> None:
            raise RuntimeError("no such kernel")

        monkeypatch.setattr(two_devices.default_generators[1], "manual_seed", refuse)
        expected, ambient = two_devices.ahead(), kit.everything()
        with pytest.raises(RuntimeError, match="no such kernel"), deterministic(3):
            pytest.fail("the body has run")
        assert (two_devices.ahead(), kit.everything()) == (expected, ambient)

    def test_a_device_that_cannot_be_put_back_does_not_keep_the_others_from_it(
        self, two_devices: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(state: torch.Tensor) -> None:
            raise RuntimeError("device lost")

        first, second = two_devices.default_generators
        monkeypatch.setattr(second, "set_state", refuse)
        before, ambient = first.get_state(), kit.everything()
        message = f"could not be put back when the scope was left: {NAME}:1: RuntimeError: device lost"
        with pytest.raises(scoped_rng.RestoreError, match=re.escape(message)), deterministic(3):
            two_devices.draws()
        assert torch.equal(first.get_state(), before)
        assert kit.everything() == ambient

    def test_a_backend_registered_after_the_first_scope_is_covered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with deterministic(3):
            pass
        device = register(monkeypatch, FakeFunctionsModule())
        with deterministic(3):
            assert device.draws() == seeded_draws(3) * 2

    def test_a_module_registered_in_place_of_another_is_covered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for _ in range(2):
            device = register(monkeypatch, FakeGeneratorsModule())
            with deterministic(3):
                assert device.draws() == seeded_draws(3) * 2

    def test_a_module_without_the_functions_is_refused_and_says_which_it_lacks(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Bare:
            device_count = staticmethod(lambda: 1)
            manual_seed = staticmethod(lambda seed: None)

        register(monkeypatch, Bare())
        ambient = kit.everything()
        message = (
            f"the device module of '{NAME}' lacks get_rng_state, set_rng_state, which a scope needs (and torch's "
            "fork_rng as well); add them to the module, or leave the devices out: devices=[]"
        )
        with pytest.raises(RuntimeError, match=re.escape(message)), deterministic(3):
            pytest.fail("the body has run")
        assert kit.everything() == ambient
        with deterministic(3, devices=[]):
            pass

    def test_a_backend_without_devices_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        register(monkeypatch, FakeModule(count=0))
        expected = kit.reference(3)
        with deterministic(3):
            assert [kit.draws()] == expected


class TestChosenDevices:
    @pytest.mark.parametrize(
        "chosen",
        [f"{NAME}:1", torch.device(NAME, 1)],
        ids=["str", "torch.device"],
    )
    def test_only_the_devices_asked_for_are_seeded_and_put_back(self, two_devices: Any, chosen: Any) -> None:
        first, second = two_devices.default_generators
        before, second_before = first.get_state(), second.get_state()
        with deterministic(3, devices=[chosen]):
            assert torch.equal(first.get_state(), before)
            drawn = two_devices.draws()
            after = first.get_state()
        assert drawn[1] == seeded_draws(3)[0]
        assert torch.equal(first.get_state(), after), "what is not covered is not restored"
        assert torch.equal(second.get_state(), second_before)

    @pytest.mark.parametrize("given", [[], ()], ids=["list", "tuple"])
    def test_an_empty_choice_leaves_every_device_alone(self, device: Any, given: Any) -> None:
        expected = device.ahead(2)
        with deterministic(3, devices=given):
            assert device.draws() == expected[0]
        assert device.draws() == expected[1]

    def test_the_cpu_is_covered_whatever_is_chosen(self, two_devices: Any) -> None:
        (expected,) = kit.reference(3)
        ambient = kit.everything()
        for chosen in ([], [f"{NAME}:1"]):
            with deterministic(3, devices=chosen):
                assert kit.draws() == expected
        assert kit.everything() == ambient

    def test_a_device_without_an_index_is_the_current_one(self, two_devices: Any) -> None:
        two_devices.set_device(1)
        first, _ = two_devices.ahead(1)[0]
        with deterministic(3, devices=[NAME]):
            assert two_devices.draws() == [first, *seeded_draws(3)]

    def test_a_backend_with_one_device_needs_no_index(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = register(monkeypatch, FakeModule())
        expected = device.ahead()
        with deterministic(3, devices=[NAME]):
            assert device.draws() == seeded_draws(3)
        assert device.ahead() == expected

    def test_a_device_named_twice_is_one_device(self, two_devices: Any) -> None:
        expected = two_devices.ahead()
        with deterministic(3, devices=[f"{NAME}:0", torch.device(NAME, 0), f"{NAME}:1"]):
            assert two_devices.draws() == seeded_draws(3) * 2
        assert two_devices.ahead() == expected

    def test_a_choice_is_read_when_the_scope_is_made(self, two_devices: Any) -> None:
        chosen = [f"{NAME}:0"]
        scope = deterministic(3, devices=chosen)
        chosen[0] = f"{NAME}:1"
        _, second = two_devices.ahead(1)[0]
        with scope:
            assert two_devices.draws() == [*seeded_draws(3), second]

    def test_the_decorator_takes_a_choice_as_well(self, two_devices: Any) -> None:
        first, _ = two_devices.ahead(1)[0]
        drawn = fixed_seed(3, devices=[f"{NAME}:1"])(two_devices.draws)()
        assert drawn == [first, *seeded_draws(3)]

    @pytest.mark.parametrize("make", [deterministic, isolated, fixed_seed], ids=lambda make: make.__name__)
    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            (
                "cuda:0",
                TypeError,
                (
                    "devices= takes a list of 'cuda:1', torch.device or int, or None for all, got str 'cuda:0'; "
                    "put it in a list"
                ),
            ),
            (
                0,
                TypeError,
                "devices= takes a list of 'cuda:1', torch.device or int, or None for all, got int 0; put it in a list",
            ),
            (
                torch.device("cuda", 0),
                TypeError,
                (
                    "devices= takes a list of 'cuda:1', torch.device or int, or None for all, "
                    "got device device(type='cuda', index=0); put it in a list"
                ),
            ),
            ([True], TypeError, "a device is a str such as 'cuda:1', a torch.device or an int, got bool True"),
            ([None], TypeError, "a device is a str such as 'cuda:1', a torch.device or an int, got NoneType None"),
            ([0.0], TypeError, "a device is a str such as 'cuda:1', a torch.device or an int, got float 0.0"),
            (["cpu"], ValueError, "devices= names accelerators; the CPU is covered by every scope, leave it out"),
            ([torch.device("cpu")], ValueError, "devices= names accelerators; the CPU is covered by every scope"),
            (["toaster"], ValueError, "torch knows no device 'toaster': Expected one of cpu, cuda"),
            (["cuda:-1"], ValueError, "torch knows no device 'cuda:-1': Invalid device string: 'cuda:-1'"),
            ([""], ValueError, "torch knows no device '': Device string must not be empty"),
        ],
        ids=str,
    )
    def test_a_wrong_choice_is_refused_when_the_scope_is_made(
        self, make: Any, given: Any, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=re.escape(message)):
            make(3, devices=given)

    @pytest.mark.skipif(
        torch.accelerator.current_accelerator() is not None, reason="an int names a device of what torch is built for"
    )
    def test_an_int_without_an_accelerator_is_refused(self) -> None:
        message = "torch knows no device 0: Cannot access accelerator device when none is available."
        with pytest.raises(ValueError, match=re.escape(message)):
            deterministic(3, devices=[0])

    @pytest.mark.parametrize("name", ["xpu:0", "mtia", "vulkan", "meta", NAME])
    def test_a_device_of_a_backend_that_is_not_initialised_is_refused_on_entry(self, name: str) -> None:
        scope, ambient = deterministic(3, devices=[name]), kit.everything()
        message = (
            f"the device '{name}' is of a backend that is not initialised in this process; use the device once before "
            "the scope, or leave devices= out to cover what is initialised"
        )
        with pytest.raises(ValueError, match=re.escape(message)), scope:
            pytest.fail("the body has run")
        with pytest.raises(ValueError, match=re.escape(message)):
            capture(devices=[name])
        assert kit.everything() == ambient

    def test_a_device_of_an_uninitialised_backend_is_refused_and_stays_uninitialised(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = register(monkeypatch, FakeGeneratorsModule(initialized=False))
        message = f"the device '{NAME}:1' is of a backend that is not initialised in this process"
        with pytest.raises(ValueError, match=re.escape(message)), deterministic(3, devices=[f"{NAME}:1"]):
            pytest.fail("the body has run")
        assert not device.is_initialized()

    def test_an_index_out_of_range_is_refused_on_entry(self, two_devices: Any) -> None:
        expected, ambient = two_devices.ahead(), kit.everything()
        message = f"the device '{NAME}:2' is not there: {NAME} has 2 device(s)"
        with (
            pytest.raises(ValueError, match=re.escape(message)),
            deterministic(3, devices=[f"{NAME}:0", f"{NAME}:2"]),
        ):
            pytest.fail("the body has run")
        assert (two_devices.ahead(), kit.everything()) == (expected, ambient)


class TestRecordingAGraph:
    def message(self) -> str:
        return (
            f"a scope was opened or a state captured while {NAME} records a graph, when the generators' states cannot "
            "be read; open the scope round the capture, or leave the devices out: devices=[]"
        )

    @pytest.mark.parametrize("form", kit.FORMS)
    @pytest.mark.parametrize("chosen", [None, [f"{NAME}:1"]], ids=["all", "one"])
    def test_a_scope_cannot_be_opened(self, two_devices: Any, form: str, chosen: Any) -> None:
        scope, expected, ambient = deterministic(3, devices=chosen), two_devices.ahead(), kit.everything()
        two_devices.recording = True
        with pytest.raises(RuntimeError, match=re.escape(self.message())):
            kit.FORMS[form](scope, lambda: pytest.fail("the body has run"))
        assert (two_devices.ahead(), kit.everything()) == (expected, ambient)

    def test_a_state_can_neither_be_captured_nor_restored(self, two_devices: Any) -> None:
        state, ambient = capture(), kit.everything()
        two_devices.recording = True
        for refused in (capture, state.restore, replay(state).__enter__):
            with pytest.raises(RuntimeError, match=re.escape(self.message())):
                refused()
        assert kit.everything() == ambient

    def test_a_scope_without_devices_can_be_opened(self, two_devices: Any) -> None:
        expected = two_devices.ahead()
        two_devices.recording = True
        with deterministic(3, devices=[]):
            assert capture(devices=[]).names[0] == "python"
        assert two_devices.ahead() == expected

    def test_a_graph_recorded_within_a_block_is_no_trouble(self, two_devices: Any) -> None:
        expected = two_devices.ahead()
        with deterministic(3):
            two_devices.recording = True
            two_devices.recording = False
        assert two_devices.ahead() == expected


# A backend that is not initialised: what waits for its initialisation.

LAZY = [name for name in ("cuda", "xpu", "mtia") if hasattr(getattr(torch, name), "default_generators")]
PENDING: dict[str, Callable[[Any], None]] = {
    "none": lambda module: None,
    "all": lambda module: module.manual_seed_all(7),
    "current": lambda module: module.manual_seed(7),
    "all, then current": lambda module: (module.manual_seed_all(7), module.manual_seed(8)),
    "current, then all": lambda module: (module.manual_seed(8), module.manual_seed_all(7)),
    "all twice": lambda module: (module.manual_seed_all(6), module.manual_seed_all(7)),
}
AMBIENT: dict[str, tuple[Any, Any]] = {
    "none": (None, None),
    "all": (7, 7),
    "current": (7, None),
    "all, then current": (8, 7),
    "current, then all": (7, 7),
    "all twice": (7, 7),
}
"""The seeds that the two devices start from under `PENDING`; None: a seed of torch's own."""


@pytest.fixture(params=LAZY)
def lazy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeLazyBackend:
    return FakeLazyBackend(request.param, monkeypatch)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeLazyBackend:
    return FakeLazyBackend("cuda", monkeypatch)


def assert_ambient(lazy: Any, pending: str, scope_seed: int) -> None:
    """Check that the devices are as if they had been initialised outside of the scope."""
    drawn, continued = lazy.ahead(3), seeded_draws(scope_seed, 6)
    for index, seed in enumerate(AMBIENT[pending]):
        of_device = [row[index] for row in drawn]
        if seed is None:
            assert not set(of_device) & set(continued), f"device {index} goes on with the numbers of the scope"
        else:
            assert of_device == seeded_draws(seed, 3)


class TestPendingSeeds:
    @pytest.mark.parametrize("pending", PENDING)
    def test_a_scope_leaves_what_waits_exactly_as_it_was(self, lazy: FakeLazyBackend, pending: str) -> None:
        PENDING[pending](lazy.module)
        expected = lazy.pending()
        with deterministic(3), isolated():
            pass
        assert lazy.pending() == expected
        assert not lazy.module.is_initialized()

    @pytest.mark.parametrize("pending", PENDING)
    @pytest.mark.parametrize("form", kit.FORMS)
    def test_seeds_queued_by_the_body_do_not_outlive_it(self, cuda: FakeLazyBackend, pending: str, form: str) -> None:
        def body() -> None:
            torch.manual_seed(5)
            torch.cuda.manual_seed(5)
            torch.cuda.manual_seed_all(5)

        PENDING[pending](torch.cuda)
        expected = cuda.pending()
        kit.FORMS[form](deterministic(3), body)
        assert cuda.pending() == expected

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_a_body_that_raises_leaves_what_waits_as_it_was(
        self, lazy: FakeLazyBackend, error: type[BaseException]
    ) -> None:
        lazy.module.manual_seed(7)
        expected = lazy.pending()
        with pytest.raises(error), deterministic(3):
            torch.manual_seed(5)
            raise error
        assert lazy.pending() == expected

    def test_an_entry_that_fails_leaves_what_waits_as_it_was(self, lazy: FakeLazyBackend) -> None:
        class Refuses:
            def getstate(self) -> int:
                return 0

            def setstate(self, state: int) -> None:
                pass

            def seed(self, seed: int) -> None:
                raise RuntimeError("not seeded")

        lazy.module.manual_seed(7)
        expected = lazy.pending()
        with pytest.raises(RuntimeError, match="not seeded"), deterministic(3, also=Refuses()):
            pytest.fail("the body has run")
        assert lazy.pending() == expected

    def test_nested_scopes_each_queue_their_own(self, lazy: FakeLazyBackend) -> None:
        lazy.module.manual_seed_all(7)
        expected = lazy.pending()
        with deterministic(3):
            outer = lazy.pending()
            with deterministic(4), isolated():
                torch.manual_seed(5)
            assert lazy.pending() == outer
        assert lazy.pending() == expected

    def test_an_isolated_block_leaves_the_ambient_seed_waiting(self, lazy: FakeLazyBackend) -> None:
        lazy.module.manual_seed_all(7)
        with isolated():
            assert lazy.draws() == seeded_draws(7) * 2

    def test_capturing_neither_initialises_nor_changes_what_waits(self, lazy: FakeLazyBackend) -> None:
        lazy.module.manual_seed(7)
        expected = lazy.pending()
        state = capture()
        state.restore()
        with replay(state):
            pass
        assert lazy.pending() == expected
        assert not lazy.module.is_initialized()
        assert not any(name.startswith(lazy.module.__name__.rpartition(".")[2]) for name in state.names)

    def test_calls_of_another_kind_stay_queued(self, lazy: FakeLazyBackend) -> None:
        lazy.module._lazy_call(lambda: None)
        queued = list(lazy.module._queued_calls)
        with deterministic(3):
            assert lazy.module._queued_calls == queued
        assert lazy.module._queued_calls == queued

    @pytest.mark.parametrize("pending", PENDING)
    def test_a_body_that_initialises_draws_from_the_seed_and_the_devices_are_ambient_after_it(
        self, lazy: FakeLazyBackend, pending: str
    ) -> None:
        PENDING[pending](lazy.module)
        with deterministic(3):
            drawn = [lazy.draws(), lazy.draws()]
        assert drawn == [[number] * 2 for number in seeded_draws(3, 2)]
        assert_ambient(lazy, pending, 3)

    @pytest.mark.parametrize("form", kit.FORMS)
    @pytest.mark.parametrize("pending", ["none", "all"])
    def test_a_body_of_any_form_may_initialise(self, cuda: FakeLazyBackend, pending: str, form: str) -> None:
        PENDING[pending](torch.cuda)
        drawn = kit.FORMS[form](deterministic(3), lambda: [cuda.draws(), cuda.draws()])
        assert drawn == [[number] * 2 for number in seeded_draws(3, 2)]
        assert_ambient(cuda, pending, 3)

    def test_a_body_that_initialises_and_raises_leaves_the_devices_ambient(self, lazy: FakeLazyBackend) -> None:
        lazy.module.manual_seed_all(7)
        with pytest.raises(ValueError, match="from the body"), deterministic(3):
            lazy.draws()
            raise ValueError("from the body")
        assert_ambient(lazy, "all", 3)

    def test_a_body_that_seeds_and_then_initialises_draws_from_its_own_seed(self, lazy: FakeLazyBackend) -> None:
        lazy.module.manual_seed_all(7)
        with deterministic(3):
            torch.manual_seed(5)
            assert lazy.draws() == seeded_draws(5) * 2
        assert_ambient(lazy, "all", 3)

    def test_an_inner_body_that_initialises_leaves_the_outer_ones_seed(self, lazy: FakeLazyBackend) -> None:
        lazy.module.manual_seed_all(7)
        with deterministic(3):
            with deterministic(4):
                assert lazy.draws() == seeded_draws(4) * 2
            assert lazy.draws() == seeded_draws(3) * 2
        assert_ambient(lazy, "all", 3)

    def test_once_initialised_within_a_scope_later_ones_hold_the_devices(self, lazy: FakeLazyBackend) -> None:
        with deterministic(3):
            lazy.init()
            with deterministic(4):
                assert lazy.draws() == seeded_draws(4) * 2
            assert lazy.draws() == seeded_draws(3) * 2
        expected = lazy.ahead()
        with deterministic(5):
            assert lazy.draws() == seeded_draws(5) * 2
        assert lazy.ahead() == expected

    @pytest.mark.parametrize("pending", PENDING)
    def test_a_generator_that_initialises_goes_on_after_giving_way(self, cuda: FakeLazyBackend, pending: str) -> None:
        @fixed_seed(3)
        def generate() -> Any:
            while True:
                yield cuda.draws()

        PENDING[pending](torch.cuda)
        generator = generate()
        drawn = [next(generator)]
        expected = cuda.ahead(2)
        assert_ambient(cuda, pending, 3)
        outside = [cuda.draws()]
        drawn.append(next(generator))
        outside.append(cuda.draws())
        generator.close()
        assert drawn == [[number] * 2 for number in seeded_draws(3, 2)]
        assert outside == expected

    @pytest.mark.parametrize("pending", PENDING)
    def test_a_generator_held_while_its_caller_initialises_leaves_the_caller_alone(
        self, cuda: FakeLazyBackend, pending: str
    ) -> None:
        @fixed_seed(3)
        def generate() -> Any:
            yield None
            while True:
                yield cuda.draws()

        PENDING[pending](torch.cuda)
        generator = generate()
        next(generator)
        cuda.init()
        expected = cuda.ahead(3)
        drawn, outside = [], [cuda.draws()]
        for _ in range(2):
            drawn.append(next(generator))
            outside.append(cuda.draws())
        generator.close()
        assert drawn == [[number] * 2 for number in seeded_draws(3, 2)]
        assert outside == expected

    @pytest.mark.parametrize("pending", PENDING)
    def test_a_scope_left_early_hands_over_what_waits(self, cuda: FakeLazyBackend, pending: str) -> None:
        PENDING[pending](torch.cuda)
        expected = cuda.pending()
        outer, inner = deterministic(3), deterministic(4)
        outer.__enter__()
        inner.__enter__()
        with pytest.warns(scoped_rng.ScopeOrderWarning):
            outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)
        assert cuda.pending() == expected

    def test_two_backends_wait_side_by_side(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cuda, xpu = FakeLazyBackend("cuda", monkeypatch), FakeLazyBackend("xpu", monkeypatch)
        torch.manual_seed(7)
        waiting = xpu.pending()
        with deterministic(3):
            assert cuda.draws() == seeded_draws(3) * 2
        assert cuda.draws() == seeded_draws(7) * 2
        assert xpu.pending() == waiting
        expected = cuda.ahead()
        with deterministic(4):  # one of them is initialised now, the other one is not
            assert (cuda.draws(), xpu.draws()) == (seeded_draws(4) * 2,) * 2
        assert cuda.ahead() == expected
        assert xpu.draws() == seeded_draws(7) * 2

    def test_a_choice_of_devices_leaves_what_waits_elsewhere_alone(
        self, two_devices: Any, lazy: FakeLazyBackend
    ) -> None:
        lazy.module.manual_seed_all(7)
        expected = lazy.pending()
        with deterministic(3, devices=[f"{NAME}:0"]):
            assert lazy.pending() == expected
        with deterministic(3, devices=[]):
            assert lazy.pending() == expected


class TestPendingSeedsOfThisBuild:
    """The real tracker of ``torch.cuda``, with nothing faked."""

    pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA may be initialised here")

    def waiting(self) -> tuple[Any, ...]:
        tracker = torch.cuda._lazy_seed_tracker
        return tracker.manual_seed_all_cb, tracker.manual_seed_cb, list(tracker.call_order)

    @pytest.mark.parametrize("pending", PENDING)
    @pytest.mark.parametrize("form", kit.FORMS)
    def test_nothing_that_a_scope_or_its_body_queues_outlives_it(self, pending: str, form: str) -> None:
        def body() -> None:
            assert self.waiting() != expected
            torch.manual_seed(5)
            torch.cuda.manual_seed(5)

        PENDING[pending](torch.cuda)
        expected = self.waiting()
        kit.FORMS[form](deterministic(3), body)
        assert self.waiting() == expected

    def test_a_scope_formats_no_stack(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any) -> None:
            pytest.fail("torch's manual_seed was called")

        monkeypatch.setattr(traceback, "format_stack", refuse)
        with deterministic(3), isolated(4):
            pass


class TestLazyPrivateUse:
    """A backend under PrivateUse1 that is initialised as lazily as CUDA is."""

    @pytest.fixture
    def device(self, monkeypatch: pytest.MonkeyPatch) -> FakeGeneratorsModule:
        return register(monkeypatch, FakeGeneratorsModule(initialized=False))

    @pytest.mark.parametrize("pending", PENDING)
    def test_a_scope_neither_initialises_it_nor_changes_what_waits(self, device: Any, pending: str) -> None:
        PENDING[pending](device)
        expected = {**vars(device._lazy_seed_tracker)}
        with deterministic(3):
            torch.manual_seed(5)
        assert vars(device._lazy_seed_tracker) == expected
        assert not device.is_initialized()

    @pytest.mark.parametrize("pending", PENDING)
    def test_a_body_that_initialises_it_draws_from_the_seed(self, device: Any, pending: str) -> None:
        PENDING[pending](device)
        with deterministic(3):
            assert device.draws() == seeded_draws(3) * 2
        assert_ambient(device, pending, 3)

    def test_a_module_without_a_tracker_stays_as_the_body_leaves_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = FakeGeneratorsModule(initialized=False)
        del device._lazy_seed_tracker
        device.init = lambda: None
        register(monkeypatch, device)
        with deterministic(3):
            pass
        assert not device.is_initialized()


def in_child(run: Callable[[], Any]) -> str:
    """Run a function in a forked child; return what it has raised, or ''."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: other threads are there under xdist
        child = os.fork()
    if child == 0:
        told = ""
        try:
            run()
        except BaseException:
            told = traceback.format_exc()
        finally:
            os.write(writer, told.encode()[-60_000:])
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        told = file.read().decode()
    os.waitpid(child, 0)
    return told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
class TestForkedChild:
    @pytest.mark.parametrize("form", kit.FORMS)
    def test_a_scope_opened_in_a_child_leaves_the_devices_alone(self, device: Any, form: str) -> None:
        def child() -> None:
            ambient = kit.continuation()
            assert [kit.FORMS[form](deterministic(3), kit.draws)] == expected
            assert kit.continuation() == ambient
            assert not [name for name in capture().names if name.startswith(NAME)]

        expected = kit.reference(3)
        with deterministic(0):
            pass
        assert in_child(child) == ""

    def test_a_block_that_a_child_leaves_restores_all_but_the_devices(self, device: Any) -> None:
        def child() -> None:
            scope.__exit__(None, None, None)
            assert kit.continuation() == ambient

        ambient, expected = kit.continuation(), device.ahead()
        scope = deterministic(3)
        with scope:
            told = in_child(child)
        assert told == ""
        assert device.ahead() == expected

    def test_a_generator_that_goes_on_in_a_child_restores_all_but_the_devices(self, device: Any) -> None:
        def child() -> None:
            ambient = kit.continuation()
            assert list(generator) == []
            assert kit.continuation() == ambient

        @fixed_seed(3)
        def twice() -> Any:
            yield 1
            kit.draws()

        generator = twice()
        expected = device.ahead()
        next(generator)
        assert in_child(child) == ""
        generator.close()
        assert device.ahead() == expected

    def test_what_waits_for_an_uninitialised_backend_is_put_back_in_a_child(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def child() -> None:
            with deterministic(4):
                assert lazy.pending() != expected
            assert lazy.pending() != expected  # the scope of the parent is open
            scope.__exit__(None, None, None)
            assert lazy.pending() == expected

        lazy = FakeLazyBackend("cuda", monkeypatch)
        lazy.module.manual_seed(7)
        expected, scope = lazy.pending(), deterministic(3)
        with scope:
            told = in_child(child)
        assert told == ""
        assert lazy.pending() == expected

    def test_the_device_of_a_process_that_is_in_a_bad_fork_is_not_touched(self, device: Any) -> None:
        expected = device.ahead()
        with deterministic(3):
            device.forked = True
        assert device.ahead() == [[number] * count_of(device) for number in seeded_draws(3, 3)]
        with deterministic(4), isolated():
            pass
        device.forked = False
        assert device.ahead() != expected

    def test_a_module_that_calls_itself_initialised_in_a_child_is_not_touched(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = FakeGeneratorsModule()
        device.is_initialized = lambda: True
        register(monkeypatch, device)
        expected = device.ahead()
        device.forked = True
        with deterministic(3), isolated():
            kit.draws()
        device.forked = False
        assert device.ahead() == expected


class TestStates:
    def test_a_state_holds_every_device_by_name(self, device: Any) -> None:
        names = [name for name in capture().names if name.startswith(NAME)]
        assert names == [f"{NAME}:{index}" for index in range(count_of(device))]

    def test_a_state_of_chosen_devices_holds_no_others(self, two_devices: Any) -> None:
        assert [name for name in capture(devices=[f"{NAME}:1"]).names if ":" in name] == [f"{NAME}:1"]
        assert not [name for name in capture(devices=[]).names if ":" in name]

    def test_a_drawn_device_differs_by_name(self, two_devices: Any) -> None:
        before = capture()
        two_devices.default_generators[1].draw()
        assert capture().diff(before) == [f"{NAME}:1"]
        assert capture() != before

    def test_restoring_makes_the_devices_repeat(self, device: Any) -> None:
        device.draws()
        state = capture()
        first = [device.draws(), device.draws()]
        state.restore()
        assert [device.draws(), device.draws()] == first
        assert capture().diff(state) == [f"{NAME}:{index}" for index in range(count_of(device))]

    @pytest.mark.parametrize("form", kit.FORMS)
    def test_a_replay_repeats_on_the_devices_and_puts_them_back(self, device: Any, form: str) -> None:
        state = capture()
        first = device.draws()
        expected = device.ahead()
        assert kit.FORMS[form](replay(state), device.draws) == first
        assert device.ahead() == expected

    def test_a_state_goes_through_a_checkpoint(self, device: Any, tmp_path: Path) -> None:
        state = capture()
        first = device.draws()
        torch.save(state.state_dict(), tmp_path / "state.pt")
        loaded = RngState.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert (loaded, loaded.digest()) == (state, state.digest())
        loaded.restore()
        assert device.draws() == first

    @pytest.mark.parametrize("use", ["restore", "replay"])
    def test_a_state_of_a_device_that_is_not_here_is_refused(
        self, two_devices: Any, monkeypatch: pytest.MonkeyPatch, use: str
    ) -> None:
        state = capture()
        device = register(monkeypatch, FakeGeneratorsModule(count=1))
        expected, ambient = device.ahead(), kit.everything()
        message = (
            f"the state holds {NAME}:1, which is not here; initialise the device, register the stream, or give the "
            'same objects as to capture(also=...), or leave it out with missing="skip"'
        )
        with pytest.raises(StateMismatchError, match=re.escape(message)):
            state.restore() if use == "restore" else replay(state).__enter__()
        assert (device.ahead(), kit.everything()) == (expected, ambient)

    def test_what_is_not_here_can_be_skipped(self, two_devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        state = capture()
        drawn = two_devices.draws()[:1]
        device = register(monkeypatch, FakeGeneratorsModule(count=1))
        with replay(state, missing="skip"):
            assert device.draws() == drawn
        state.restore(missing="skip")
        assert device.draws() == drawn

    def test_a_state_of_an_uninitialised_backend_is_refused_and_does_not_initialise_it(
        self, two_devices: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = capture()
        device = register(monkeypatch, FakeGeneratorsModule(initialized=False))
        message = f"the state holds {NAME}:0, {NAME}:1, which is not here; initialise the device"
        with pytest.raises(StateMismatchError, match=re.escape(message)):
            state.restore()
        state.restore(missing="skip")
        assert not device.is_initialized()

    def test_devices_that_the_state_does_not_hold_are_left_alone(self, two_devices: Any) -> None:
        state = capture(devices=[f"{NAME}:1"])
        first, second = two_devices.ahead(1)[0]
        two_devices.draws()
        expected = two_devices.ahead(1)[0][0]
        state.restore()
        assert two_devices.draws() == [expected, second]
        assert first != expected

    def test_a_replay_of_a_state_without_devices_still_isolates_them(self, two_devices: Any) -> None:
        state = capture(devices=[])
        expected = two_devices.ahead()
        with replay(state):
            two_devices.draws()
        assert two_devices.ahead() == expected


def run_python(code: str) -> str:
    """Run a program in a fresh interpreter, with warnings as errors; return what it prints."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="a backend in Python alone needs a newer torch",
)
def test_a_renamed_backend_is_known_by_its_name_and_an_int_names_its_devices() -> None:
    run_python(
        """
        import torch
        from torch.utils import backend_registration
        from scoped_rng import capture, deterministic
        from tests.fake_device import FakeGeneratorsModule, seeded_draws

        with deterministic(0):
            pass
        module = FakeGeneratorsModule()
        module.is_available = lambda: True
        backend_registration._setup_privateuseone_for_python_backend(rename="toy", backend_module=module)
        assert capture().names[-2:] == ("toy:0", "toy:1"), capture().names
        first, second = module.ahead(1)[0]
        with deterministic(3, devices=[1]):
            assert module.draws() == [first, *seeded_draws(3)]
        expected = module.ahead()
        with deterministic(3):
            assert module.draws() == seeded_draws(3) * 2
        assert module.ahead() == expected
        try:
            deterministic(3, devices=[2]).__enter__()
        except ValueError as error:
            assert str(error) == "the device 'toy:2' is not there: toy has 2 device(s)", error
        else:
            raise AssertionError("not refused")
        """
    )


def test_mps_has_one_device_and_no_lazy_tracker() -> None:
    run_python(
        """
        import torch

        generator = torch.Generator().manual_seed(11)
        torch._C._has_mps = True
        torch._C._mps_is_available = lambda: True
        torch._C._mps_get_default_generator = lambda: generator
        torch._C._mps_is_in_bad_fork = lambda: False

        from scoped_rng import RngState, capture, deterministic, isolated, replay
        from tests.fake_device import draw_from, seeded_draws

        first, second, third = seeded_draws(11, 3)
        with deterministic(3):
            assert draw_from(generator) == seeded_draws(3)[0]
        assert draw_from(generator) == first
        with isolated():
            assert draw_from(generator) == second
        state = RngState.from_state_dict(capture().state_dict())
        assert "mps:0" in state.names, state.names
        assert draw_from(generator) == second
        with replay(state):
            assert draw_from(generator) == second
        with deterministic(3, devices=[]):
            assert draw_from(generator) == third
        for name in ("mps:0", "mps"):
            before = generator.get_state()
            with deterministic(3, devices=[name]):
                assert draw_from(generator) == seeded_draws(3)[0]
            assert torch.equal(generator.get_state(), before)
        """
    )


def test_scopes_initialise_no_backend() -> None:
    run_python(
        """
        import torch
        import scoped_rng

        def refuse(*args):
            raise AssertionError("a backend was initialised")

        for module in (torch.cuda, torch.xpu, torch.mtia):
            module._lazy_init = refuse

        @scoped_rng.fixed_seed(0)
        def generate():
            yield 1

        with scoped_rng.deterministic(0, strict=True), scoped_rng.isolated(1):
            state = scoped_rng.capture()
        state.restore(missing="skip")  # NumPy's entropy is no stream here
        with scoped_rng.replay(state):
            list(generate())
        """
    )


def test_a_numpy_integer_is_the_number_of_a_device() -> None:
    def outcome(number: Any) -> Any:
        try:
            return check_devices([number])
        except ValueError as error:  # a torch that is built for the CPU alone
            return str(error)

    assert outcome(np.int64(1)) == outcome(1)
