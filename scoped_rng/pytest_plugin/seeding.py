"""The scope of a test, from its setup to its teardown, and those of the fixtures that outlive it."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Generator
from typing import Any, SupportsIndex

import pytest

from ..decorators import decorate
from ..dynamo import imported
from ..scope import Scope
from ..scope.activation import Activation
from ..seeds import check_bool, check_seed, fold_in
from ..streams.python import loaded_streams
from . import MARKER, SIGNATURE

__all__ = ["Refusal", "Seeding", "seed_of"]

_SCOPE = pytest.StashKey["_Imported | None"]()  # what the marker asks for


class _Imported(Scope):
    """A scope over what is imported when it is entered."""

    def with_seed(self, seed: int) -> _Imported:
        other = copy.copy(self)
        other._seed = seed
        return other

    def plan(self) -> list[Any]:
        plan = [*loaded_streams(self._devices), *self._also]
        if self._strict is not None and imported("torch") is not None:
            from ..streams.ambient import STRICT, WARN

            plan.append(STRICT if self._strict else WARN)
        return plan


def fixed_seed(seed: SupportsIndex = 0, *, strict: bool = False, also: Any = (), devices: Any = None) -> _Imported:
    """Return the scope that a marker with these arguments asks for."""
    return _Imported(MARKER, check_seed(seed), also, devices, check_bool("strict", strict))


def _marked_scope(item: pytest.Item) -> _Imported | None:
    """Return the scope that the closest marker of a test asks for."""
    for node, mark in item.iter_markers_with_node(MARKER):
        try:
            return fixed_seed(*mark.args, **mark.kwargs)
        except (TypeError, ValueError) as error:
            told = f"@pytest.mark.{MARKER} on {node.nodeid}: {error}; the marker is {SIGNATURE}"
            raise pytest.fail.Exception(told, pytrace=False) from None
    return None


def seed_of(item: pytest.Item) -> int:
    """Return a test's own seed: its marker's, or one made of the run's (0 if there is none) and its name."""
    scope = item.stash[_SCOPE] if _SCOPE in item.stash else _marked_scope(item)
    if scope is not None and scope.seed is not None:
        return scope.seed
    run = item.config.option.rng_seed
    return fold_in(0 if run == "off" else run, _name(item))


def _name(item: pytest.Item) -> str:
    """Return the node id without the group that pytest-xdist adds to it under ``--dist=loadgroup``."""
    marks = item.iter_markers("xdist_group")
    groups = {str(mark.args[0] if mark.args else mark.kwargs.get("name", "default")) for mark in marks}
    return item.nodeid.removesuffix("@" + "_".join(sorted(groups)))


def _param(request: pytest.FixtureRequest) -> str:
    """Tell the instances of a parametrised fixture apart: by their value, as pytest does when it shares them."""
    value = getattr(request, "param", None)
    parts = value if isinstance(value, tuple) else (value,)
    is_plain = all(part is None or isinstance(part, (bool, int, float, str, bytes)) for part in parts)
    return repr(value) if is_plain else str(getattr(request, "param_index", 0))


def _command(item: pytest.Item, seed: int) -> str:
    """Return the command that runs a test again."""
    config, options = item.config, [f"--rng-seed={seed}"]
    here = config.invocation_params.dir
    if config.rootpath != here:  # which names are relative to
        options.append(f"--rootdir={_quoted(os.path.relpath(config.rootpath, here))}")
    if config.getoption("inifilename", None):
        options.append(f"-c {_quoted(str(config.getoption('inifilename')))}")
    if isinstance(item, pytest.DoctestItem):
        is_module = item.path.suffix == ".py"
        options.append("--doctest-modules" if is_module else f"--doctest-glob={_quoted(item.path.name)}")
    _, colons, names = _name(item).partition("::")
    return f"pytest {' '.join(options)} {_quoted(os.path.relpath(item.path, here) + colons + names)}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"  # for a shell


