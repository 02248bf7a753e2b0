"""The pytest plugin: a seed for every test, and a report of what a test leaves moved.

It covers Python and, as far as they are imported when a test begins, numpy and torch; it imports neither. Without its
options and marker it adds the fixture `rng_seed` and nothing else, and every pytest in the environment loads it: so the
rest of the package is imported where it is first used.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator
from typing import Any

import pytest

__all__ = ["rng_seed"]

MARKER = "fixed_seed"
SIGNATURE = "fixed_seed(seed=0, *, strict=False, also=(), devices=None)"
LEAKS = ("ignore", "warn", "error")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("scoped_rng", "random streams (scoped_rng)")
    group.addoption(
        "--rng-seed",
        metavar="N|fresh|off",
        type=_read_seed,
        help="isolate every test's random streams and seed them by N and the test's name; "
        "'fresh' picks an N for the run (default: rng_seed in the configuration file, or off)",
    )
    group.addoption(
        "--rng-leaks",
        metavar="|".join(LEAKS),
        type=_read_leaks,
        help="tell of a test that leaves a global random stream moved or a determinism flag changed "
        "(default: rng_leaks in the configuration file, or ignore)",
    )
    parser.addini("rng_seed", "N, fresh or off: the default of --rng-seed", default="off")
    parser.addini("rng_leaks", "ignore, warn or error: the default of --rng-leaks", default="ignore")


def _read_seed(text: str) -> int | str:
    from ..seeds import check_seed

    if text in ("fresh", "off"):
        return text
    try:
        return check_seed(int(text) if text.isascii() and text.isdecimal() else -1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 2**64), 'fresh' or 'off', got {text!r}") from None


def _read_leaks(text: str) -> str:
    if text not in LEAKS:
        raise argparse.ArgumentTypeError(f"expected 'ignore', 'warn' or 'error', got {text!r}")
    return text


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{SIGNATURE}: run the test's call from this seed, with the meaning of scoped_rng.fixed_seed"
    )
    for name, read in (("rng_seed", _read_seed), ("rng_leaks", _read_leaks)):
        if getattr(config.option, name) is None:
            try:
                setattr(config.option, name, read(config.getini(name)))
            except argparse.ArgumentTypeError as error:
                raise pytest.UsageError(f"{name} in {config.inipath or 'the configuration'}: {error}") from None
    if config.option.rng_seed == "fresh":
        import secrets

        of_the_run = getattr(config, "workerinput", {}).get("rng_seed")  # where this is a worker of pytest-xdist
        config.option.rng_seed = secrets.randbits(32) if of_the_run is None else of_the_run
    if config.option.rng_seed != "off" or config.option.rng_leaks != "ignore":
        _register(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand a fresh seed to a worker of pytest-xdist."""
    node.workerinput["rng_seed"] = node.config.option.rng_seed


def _register(config: pytest.Config) -> None:
    from .leaks import Leaks
    from .seeding import Refusal, Seeding

    seed = config.option.rng_seed
    seeding = Seeding(None if seed == "off" else seed, config.getoption("showcapture", "all") == "all")
    config.pluginmanager.register(seeding, "scoped_rng_seeding")
    config.pluginmanager.register(Refusal(seeding), "scoped_rng_refusal")
    if config.option.rng_leaks != "ignore":
        # Last, so that its hooks are round those of the seeding: what a test's own scope holds is no leak.
        config.pluginmanager.register(Leaks(config.option.rng_leaks, seeding.seed), "scoped_rng_leaks")


def pytest_report_header(config: pytest.Config) -> str | None:
    shown = [
        f"{name}={value}"
        for name, value in (("--rng-seed", config.option.rng_seed), ("--rng-leaks", config.option.rng_leaks))
        if value not in ("off", "ignore")
    ]
    return f"scoped_rng: {' '.join(shown)}" if shown else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    is_registered = config.pluginmanager.hasplugin("scoped_rng_seeding")
    if not is_registered and any(item.get_closest_marker(MARKER) for item in items):
        _register(config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, Any]:
    report = yield
    if report.passed and (type(collector) is pytest.Module or isinstance(collector, pytest.Class)):
        for name in _marked_classes_without_tests(collector, report.result):
            report.outcome = "failed"
            report.longrepr = (
                f"{collector.nodeid}: @pytest.mark.{MARKER} on the class {name}, which has no tests; put it on a class "
                "with tests, on the tests, or (pytestmark = ...) on the module; on a base class in a file of its own, "
                "set __test__ = False"
            )
    return report


def _marked_classes_without_tests(collector: pytest.Module | pytest.Class, collected: list[Any]) -> list[str]:
    found = []
    if isinstance(collector, pytest.Class) and not collected and _has_marker_for_nothing(collector.obj):
        found.append(collector.name)
    for name, value in list(vars(collector.obj).items()):
        # By its type: a proxy in a module may do anything when it is asked for its attributes.
        if issubclass(type(value), type) and _has_marker_for_nothing(value):
            has_tests = any(collector.funcnamefilter(test) for test in dir(value))  # a base, perhaps
            if not has_tests and not any(node.name == name for node in collected):
                found.append(name)
    return found


def _has_marker_for_nothing(cls: type) -> bool:
    """Return whether a class, if it has no tests, has the marker itself and no class to lend it to."""
    names = type.__getattribute__(cls, "__dict__")
    marks = names.get("pytestmark", ())
    is_marked = any(
        isinstance(mark, (pytest.Mark, pytest.MarkDecorator)) and mark.name == MARKER
        for mark in (marks if isinstance(marks, (list, tuple)) else [marks])
    )
    return is_marked and names.get("__test__", True) is not False and not type.__subclasses__(cls)


@pytest.fixture
def rng_seed(request: pytest.FixtureRequest) -> int:
    """The test's own seed: the marker's, or one made of ``--rng-seed`` (0 where it is off) and the test's name.

    For explicit generators. The global streams start from the same seed, so derive one for each generator:
    ``torch.Generator().manual_seed(fold_in(rng_seed, "weights"))``.
    """
    from .seeding import seed_of

    return seed_of(request.node)
