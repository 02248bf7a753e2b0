"""Runs of one call under the same seed, each on copies of its own, and compared with the first."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import random
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from ..compare import first_difference
from ..compare.parts import parts
from ..scope import Scope, isolated
from ..state import RngState, capture
from ..streams.devices import default_generators
from ..streams.registry import REGISTERED

__all__ = ["Call", "Repetition"]

T = TypeVar("T")
_numpy: Any = np.random  # whose stubs leave out get_bit_generator


class Call(NamedTuple):
    """A function and its arguments."""

    fn: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        return str(getattr(self.fn, "__qualname__", None) or type(self.fn).__qualname__)

    def named(self) -> list[tuple[str, Any]]:
        """Return the arguments by the names that the function has for them."""
        try:
            known = inspect.signature(getattr(self.fn, "forward", self.fn)).parameters.values()
        except (TypeError, ValueError):  # a builtin
            known = {}.values()
        names = [it.name for it in known if it.kind in (it.POSITIONAL_ONLY, it.POSITIONAL_OR_KEYWORD)]
        names += [str(place) for place in range(len(names), len(self.args))]
        return [*zip(names, self.args, strict=False), *self.kwargs.items()]

    def check(self, result: T) -> T:
        """Return ``result``, or refuse what is still to be run."""
        if isinstance(result, (types.GeneratorType, types.AsyncGeneratorType)) or inspect.isawaitable(result):
            if isinstance(result, types.CoroutineType):
                result.close()  # it would warn that nobody has awaited it
            raise TypeError(
                f"{self.name} has returned a {type(result).__name__}, whose body runs later, outside of the check; "
                "hand over a plain function that runs it to its end, with list() or asyncio.run() say"
            )
        return result


class _Run(NamedTuple):
    """What a run has left behind."""

    call: Call
    result: Any
    streams: RngState


class Repetition:
    """Runs of one call, each on copies of its own, compared with the first."""

    def __init__(self, call: Call, scope: Scope, runs: int, handed_over: Sequence[Any] = ()) -> None:
        self.numbers = range(1, runs + 1)
        self.record: Callable[[], AbstractContextManager[Any]] = nullcontext  # or one that gives the trace of a run
        self._traces: list[Any] = []
        self._call, self._scope = call, scope
        self._owner = None
        # deepcopy takes over the methods of C as they are, with the objects that they are bound to.
        owner = getattr(call.fn, "__self__", None)
        if isinstance(call.fn, types.BuiltinMethodType) and not isinstance(owner, (types.ModuleType, type(None))):
            self._owner = owner
        # What is seeded by the scope must stay the very object.
        global_bits: Any = _numpy.get_bit_generator()
        over_global = [it for _, it in call.named() if getattr(it, "bit_generator", None) is global_bits]
        self._shared = [*_global_generators(), *over_global, *handed_over]

    def repeat(self) -> Any:
        """Do all runs and return what the first one has returned."""
        __tracebackhide__ = True

        @isolated()  # copying and comparing run code of the user's objects, which may draw
        def repeat() -> None:
            __tracebackhide__ = True
            for number in self.numbers:
                call = self.copy()

                @self._scope
                def run(call: Call = call) -> tuple[Any, RngState]:
                    __tracebackhide__ = True
                    with self.record() as trace:
                        self._traces.append(trace)
                        result = call.check(call.fn(*call.args, **call.kwargs))
                    return result, capture()

                with self.explained(number):
                    result, streams = run()
                self.compare(number, _Run(call, result, streams))

        repeat()
        return self.result

    async def repeat_async(self) -> Any:
        """Do `repeat` for a coroutine function, which the scope is taken out of wherever it waits."""
        __tracebackhide__ = True

        @isolated()
        async def repeat() -> None:
            __tracebackhide__ = True
            for number in self.numbers:
                call = self.copy()

                @self._scope
                async def run(call: Call = call) -> tuple[Any, RngState]:
                    __tracebackhide__ = True
                    return await call.fn(*call.args, **call.kwargs), capture()

                with self.explained(number):
                    result, streams = await run()
                self.compare(number, _Run(call, result, streams))

        await repeat()
        return self.result

    def copy(self) -> Call:
        """Return a copy of the call, made in one go: what two arguments share is shared by their copies."""
        fn, args, kwargs = self._call
        bound = self._owner is not None
        try:
            fn, args, kwargs = self._deepcopy((self._owner if bound else fn, args, kwargs))
        except Exception as error:
            what = next(
                (f"argument {name}" for name, it in self._call.named() if not self._can_copy(it)), self._call.name
            )
            raise TypeError(
                f"{what} cannot be copied, and each run needs a copy of its own ({type(error).__name__}: "
                f"{_first_line(error)}); make it inside of the function"
                + (", or hand over tensor.detach()" if "deepcopy protocol" in str(error) else "")
            ) from error
        return Call(getattr(fn, self._call.fn.__name__) if bound else fn, args, kwargs)

    def _deepcopy(self, value: Any) -> Any:
        return _deepcopy(value, {id(it): it for it in self._shared})

    def _can_copy(self, value: Any) -> bool:
        try:
            self._deepcopy(value)
        except Exception:
            return False
        return True

    @contextmanager
    def explained(self, number: int) -> Iterator[None]:
        """Let the first run raise what it raises; if only a later one does, that is the failure."""
        try:
            yield
        except Exception as error:
            if number == 1:
                raise
            raise AssertionError(
                f"{self._call.name} does not repeat under seed {self._scope.seed}: run {number} raises "
                f"{type(error).__name__}: {_first_line(error)}; run 1 does not\n{self._hint(_LEFT_OVER)}"
            ) from error

    def compare(self, number: int, run: _Run) -> None:
        """Compare a run with the first one, or keep it as that."""
        __tracebackhide__ = True
        if number == 1:
            self.result = run.result
            self._first = run._replace(result=_snapshot(run.result))
            return
        first = self._first
        pairs = [
            ("result", first.result, run.result),
            ("function", _state(first.call.fn), _state(run.call.fn)),
        ]
        pairs += [
            (f"argument {name}", one, other)
            for (name, one), (_, other) in zip(first.call.named(), run.call.named(), strict=True)
        ]
        told = [text for pair in pairs if (text := _told(*pair))]
        moved = run.streams.diff(first.streams)
        if moved:
            told.append(f"run {number} has consumed {', '.join(moved)} differently from run 1")
        if told:
            hint = _DREW_OTHERS if moved else _DREW_THE_SAME
            raise AssertionError(
                f"{self._call.name} does not repeat under seed {self._scope.seed}: run {number} differs from run 1\n"
                + "".join(f"  {line}\n" for line in told)
                + self._hint(hint)
            )

    def _hint(self, hint: str) -> str:
        """Tell the op in which the last run has parted from the first, if they were recorded and it is known."""
        if not self._traces or self._traces[0] is None:
            return hint
        from ..trace.divergence import first_divergence

        divergence = first_divergence(self._traces[0], self._traces[-1])
        return f"  {_NO_OP}\n{hint}" if divergence is None else f"  {divergence}"


_LEFT_OVER = (
    "Look for what run 1 has left behind: a global, a cache, a file, or what a closure holds (hand that over as an "
    "argument: each run gets a copy)."
)
_NO_OP = "the torch ops of both runs agree: what differs came from elsewhere, or is memory that no op has written"
_DREW_OTHERS = (
    "Look for a draw that does not happen in each run: one that depends on a cache, a global, the time, or the order "
    "of a set."
)
_DREW_THE_SAME = (
    "The runs drew the same numbers. Look for what stays from run to run: a global, a cache, or what a closure holds "
    "(hand that over as an argument: each run gets a copy); for the time and the system's own entropy; and for "
    "operations without a deterministic algorithm (strict=True makes them errors)."
)


def _told(what: str, first: Any, second: Any) -> str:
    try:
        difference = first_difference(first, second, grad=True)
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from error
    if difference is None:
        return ""
    difference = dataclasses.replace(difference, path=what + difference.path)
    if difference.what == "incomparable":
        raise TypeError(str(difference))
    return str(difference)


def _state(fn: Any) -> Any:
    """Return what of a function is copied for each run: the object of a bound method, say."""
    return fn.__self__ if isinstance(fn, types.BuiltinMethodType) else fn


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _global_generators() -> list[Any]:
    """Return the objects that the global functions draw from."""
    python: Any = random.getstate
    return [
        python.__self__,
        getattr(_numpy.mtrand, "_rand", _numpy),
        _numpy.get_bit_generator(),
        torch.default_generator,
        *default_generators(),
        *(held.subject for held in REGISTERED.values()),
    ]


def _deepcopy(value: Any, memo: dict[int, Any]) -> Any:
    copied = copy.deepcopy(value, memo)
    kept: Any = memo.get(id(memo), ())
    for original in kept:  # which is where deepcopy keeps what it has copied alive
        if isinstance(original, (np.random.Generator, np.random.BitGenerator)):
            # NumPy before 2 gives a copy a seed sequence of its own, from fresh entropy.
            both: tuple[Any, Any] = (original, memo[id(original)])
            ours, its = (getattr(it, "bit_generator", it).seed_seq for it in both)
            if isinstance(its, np.random.SeedSequence):
                its.__init__(**ours.state if isinstance(ours, np.random.SeedSequence) else {"entropy": 0})  # type: ignore[misc]
    return copied


def _snapshot(result: Any) -> Any:
    """Return a copy to compare with: a function may hand out what it goes on changing, a list or a buffer say.

    deepcopy refuses tensors that were computed, so those are cloned before. What cannot be copied stays what it is.
    """
    memo: dict[int, Any] = {}
    todo = [result]
    seen: dict[int, Any] = {}
    while todo:
        it = todo.pop()
        if id(it) in seen:
            continue
        seen[id(it)] = it
        if isinstance(it, torch.Tensor):
            if not it.is_leaf:
                memo[id(it)] = it.detach().clone().requires_grad_()
                memo[id(it)].grad = it.grad.clone() if it.retains_grad and it.grad is not None else None
        elif not isinstance(it, (type, types.FunctionType)):
            todo.extend(part for _, part in (parts(it) or {}).values())
    try:
        return _deepcopy(result, memo)
    except Exception:
        return result
