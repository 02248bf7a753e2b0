"""torch's determinism switches: set by a scope, and put back by value."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from scoped_rng import DeterminismWarning, capture, deterministic, fixed_seed, flags, isolated, replay
from scoped_rng.streams import ambient
from tests import kit

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
INDUCTOR = "torch._inductor.config"
NAMES = ("cudnn.deterministic", "cudnn.benchmark", "mkldnn.deterministic", "algorithms", "warn only", "fill")
WARNING = (True, False, True, True, True, False)
RAISING = (True, False, True, True, False, True)
SCOPES = {False: WARNING, True: RAISING}
TOO_LATE = (
    f"CUDA was initialised without {CUBLAS}, so torch refuses cuBLAS calls under strict=True; "
    f"start the program with {CUBLAS}=:4096:8 in its environment"
)


def set_flags(values: tuple[bool, ...]) -> None:
    """Set torch's flags in the order of `kit.flags`, without importing inductor as the public function does."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.mkldnn.deterministic = values[:3]
    torch._C._set_deterministic_algorithms(values[3], warn_only=values[4])
    torch.utils.deterministic.fill_uninitialized_memory = values[5]


@pytest.fixture(autouse=True)
def flags_as_found() -> Iterator[None]:
    found = kit.flags()
    yield
    set_flags(found)


