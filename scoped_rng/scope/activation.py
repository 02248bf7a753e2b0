"""The transaction under every form of a scope, and the stack of those that are open.

An activation is one entry of a scope: it takes the value of everything that the scope covers, seeds it, and puts it
back when the scope is left. Streams are process-wide, so the open activations of the process are one stack.
"""

from __future__ import annotations

import contextvars
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..dynamo import imported, skipped
from ..errors import ConcurrentScopeError, RestoreError, RestoreWarning, ScopeOrderWarning, warn

if TYPE_CHECKING:
    from ..streams.registry import Held
    from . import Scope

__all__ = ["Activation", "Transaction", "all_or_none", "ambient_value", "find", "run_within"]


T = TypeVar("T")
Link = tuple["Activation", Any]  # and the link of what it is in, or None


class Transaction:
    """Take the value of streams, and put all of them back whatever happens."""

    trouble = False
    failures: tuple[tuple[str, BaseException], ...] = ()
    interrupted: Held | None = None

    def __init__(self) -> None:
        self.undo: list[tuple[Held, Any]] = []

    def take(self, plan: Iterable[Held]) -> None:
        """Note the value of each of ``plan``."""
        undo = self.undo
        for held in plan:
            undo.append((held, held.take()))

    def put_back(self) -> None:
        """Put back everything that was taken, last first; where it was interrupted, a second call goes on."""
        undo = self.undo
        while undo:
            held, value = undo[-1]
            try:
                held.put(value)
            except BaseException as error:
                if not isinstance(error, Exception) and self.interrupted is not held:
                    self.interrupted = held  # not its fault, so the second call tries it again, but no third one
                    raise
                self.trouble = True
                self.failures += ((held.name, error),)
            undo.pop()

    def report(self, body_error: BaseException | None) -> None:
        """Raise the first failure with the others in its message, or warn of them where the body has raised."""
        if self.failures:
            told = "; ".join(f"{name}: {type(error).__name__}: {error}" for name, error in self.failures)
            message = f"could not be put back when the scope was left: {told}; everything else was"
            if body_error is None:
                raise RestoreError(message) from self.failures[0][1]
            _warn(message, RestoreWarning, body_error)


def _warn(message: str, category: type[Warning], body_error: BaseException | None) -> None:
    try:
        warn(message, category)
    except category as warning:  # warnings are errors here; but the body's own error is not hidden
        if body_error is None or isinstance(body_error, GeneratorExit):  # which close() swallows
            raise
        while body_error.__context__ is not None:
            body_error = body_error.__context__
        warning.__context__ = None  # which is the body's own: a cycle
        body_error.__context__ = warning


class Activation(Transaction):
    """One entry of a scope.

    `start` and `stop` are under every form; `suspend` and `resume` take an activation out and in again where a
    coroutine or generator gives way. `stop` may be called any number of times: it goes on where a call before was
    interrupted.
    """

    left_early = False
    is_guest = False  # round code whose own scopes may be older or outlive it: the halves of a fixture
    thread = 0
    task: weakref.ref[Any] | None = None
    # While suspended: this activation and those that its body has opened, last opened first, with their values.
    inside: Sequence[tuple[Activation, list[tuple[Held, Any]]]] = ()

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.undo = []

    def start(self) -> None:
        """Enter the scope: check, take everything, seed everything."""
        plan = self.scope.plan()
        with _lock:
            top = _stack[-1] if _stack else None
            if top is not None and top is not _innermost_here():
                _refuse_unless_nested(top)
            self._push()
        self.take(plan)
        self.scope.begin(plan)

    def stop(self) -> None:
        """Put everything back and close the activation."""
        if self in _stack:
            if _stack[-1] is not self:
                later = _stack[_stack.index(self) + 1 :]
                if not (self.is_guest or all(activation.is_guest for activation in later)):
                    self.trouble = self.left_early = True
                self._hand_over()
            self.put_back()
            self._pop()
        if _suspended:  # also where it was interrupted before anything was taken out
            self.inside = ()
            _suspended.pop(id(self), None)

    def report(self, body_error: BaseException | None) -> None:
        """Tell of what went wrong while leaving; call it when all is put back."""
        try:
            if self.left_early:
                _warn(
                    f"{self.scope!r} was left before a scope that was entered after it (a generator that was kept, "
                    "perhaps); the ambient state comes back when the last of them is left",
                    ScopeOrderWarning,
                    body_error,
                )
        finally:
            super().report(body_error)

    def suspend(self) -> None:
        """Take out all that holds since `start` or `resume`, the scopes that the body has opened included."""
        _suspended[id(self)] = self
        for activation in reversed(_stack[_stack.index(self) :]):
            if activation.thread == self.thread:  # what a thread that the body has started holds stays in force there
                values = [(held, activation._value_inside(held)) for held, _ in activation.undo]
                self.inside = (*self.inside, (activation, values))
                activation._hand_over()
                activation.put_back()
                activation._pop()

    def resume(self) -> None:
        """Start, or put in again over what is ambient now all that `suspend` has taken out.

        It also goes on where a call before, or one of `suspend`, was interrupted.
        """
        if not self.inside:
            self.start()
            return
        with _lock:
            top = _stack[-1] if _stack else None
            # A step runs to its next suspension in one go, so within a thread it is nested in whatever is open.
            if top is not None and top.thread != threading.get_ident() and top is not _innermost_here():
                _refuse_unless_nested(top)
            for activation, _ in reversed(self.inside):
                if activation not in _stack:
                    activation._push()
        for activation, values in reversed(self.inside):
            activation.take(held for held, _ in values[len(activation.undo) :])
            for held, value in values:
                held.put(value)
        self.inside = ()
        _suspended.pop(id(self), None)

    def _push(self) -> None:
        within = _link_here()
        self.thread = threading.get_ident()
        self.task = _current_task()
        _stack.append(self)
        _chain.set((self, within))

    def _pop(self) -> None:
        # A fixture is left in another context than it was entered in; there the chain is not ours to change.
        link = _chain.get()
        if link is not None and link[0] is self:
            _chain.set(link[1])
        _stack.remove(self)

    def _hand_over(self) -> None:
        """Pass on to those opened later, and left later, what was ambient: what they found is not."""
        for entry in list(self.undo):
            above = self._above(entry[0])
            if above is not None:
                activation, place = above
                activation.undo[place] = entry
                self.undo.remove(entry)

    def _value_inside(self, held: Held) -> Any:
        above = self._above(held)
        return held.take() if above is None else above[0].undo[above[1]][1]

    def _above(self, held: Held) -> tuple[Activation, int] | None:
        """Return the first activation opened after this one that holds the same, and where."""
        for activation in _stack[_stack.index(self) + 1 :]:
            for place, (other, _) in enumerate(activation.undo):
                if other.subject is held.subject:
                    return activation, place
        return None


