"""How something ends that may leave its process broken: it runs in a forked child."""

from __future__ import annotations

import json
import os
import signal
import traceback
import warnings
from collections.abc import Callable

__all__ = ["FAILS", "NOT_APPLICABLE", "PASSES", "DoesNotApply", "Fails", "in_child"]

SECONDS = 60
PASSES, FAILS, NOT_APPLICABLE = "passes", "fails", "does not apply"


class DoesNotApply(Exception):
    """The peer has nothing that the row is about."""


class Fails(Exception):
    """The peer gets it wrong."""


def in_child(check: Callable[[], None]) -> tuple[str, str]:
    """Return how ``check`` ends in a forked child, and why."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch has threads, which Python 3.12 and later warn of
        child = os.fork()
    if not child:
        outcome = FAILS, "it ended the process"
        try:
            signal.alarm(SECONDS)  # whose default is to end the process
            try:
                check()
                outcome = PASSES, ""
            except DoesNotApply as reason:
                outcome = NOT_APPLICABLE, str(reason)
            except Fails as reason:
                outcome = FAILS, str(reason)
            except BaseException as error:
                outcome = FAILS, traceback.format_exception_only(error)[-1].strip().partition("\n")[0]
            os.write(writing, json.dumps(outcome).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        found = pipe.read()
    _, status = os.waitpid(child, 0)
    if not found:
        return FAILS, f"the process ended by {signal.Signals(status).name}"
    outcome, why = json.loads(found)
    return outcome, why
