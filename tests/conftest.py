"""Every test starts from streams that it may move, and leaves the process as it found it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import torch

from scoped_rng.scope import activation
from tests import kit

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for what a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="all random schedules, hostile inputs and faults, not a few")


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Say whether a test that takes a sample shall take all."""
    return bool(request.config.getoption("long"))


@pytest.fixture(autouse=True)
def process_as_found() -> Iterator[None]:
    """Check that a test leaves no scope open and no flag changed, and put its streams back."""
    bits, saved, flags = np.random.get_bit_generator(), kit.ambient(), kit.flags()
    pending = [(tracker, vars(tracker).copy()) for tracker in kit.trackers()]
    yield
    left_open = list(activation._stack)
    activation._stack.clear()
    activation._suspended.clear()
    np.random.set_bit_generator(bits)
    kit.put_ambient(saved)
    for tracker, values in pending:
        vars(tracker).update(values)
    assert not left_open, "the test has left a scope open"
    assert kit.flags() == flags, "the test has left a flag changed"