def run_python(program: str, **environment: str) -> list[str]:
    """Run a program in a fresh interpreter, and return the lines that it has printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# Setting and putting back


@pytest.mark.parametrize("form", kit.FORMS.values(), ids=kit.FORMS)
@pytest.mark.parametrize(("strict", "inside"), SCOPES.items(), ids=["warning", "strict"])
def test_deterministic_sets_every_flag_and_puts_it_back(strict: bool, inside: Any, form: Any) -> None:
    before = kit.flags()
    assert form(deterministic(0, strict=strict), kit.flags) == inside
    assert kit.flags() == before


@pytest.mark.parametrize("form", kit.FORMS.values(), ids=kit.FORMS)
@pytest.mark.parametrize(("strict", "inside"), SCOPES.items(), ids=["warning", "strict"])
def test_the_decorator_sets_the_flags_as_well(strict: bool, inside: Any, form: Any) -> None:
    before = kit.flags()
    assert form(fixed_seed(0, strict=strict), kit.flags) == inside
    assert kit.flags() == before


@pytest.mark.parametrize("strict", [False, True])
def test_whatever_the_flags_were_each_comes_back(strict: bool) -> None:
    for values in itertools.product([False, True], repeat=len(NAMES)):
        set_flags(values)
        with deterministic(0, strict=strict):
            assert kit.flags() == SCOPES[strict]
        assert kit.flags() == values


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("form", kit.FORMS.values(), ids=kit.FORMS)
def test_the_flags_come_back_when_the_body_raises(form: Any, error: type[BaseException]) -> None:
    def body() -> None:
        set_flags((False, True, False, False, False, True))
        raise error

    set_flags((False, True, False, False, True, True))
    before = kit.flags()
    with pytest.raises(error):
        form(deterministic(0, strict=True), body)
    assert kit.flags() == before


@pytest.mark.parametrize("place", range(len(NAMES)), ids=NAMES)
@pytest.mark.parametrize("strict", [False, True])
def test_a_flag_that_the_body_changes_is_put_back(strict: bool, place: int) -> None:
    before = kit.flags()
    with deterministic(0, strict=strict):
        values = list(SCOPES[strict])
        values[place] = not values[place]
        set_flags(tuple(values))
    assert kit.flags() == before


@pytest.mark.parametrize(
    "make", [lambda: isolated(), lambda: isolated(0), lambda: replay(capture())], ids=["isolated", "seeded", "replay"]
)
def test_the_other_scopes_leave_the_flags_alone(make: Callable[[], Any]) -> None:
    values = (False, True, False, True, False, True)
    set_flags((False, False, False, False, False, False))
    with make():
        assert kit.flags() == (False,) * 6
        set_flags(values)
    assert kit.flags() == values


def test_nested_scopes_each_have_their_own_flags() -> None:
    before = kit.flags()
    with deterministic(0):
        with deterministic(0, strict=True):
            assert kit.flags() == RAISING
            with deterministic(1):
                assert kit.flags() == WARNING
            assert kit.flags() == RAISING
        assert kit.flags() == WARNING
    assert kit.flags() == before


def test_a_flag_that_a_body_has_changed_is_its_own_while_it_is_suspended() -> None:
    @fixed_seed(0, strict=True)
    def steps() -> Iterator[Any]:
        yield kit.flags()
        torch.backends.cudnn.benchmark = True
        yield kit.flags()
        yield kit.flags()

    before, mine = kit.flags(), (True, True, *RAISING[2:])
    generator = steps()
    for inside in (RAISING, mine, mine):
        assert next(generator) == inside
        assert kit.flags() == before
    generator.close()
    assert kit.flags() == before


# What the flags do


def test_an_operation_without_a_deterministic_algorithm_warns() -> None:
    with (
        deterministic(0),
        pytest.warns(UserWarning, match="put_ does not have a deterministic implementation, but you set"),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))


def test_an_operation_without_a_deterministic_algorithm_raises_under_strict() -> None:
    with (
        deterministic(0, strict=True),
        pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation, but you set"),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))


def test_an_operation_without_a_deterministic_algorithm_is_silent_outside() -> None:
    with deterministic(0, strict=True):
        pass
    assert torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0])).tolist() == [1, 0, 0]


def test_sums_over_several_threads_are_the_same_every_time() -> None:
    values = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0))
    places = torch.zeros(1_000_000, dtype=torch.int64)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with deterministic(0):
            sums = {float(torch.zeros(1).index_put_((places,), values, accumulate=True)) for _ in range(10)}
    finally:
        torch.set_num_threads(threads)
    assert len(sums) == 1


def test_uninitialised_memory_is_filled_under_strict_alone() -> None:
    many = 20_000_000  # too many for torch to give memory that was used before
    with deterministic(0, strict=True):
        assert bool(torch.empty(many)[:1000].isnan().all())
        assert torch.empty(3, dtype=torch.int64).tolist() == [2**63 - 1] * 3
        assert bool(torch.ones(2).resize_(5)[2:].isnan().all())
    with deterministic(0):
        assert not bool(torch.empty(many)[:1000].isnan().any())
    assert not bool(torch.empty(many)[:1000].isnan().any())


# inductor's own switch


class Settings:
    """Stand in for inductor's settings: what it has can be set, and nothing else."""

    def __init__(self, **defaults: bool) -> None:
        vars(self).update(defaults)

    def __setattr__(self, name: str, value: bool) -> None:
        if not hasattr(self, name):
            raise AttributeError(f"{name} does not exist")
        vars(self)[name] = value


class SettingsWithEntries(Settings):
    """The same as torch keeps them: a default, and beside it what somebody has set."""

    def __init__(self, **defaults: bool) -> None:
        entries = {name: types.SimpleNamespace(default=value, user_override=None) for name, value in defaults.items()}
        super().__init__(_config=entries)

    def __getattr__(self, name: str) -> bool:
        if name not in self._config:
            raise AttributeError(f"{name} does not exist")
        entry = self._config[name]
        return entry.default if entry.user_override is None else entry.user_override

    def __setattr__(self, name: str, value: bool) -> None:
        if name not in self._config:
            raise AttributeError(f"{name} does not exist")
        self._config[name].user_override = value