class Seeding:
    """Seed every test (or only those with the marker), with one activation from its setup to its teardown."""

    def __init__(self, seed: int | None, shows_sections: bool) -> None:
        self.seed = seed
        self._shows_sections = shows_sections
        self.current: Activation | None = None  # the test's, or that of a wide fixture in the meantime
        self._reseeds_itself: bool | None = None
        self.refusal: BaseException | None = None
        self._item: pytest.Item | None = None  # the test that was last set up

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        try:
            self._enter(item)
        except (Exception, pytest.fail.Exception) as error:
            self.refusal = error  # other plugins' wrappers expect at the teardown that theirs were begun
        return (yield)

    def _enter(self, item: pytest.Item) -> None:
        self._item = item
        item.stash[_SCOPE] = None
        scope = item.stash[_SCOPE] = _marked_scope(item)
        if scope is not None:
            # Not the call's own seed: what a fixture draws would be the very numbers that the test draws.
            scope = scope.with_seed(fold_in(seed_of(item), "setup"))
        elif self.seed is not None:
            scope = _Imported("isolated", fold_in(self.seed, _name(item)))
        if scope is not None:
            self._switch_off_randomly(item.config)
            self.current = Activation(scope)
            self.current.start()

    # Inside of all other wrappers: what those draw is not the test's.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        __tracebackhide__ = True
        marked = item.stash.get(_SCOPE, None)
        if marked is None:
            return (yield)
        given: Any = getattr(getattr(item, "obj", None), "hypothesis", None)
        if hasattr(given, "inner_test"):  # every example starts from the seed, as with the decorator
            plain = given.inner_test
            given.inner_test = decorate(marked, plain)
            try:
                return (yield)
            finally:
                given.inner_test = plain
        activation, failed = Activation(marked), True
        try:
            try:
                activation.start()
                result = yield
            finally:
                activation.stop()
            failed = False
            return result
        finally:
            activation.stop()
            activation.report(sys.exc_info()[1] if failed else None)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        failed = True
        try:
            result = yield
            failed = False
            return result
        finally:
            self._leave(item.config, sys.exc_info()[1] if failed else None)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, Any, Any]:
        """Leave the test that a KeyboardInterrupt or `pytest.exit` has ended: it gets no teardown of its own."""
        try:
            return (yield)
        finally:
            self._leave(session.config, None)

    def _leave(self, config: pytest.Config, error: BaseException | None) -> None:
        activation, self.current = self.current, None
        if activation is not None:
            _stop(activation)
            activation.report(error)
        if self._reseeds_itself is not None:
            config.option.randomly_reset_seed, self._reseeds_itself = self._reseeds_itself, None

    def _switch_off_randomly(self, config: pytest.Config) -> None:
        # pytest-randomly seeds inside these hooks, at the borders of the phases; this is the option by which its users
        # stop it.
        self._reseeds_itself = getattr(config.option, "randomly_reset_seed", None)
        if self._reseeds_itself is not None:
            config.option.randomly_reset_seed = False

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, Any, Any]:
        if fixturedef.scope == "function":
            return (yield)
        path = (
            "fixture",
            request.node.nodeid,
            fixturedef.baseid,
            fixturedef.argname,
            _param(request),
        )
        aside = _Aside(self, (*path, "setup"))
        after = _Aside(self, (*path, "teardown"))
        request.addfinalizer(after.end)  # finalizers run last first: this one behind the fixture's own
        try:
            aside.begin()
            return (yield)
        finally:
            aside.end()
            request.addfinalizer(after.begin)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # Here, where all sections are in: a subtest's captured output comes after its report is made. A controller of
        # pytest-xdist, which logs all reports once more, has set no test up.
        item = self._item
        if report.failed and self.seed is not None and item is not None and report.nodeid == item.nodeid:
            command = _command(item, self.seed)
            if ("repeat", command) not in item.user_properties:
                item.user_properties.append(("repeat", command))  # which --junitxml writes with the teardown's report
                report.user_properties.append(("repeat", command))
            if self._shows_sections:
                report.sections.append(("repeat this test", command))
            else:
                getattr(report.longrepr, "addsection", lambda *section: None)("repeat this test", command)


class Refusal:
    """Fail a test's setup, before anything of it has run, where its scope could not be entered."""

    def __init__(self, seeding: Seeding) -> None:
        self._seeding = seeding

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        error, self._seeding.refusal = self._seeding.refusal, None
        if error is not None:
            raise error


class _Aside:
    """Run one half of a wide fixture with the test's activation taken out, under a seed of its own."""

    def __init__(self, seeding: Seeding, path: tuple[str | int, ...]) -> None:
        self._seeding, self._path = seeding, path
        self._waiting: Activation | None = None
        self._has_begun = False

    def begin(self) -> None:
        self._has_begun = True
        activation = None
        if self._seeding.seed is not None:
            activation = Activation(_Imported("isolated", fold_in(self._seeding.seed, *self._path)))
            # A scope that the fixture holds is left after its first half, and was entered before its second.
            activation.is_guest = True
        self._waiting, self._seeding.current = self._seeding.current, activation
        if self._waiting is not None:
            self._waiting.suspend()
        if activation is not None:
            activation.start()

    def end(self) -> None:
        if self._has_begun:
            self._has_begun = False
            activation, self._seeding.current = self._seeding.current, self._waiting
            try:
                if activation is not None:
                    _stop(activation)
            finally:
                if self._waiting is not None:
                    self._waiting.resume()
            if activation is not None:
                activation.report(None)


def _stop(activation: Activation) -> None:
    try:
        activation.stop()
    finally:
        activation.stop()
