"""Whatever is raised at whatever line of the package, the process is as it was.

Each sweep runs one form again and again, with a KeyboardInterrupt at the first, second, third... line that is executed
inside the package, until a run comes to its end before its line is reached.
"""

from __future__ import annotations

import random
import sys
import types
import warnings
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.random.bit_generator as bit_generator
import pytest
import torch

import scoped_rng
from scoped_rng import RestoreError, RestoreWarning, capture, deterministic, fixed_seed, isolated, replay, scope, streams
from tests import kit

PACKAGE = str(Path(scoped_rng.__file__).parent)


def process() -> tuple[Any, ...]:
    """Return all that must be the same before and after a step."""
    return kit.everything(), bit_generator.randbits, tuple(scope._stack), scope._innermost_here()


class Interrupt:
    """Raise KeyboardInterrupt at one line of the package, counted over all steps of a run."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.lines = 0
        self.place = ""
        self.is_first_line_of_exit = False
        self._entering_exit: Any = None

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if frame.f_code is scope.Scope.__exit__.__code__:
            self._entering_exit = frame
        return self._local

    def _local(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"
                self.is_first_line_of_exit = self._entering_exit is frame
                raise KeyboardInterrupt
            if self._entering_exit is frame:
                self._entering_exit = None
        return self._local

    def step(self, action: Callable[[], Any]) -> Any:
        """Do one thing that goes in and out of the package, under this tracer; return what it returns or raises."""
        before, tracer = process(), sys.gettrace()
        try:
            sys.settrace(self)
            try:
                outcome = action()
            finally:
                sys.settrace(tracer)
        except BaseException as error:
            outcome = error.with_traceback(None)
        if self.is_first_line_of_exit:
            assert self.place.endswith("in __exit__")
        assert process() == before, f"after an interrupt at {self.place}"
        return outcome