@pytest.fixture(params=[Settings, SettingsWithEntries])
def settings(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def inductor(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand in for inductor's settings, as if inductor had been imported."""
    config = settings(deterministic=False)
    monkeypatch.setitem(sys.modules, INDUCTOR, config)
    return config


@pytest.fixture
def no_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, INDUCTOR, raising=False)
    monkeypatch.delenv("TORCHINDUCTOR_DETERMINISTIC", raising=False)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("ambient", [False, True])
def test_inductors_switch_is_on_inside_and_as_before_outside(inductor: Any, ambient: bool, strict: bool) -> None:
    inductor.deterministic = ambient
    with deterministic(0, strict=strict):
        assert inductor.deterministic is True
    assert inductor.deterministic is ambient
    with deterministic(0, strict=strict):
        inductor.deterministic = not ambient
    assert inductor.deterministic is ambient


def test_the_other_scopes_leave_inductors_switch_alone(inductor: Any) -> None:
    with isolated(0):
        assert inductor.deterministic is False
        inductor.deterministic = True
    assert inductor.deterministic is True


def test_an_inductor_without_the_switch_does_not_get_one(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings()
    monkeypatch.setitem(sys.modules, INDUCTOR, config)
    with deterministic(0):
        assert not hasattr(config, "deterministic")
    assert not hasattr(config, "deterministic")


@pytest.mark.usefixtures("no_inductor")
@pytest.mark.parametrize(("variable", "own"), [(None, False), ("0", False), ("1", True)])
def test_an_inductor_that_the_body_imports_is_left_with_the_switch_that_it_starts_from(
    settings: Any, variable: str | None, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("TORCHINDUCTOR_DETERMINISTIC", variable)
    config = settings(deterministic=own)
    before = kit.flags()
    with deterministic(0):
        monkeypatch.setitem(sys.modules, INDUCTOR, config)
        config.deterministic = True  # as torch.use_deterministic_algorithms does
        with deterministic(0, strict=True):
            assert config.deterministic is True
        assert config.deterministic is True
    assert config.deterministic is own
    assert kit.flags() == before


@pytest.mark.usefixtures("no_inductor")
def test_an_inductor_without_the_switch_that_the_body_imports_does_not_get_one(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings()
    with deterministic(0):
        monkeypatch.setitem(sys.modules, INDUCTOR, config)
    assert not hasattr(config, "deterministic")


def test_the_first_scope_imports_neither_inductor_nor_dynamo() -> None:
    program = """
        import sys
        import torch
        before = set(sys.modules)
        from scoped_rng import capture, deterministic, fixed_seed, isolated, replay
        with deterministic(0):
            torch.rand(2)
        with deterministic(0, strict=True), isolated(1), replay(capture()):
            torch.rand(2)
        @fixed_seed
        def numbers():
            return torch.rand(2)
        numbers()
        new = set(sys.modules) - before
        print(sorted(name for name in new if name.startswith(("torch._inductor", "torch._dynamo"))))
        print("torch._inductor" in sys.modules)
    """
    assert run_python(program) == ["[]", "False"]


@pytest.mark.skipif(not kit.INDUCTOR_HAS_A_SWITCH, reason="inductor has no switch of its own in this torch")
def test_the_real_inductors_switch_is_put_back_wherever_it_was_imported() -> None:
    program = """
        import torch
        from scoped_rng import deterministic
        with deterministic(0):
            import torch._inductor.config as config
            torch.use_deterministic_algorithms(True)
            print(config.deterministic)
        print(config.deterministic)
        with deterministic(0):
            print(config.deterministic)
        print(config.deterministic)
        config.deterministic = True
        with deterministic(0):
            config.deterministic = False
        print(config.deterministic)
    """
    assert run_python(program, TORCHINDUCTOR_DETERMINISTIC="0") == ["True", "False", "True", "False", "True"]


# The cuBLAS variable


@pytest.fixture
def cuda_is_built(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Let the flags believe that CUDA is built; give a function that tells them whether it is initialised."""
    monkeypatch.delenv(CUBLAS, raising=False)
    for held in (ambient.STRICT, ambient.WARN):
        monkeypatch.setattr(held, "_cuda_is_built", True)

    def is_initialised(answer: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: answer)

    is_initialised(False)
    return is_initialised


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("form", kit.FORMS.values(), ids=kit.FORMS)
@pytest.mark.usefixtures("cuda_is_built")
def test_an_absent_variable_is_set_inside_and_absent_again_outside(form: Any, strict: bool) -> None:
    assert form(deterministic(0, strict=strict), lambda: os.environ.get(CUBLAS)) == ":4096:8"
    assert CUBLAS not in os.environ


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("initialised", [False, True])
@pytest.mark.parametrize("value", [":16:8", ":0:0", ""])
def test_a_variable_that_is_there_is_left_as_it_is(
    cuda_is_built: Any, monkeypatch: pytest.MonkeyPatch, value: str, initialised: bool, strict: bool
) -> None:
    cuda_is_built(initialised)
    monkeypatch.setenv(CUBLAS, value)
    with deterministic(0, strict=strict):
        assert os.environ[CUBLAS] == value
    assert os.environ[CUBLAS] == value


@pytest.mark.usefixtures("cuda_is_built")
@pytest.mark.parametrize("ambient", [None, ":16:8"])
@pytest.mark.parametrize("by_the_body", [None, ":0:0"])
def test_a_variable_that_the_body_changes_or_removes_is_put_back(
    monkeypatch: pytest.MonkeyPatch, ambient: str | None, by_the_body: str | None
) -> None:
    if ambient is not None:
        monkeypatch.setenv(CUBLAS, ambient)
    with deterministic(0):
        if by_the_body is None:
            del os.environ[CUBLAS]
        else:
            os.environ[CUBLAS] = by_the_body
    assert os.environ.get(CUBLAS) == ambient


@pytest.mark.usefixtures("cuda_is_built")
def test_nested_scopes_take_the_variable_away_with_the_outermost() -> None:
    with deterministic(0):
        with deterministic(1, strict=True):
            assert os.environ[CUBLAS] == ":4096:8"
        assert os.environ[CUBLAS] == ":4096:8"
    assert CUBLAS not in os.environ


@pytest.mark.usefixtures("cuda_is_built")
def test_the_other_scopes_leave_the_variable_alone() -> None:
    for scope in (isolated(), isolated(0), replay(capture())):
        with scope:
            assert CUBLAS not in os.environ


def enter_and_leave(scope: Any) -> tuple[Any, Any]:
    with scope:
        return os.environ.get(CUBLAS), kit.flags()


def call_decorated(scope: Any) -> tuple[Any, Any]:
    return scope(lambda: (os.environ.get(CUBLAS), kit.flags()))()


@pytest.mark.parametrize("enter", [enter_and_leave, call_decorated])
def test_when_it_is_too_late_strict_warns_and_tells_how_to_start_the_program(cuda_is_built: Any, enter: Any) -> None:
    cuda_is_built(True)
    before = kit.everything()
    with pytest.warns(DeterminismWarning, match=f"^{re.escape(TOO_LATE)}$") as caught:
        inside = enter(deterministic(0, strict=True))
    assert inside == (None, RAISING)
    assert len(caught) == 1
    assert CUBLAS not in os.environ
    assert kit.everything() == before


@pytest.mark.parametrize("enter", [enter_and_leave, call_decorated])
def test_the_warning_points_at_the_line_that_enters_the_scope(cuda_is_built: Any, enter: Any) -> None:
    cuda_is_built(True)
    with pytest.warns(DeterminismWarning) as caught:
        enter(deterministic(0, strict=True))
    assert [warning.filename for warning in caught] == [__file__]


def test_when_it_is_too_late_the_warning_mode_stays_silent(cuda_is_built: Any) -> None:
    cuda_is_built(True)
    with deterministic(0):
        assert CUBLAS not in os.environ
        assert kit.flags() == WARNING
    assert CUBLAS not in os.environ


@pytest.mark.filterwarnings("error::scoped_rng.DeterminismWarning")
@pytest.mark.parametrize("form", kit.FORMS.values(), ids=kit.FORMS)
def test_when_the_warning_is_an_error_nothing_is_changed(cuda_is_built: Any, form: Any) -> None:
    cuda_is_built(True)
    before = kit.everything()
    with pytest.raises(DeterminismWarning, match=f"^{re.escape(TOO_LATE)}$"):
        form(deterministic(0, strict=True), lambda: pytest.fail("the body must not run"))
    assert kit.everything() == before


def test_a_build_without_cuda_does_not_get_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CUBLAS, raising=False)
    for held in (ambient.STRICT, ambient.WARN):
        monkeypatch.setattr(held, "_cuda_is_built", False)
    for strict in (False, True):
        with deterministic(0, strict=strict):
            assert CUBLAS not in os.environ
            os.environ[CUBLAS] = ":16:8"  # what the body sets is then its own
        assert os.environ.pop(CUBLAS) == ":16:8"


# A torch that has frozen or lacks some of the functions


@pytest.fixture
def no_import_of_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the public function its import of inductor."""
    monkeypatch.setattr(torch, "use_deterministic_algorithms", torch._C._set_deterministic_algorithms)


@pytest.mark.usefixtures("no_import_of_inductor")
@pytest.mark.parametrize("core", [types.SimpleNamespace(), torch._C], ids=["public", "private"])
@pytest.mark.parametrize("strict", [False, True])
def test_the_public_functions_do_what_the_private_ones_do(core: Any, strict: bool) -> None:
    held = flags.Flags(strict, core=core)
    for values in itertools.product([False, True], repeat=len(NAMES)):
        set_flags(values)
        taken = held.take()
        assert kit.flags() == values
        held.seed(0)
        assert kit.flags() == SCOPES[strict]
        held.put(taken)
        held.put(taken)
        assert kit.flags() == values


@pytest.mark.usefixtures("no_import_of_inductor")
def test_the_two_ways_read_the_same_values() -> None:
    public, private = flags.Flags(True, core=types.SimpleNamespace()), flags.Flags(True)
    for values in itertools.product([False, True], repeat=len(NAMES)):
        set_flags(values)
        assert public.take() == private.take()


@pytest.mark.usefixtures("no_import_of_inductor")
def test_a_torch_without_a_switch_works_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends, "mkldnn", types.SimpleNamespace())
    held = flags.Flags(False, core=types.SimpleNamespace())
    taken = held.take()
    held.seed(0)
    held.put(taken)
    assert vars(torch.backends.mkldnn) == {}


def test_scopes_work_after_torchs_own_test_tools_were_imported_which_freeze_the_flags() -> None:
    program = """
        import sys, types, unittest, warnings
        # They are built on a package that need not be here, of which they use one class.
        sys.modules["expecttest"] = types.SimpleNamespace(TestCase=unittest.TestCase)
        import torch
        torch.backends.cudnn.benchmark = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch.testing._internal.common_utils
        try:
            torch.backends.cudnn.deterministic = True
        except RuntimeError:
            print("frozen")
        from scoped_rng import deterministic
        from tests import kit
        before = kit.everything()
        with deterministic(0, strict=True):
            print(kit.flags())
            print(kit.draws() == kit.reference(0)[0])
        print(kit.everything() == before)
    """
    assert run_python(program) == ["frozen", str(RAISING), "True", "True"]


def test_a_flag_that_cannot_be_set_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, seed: int) -> None:
        torch.backends.cudnn.deterministic = not torch.backends.cudnn.deterministic
        raise RuntimeError("this build has no such switch")

    monkeypatch.setattr(flags.Flags, "seed", refuse)
    np.random.standard_normal()  # leaves one behind
    before = kit.everything()
    with pytest.raises(RuntimeError, match="this build has no such switch"), deterministic(0):
        pytest.fail("the body must not run")
    assert kit.everything() == before