def all_or_none(plan: Iterable[Held], change: Callable[[], Any]) -> None:
    """Change streams for good; where that fails, put back all of them and raise."""
    transaction = Transaction()
    try:
        transaction.take(plan)
        change()
    except BaseException as error:
        transaction.put_back()
        transaction.report(error)
        raise


def run_within(activation: Activation, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Call ``fn`` with the activation in force, and report.

    Two finally blocks round the same call: where an interrupt hits the inner one, the outer one goes on.
    """
    __tracebackhide__ = True
    failed = True
    try:
        try:
            activation.start()
            result = fn(*args, **kwargs)
        finally:
            activation.stop()
        failed = False
        return result
    finally:
        activation.stop()
        activation.report(sys.exc_info()[1] if failed else None)


# A generator's frame is never compiled, but does not keep dynamo from what it calls.
for _method in ("__init__", "start", "stop", "suspend", "resume", "report"):
    skipped(getattr(Activation, _method))


# The open activations of the process, innermost last; and the innermost of each context with a link to those round it,
# by which an entry knows what it is nested in: a context is inherited by child tasks, by asyncio.run and by to_thread.
# A link never changes: what an activation is in where it is resumed, contexts that were copied inside it are not in.
_stack: list[Activation] = []
_chain: contextvars.ContextVar[Link | None] = contextvars.ContextVar("scoped_rng", default=None)
_suspended: dict[int, Activation] = {}
# Reentrant, since the garbage collector may close a generator that holds a scope at any line.
_lock = threading.RLock()


def _innermost_here() -> Activation | None:
    """Return the innermost activation of this context that is still open."""
    link = _link_here()
    return None if link is None else link[0]


def _link_here() -> Link | None:
    link = _chain.get()
    while link is not None and link[0] not in _stack:
        link = link[1]
    return link


def _current_task() -> weakref.ref[Any] | None:
    # Without a running loop the public current_task raises, which would cost more than all the rest of this module.
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return None
    task = asyncio.current_task()
    return None if task is None else weakref.ref(task)


def _refuse_unless_nested(top: Activation) -> None:
    """Raise unless an entry here is nested in ``top``, which is open and not of this context."""
    if top.task is None:
        # Opened by synchronous code. In its own thread that is below us on the stack; or the thread has ended.
        if top.thread == threading.get_ident() or top.thread not in sys._current_frames():
            return
        opener = "a thread"
    else:
        task = top.task()
        if task is None or task.done() or not task.get_loop().is_running():
            return  # an async fixture, whose task ends before the test's begins
        opener = f"the task {task.get_name()!r}"
    if _in_backward_thread():
        return
    raise ConcurrentScopeError(
        f"{top.scope!r} is open in {opener} while another scope is being entered, and neither is nested in the other; "
        "the random streams belong to the process, so both would be wrong. Open one after the other (put a lock round "
        "the blocks), decorate coroutines and generators instead of using `with` across an await or a yield, or use "
        "processes"
    )


def _in_backward_thread() -> bool:
    # autograd runs backward on a thread of its own for each accelerator, which knows no context, while the thread that
    # called backward() waits. There is no public way to ask.
    core = getattr(imported("torch"), "_C", None)
    graph_task: Callable[[], int] | None = getattr(core, "_current_graph_task_id", None)
    return (
        graph_task is not None and graph_task() != -1 and isinstance(threading.current_thread(), threading._DummyThread)
    )


def _after_fork_in_child() -> None:
    """Forget the scopes of threads that the child does not have."""
    global _lock
    _lock = threading.RLock()
    here = []
    link = _chain.get()
    while link is not None:
        here.append(link[0])
        link = link[1]
    _stack[:] = [activation for activation in _stack if activation in here]


getattr(os, "register_at_fork", lambda **hooks: None)(after_in_child=_after_fork_in_child)  # Windows does not fork


def find(scope: Scope) -> Activation | None:
    """Return the activation that leaving ``scope`` ends: the innermost one that is open, or else one taken out."""
    for activation in reversed(_stack):
        if activation.scope is scope:
            return activation
    for base in _suspended.values():
        for activation, _ in base.inside:
            if activation.scope is scope and activation is not base:
                base.inside = tuple(entry for entry in base.inside if entry[0] is not activation)
                return activation
    return None


def ambient_value(held: Held) -> Any:
    """Return the value outside of all open scopes."""
    for activation in _stack:
        for other, value in activation.undo:
            if other.subject is held.subject:
                return value
    return held.take()
