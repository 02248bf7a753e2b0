"""What a test leaves moved or changed, for the pytest plugin."""

from __future__ import annotations

import pickle
import re
from collections.abc import Generator
from typing import Any

import pytest

from ..dynamo import imported
from ..errors import LeakWarning
from ..scope.activation import ambient_value
from ..streams.python import loaded_streams

__all__ = ["Leaks"]


class Leaks:
    """Tell of a test that leaves a stream moved or a flag changed, and of the fixture or phase that did it."""

    def __init__(self, mode: str, seed: int | None) -> None:
        self._mode = mode
        self._hint_for_streams = "draw in a scope (isolated() or deterministic(seed)) or from a generator of your own"
        if seed is None:
            self._hint_for_streams += ", or isolate every test with --rng-seed"
        self._first: dict[str, Any] = {}
        self._last: dict[str, Any] = {}
        self._moved: dict[str, dict[str, None]] = {}  # by whom, each once

    def _look(self, where: str) -> None:
        now = _values()
        for name in _differing(self._last, now):
            self._moved.setdefault(name, {})[where] = None
        self._last = now

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, Any, Any]:
        self._first = self._last = _values()
        self._moved = {}
        try:
            return (yield)
        finally:
            self._look("the setup")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Generator[None, Any, Any]:
        try:
            return (yield)
        finally:
            self._look("the test")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, Any, Any]:
        # setup_module and the like are fixtures too, with names that pytest makes.
        hook = re.fullmatch(r"_(?:xunit|unittest)_(\w+?)_fixture_.*", fixturedef.argname)
        name = f"{hook[1]}()" if hook else f"the fixture {fixturedef.argname!r}"
        request.addfinalizer(lambda: self._look(f"the teardown of {name}"))
        self._look("the setup")
        try:
            return (yield)
        finally:
            self._look(name)
            request.addfinalizer(lambda: self._look("the teardown"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        failed = True
        try:
            result = yield
            failed = False
        finally:
            self._look("the teardown")
            message = self._told(item)
            if message and failed:
                # Not a warning: where those are errors, it would hide the failure.
                item.add_report_section("teardown", "leaks", message)
        if message and self._mode == "error":
            pytest.fail(message, pytrace=False)
        if message:
            item.warn(LeakWarning(message))
        return result

    def _told(self, item: pytest.Item) -> str:
        """Return what has moved, by who moved it, and what to do about it; or nothing."""
        told: dict[str, list[str]] = {}
        hints: dict[str, None] = {}
        for name in _differing(self._first, self._last):
            who = list(self._moved[name])
            plural = "" if len(who) > 1 else "s"
            if isinstance(self._last[name], bytes):
                did, change = f"move{plural}", ""
                hints[self._hint_for_streams] = None
            else:
                did, change = f"change{plural}", f" from {self._first[name]!r} to {self._last[name]!r}"
                hints["set flags in a scope (deterministic(seed)), or put them back"] = None
            told.setdefault(f"{' and '.join(who)} {did}", []).append(name + change)
        shown = "; ".join(f"{what} {', '.join(names)}" for what, names in told.items())
        advice = "; ".join(hints)
        return f"{item.nodeid} leaks: {shown}. {advice[:1].upper()}{advice[1:]}" if told else ""


def _values() -> dict[str, Any]:
    """Return the streams, as bytes, and the flags of what is imported, as they are outside of all open scopes.

    What a scope holds, be it the test's own or that of a fixture which lives on, will be put back.
    """
    values: dict[str, Any] = {}
    for held in loaded_streams():
        # Neither the seeds that wait for a backend nor fresh entropy, which a test cannot move.
        if held.kind and held.name != "numpy.entropy":
            value = ambient_value(held)
            if hasattr(held, "as_dict"):
                value = held.as_dict(value)  # NumPy's bit generator itself would be pickled as it is now
            # A tensor's pickle has an address in it.
            values[held.name] = value.numpy().tobytes() if hasattr(value, "numpy") else pickle.dumps(value)
    if imported("torch") is not None:
        from ..flags import NAMES, WARN

        values.update(zip(NAMES, ambient_value(WARN), strict=True))
    return values


def _differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return what has another value; what was imported in between has no value before."""
    return [name for name in before if before[name] is not None and after.get(name, before[name]) != before[name]]
