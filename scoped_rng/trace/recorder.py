"""Every torch op of a run as fingerprints: what it read, what it gave, and which line and module called it.

Only the thread that records is seen, and its backward passes. What other threads and processes make, and what comes
from outside torch, enters as an input.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack, _pop_mode, _push_mode

from ..dynamo import skipped
from .file import Trace
from .fingerprint import fingerprint, shape_fingerprint, text_hash
from .observe import Streams, torch_state
from .ops import KNOWN, SCRATCH, Op, Read, Unwritten, describe, flat, written_out
from .places import Places

__all__ = ["record"]

Tensor = torch.Tensor
_C: Any = torch._C
_current_graph_task_id = _C._current_graph_task_id
_MOST_GIVEN = 1 << 16
_NO_DISPATCH: Any = Tensor.__torch_dispatch__
_recorders: weakref.WeakSet[_Recorder] = weakref.WeakSet()
_SKIPS_FRAMES = hasattr(_C._dynamo.eval_frame, "set_code_exec_strategy")


@contextlib.contextmanager
def record(path: str | os.PathLike[str] | None = None) -> Iterator[Trace]:
    """Record every torch op that a block runs on this thread, forward and backward, as fingerprints.

    Results, streams and autograd are left alone. A region that torch.compile has compiled is one record.

    Args:
        path: the file to write, to be compared later; None for one that goes when the trace goes.

    Returns:
        A context manager that gives the trace, to be read after the block.

    Raises:
        ImportError: xxhash is not installed; ``pip install 'scoped-rng[cli]'``.

    >>> with record() as trace:
    ...     _ = torch.arange(3).sum()
    >>> [op.op for op in trace]
    ['aten::arange', 'aten::sum']
    """
    trace, writer = Trace.begin(path)
    recorder = _Recorder(writer)
    try:
        try:
            recorder.start()
            yield trace
        finally:
            recorder.stop()
    finally:
        try:
            recorder.stop()
        finally:
            trace.end()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Write down each op of this thread as it runs."""

    def __init__(self, writer: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._writer = writer
        self._places = Places()
        self._unwritten = Unwritten()
        self._given: dict[int, None] = {}
        self._streams = Streams()
        self.muted = 0

    def start(self) -> None:
        """Record from here on."""
        _recorders.add(self)
        _watch_compiled()
        self._streams.entropy.start()
        self._places.begin()
        self.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Record no more; twice is as good as once."""
        _recorders.discard(self)
        self._streams.entropy.stop()
        self._places.end()
        stack = _get_current_dispatch_mode_stack()
        if self in stack:
            # Leaving a mode pops the uppermost one, whichever that is: those that the block has entered and not left
            # are taken off, and stay in force without this one.
            above = stack[stack.index(self) + 1 :]
            for _ in above:
                _pop_mode()
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            for mode in above:
                _push_mode(mode)

    # torch keeps dynamo out of a mode by a wrapper that imports it on the first op: 0.8 s. Skipped frames do as well.
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return not _SKIPS_FRAMES

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let compiled code run, as it does without a recording; dynamo asks before it compiles anything."""
        _watch_compiled()
        return True

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if types and any(kind.__torch_dispatch__ is not _NO_DISPATCH for kind in types):
            return NotImplemented  # a subclass of Tensor takes it apart, and what it calls comes here
        known = KNOWN.get(id(func))
        op, kwargs = describe(func) if known is None else known[0], kwargs or {}
        if self.muted or op.is_silent:
            return func(*args, **kwargs)
        read = Read()
        read.arguments(op, args, kwargs, self._unwritten)
        # Where looking takes long, only for inputs that no op has given lately.
        streams = self._streams.moved(self._streams.are_cheap or self._is_new(read.inputs))
        if op.draws:
            streams = {**streams, **_torch_state((args, tuple(kwargs.values())))}
        result = func(*args, **kwargs)
        if op.makes_memory and not result.numel():
            return result  # nothing to read; torch makes such a tensor for each one that a worker of a loader has sent
        given = [result]
        for index, name in op.writes:
            written = args[index] if index < len(args) else kwargs.get(name)
            if written is not result:
                given.append(written)
        self._add(op, read, streams, given)
        return result

    def _add(self, op: Op, read: Read, streams: Mapping[str, int], given: list[Any], *, opaque: bool = False) -> None:
        """Write down an op that has run, with what it has given: its result and what it has written."""
        memory, tensors = self._unwritten, given
        outputs: list[int] = []
        if len(given) > 1 or op.is_collective or not isinstance(given[0], Tensor):
            tensors = _tensors(op, given, outputs)
        for tensor in tensors:
            if memory or op.scratch is not None:
                outputs.append(self._output(op, read, tensor, given))
            else:
                outputs.append(fingerprint(tensor) if op.makes_data else shape_fingerprint(tensor))
        backward = _current_graph_task_id() != -1
        place, entropy = self._places.here(backward), self._streams.entropy.place
        scalars = ", ".join(read.scalars)
        draft = (op.name, read.inputs, scalars, outputs, place, backward, opaque, streams, entropy, read.unwritten)
        index = self._writer.add(draft)
        if op.makes_memory:
            for tensor in tensors:
                memory.add(tensor, index)
        if not self._streams.are_cheap:
            self._given.update(dict.fromkeys(outputs))
            while len(self._given) > _MOST_GIVEN:
                del self._given[next(iter(self._given))]

    def _output(self, op: Op, read: Read, tensor: Tensor, given: list[Any]) -> int:
        """Return the fingerprint of what an op has given, while there is memory that nobody has written."""
        memory = self._unwritten
        if op.scratch is not None and tensor is given[0][op.scratch]:
            memory.add(tensor, SCRATCH)
        elif read.moved is not None:
            memory.add(tensor, read.moved)
        elif op.makes_data and (read.accumulates or not op.is_partial or memory.made(tensor) is None):
            memory.write(tensor)
            return fingerprint(tensor)
        return shape_fingerprint(tensor)

    def _is_new(self, inputs: list[int]) -> bool:
        return any(given not in self._given for given in inputs)


def _tensors(op: Op, given: Any, others: list[int]) -> list[Tensor]:
    """Return each tensor among what an op has given once, and add what else there is to ``others``."""
    found: dict[int, Tensor] = {}
    for value in flat(given):
        if isinstance(value, Tensor):
            found[id(value)] = value
            if op.is_collective:
                _wait(value)
        elif op.is_collective and hasattr(value, "wait"):
            value.wait()
        elif value is not None:
            others.append(text_hash(written_out(value)))
    return list(found.values())


def _torch_state(arguments: Any) -> dict[str, int]:
    """Look at the generator that an op with such arguments draws from."""
    device = generator = None
    for value in flat(arguments):
        if isinstance(value, torch.Generator):
            generator = value
        elif device is None and isinstance(value, (Tensor, torch.device)):
            device = value if isinstance(value, torch.device) else value.device
    return torch_state(device, generator)


def _wait(tensor: Tensor) -> None:
    """Wait for a collective that has given a tensor before it has finished."""
    with _C._DisableTorchDispatch():
        torch.ops._c10d_functional.wait_tensor(tensor)


def _mute_all() -> None:
    for recorder in _recorders:
        recorder.muted += 1


# A child has a copy of the recording, and the same file.
getattr(os, "register_at_fork", lambda **hooks: None)(after_in_child=_mute_all)  # Windows does not fork


def _watch_compiled() -> None:
    """Let the graphs that inductor has compiled be recorded as one op each; no op of theirs comes through a mode."""
    graph: Any = getattr(sys.modules.get("torch._inductor.output_code"), "CompiledFxGraph", None)
    if graph is not None and not hasattr(graph.__call__, "_plain"):
        plain = graph.__call__

        @functools.wraps(plain)
        def call(self: Any, inputs: Any) -> Any:
            modes = _get_current_dispatch_mode_stack()
            recorders = [mode for mode in modes if isinstance(mode, _Recorder) and not mode.muted]
            return _record_region(recorders, self, plain, inputs) if recorders else plain(self, inputs)

        call._plain = plain  # type: ignore[attr-defined]
        graph.__call__ = skipped(call)


@skipped
def _record_region(recorders: list[_Recorder], graph: Any, plain: Any, inputs: Any) -> Any:
    op, reads = Op("torch.compile"), []
    alive = [weakref.ref(value) for value in flat(inputs) if isinstance(value, Tensor)]
    for recorder in recorders:
        read = Read()
        read.values(list(inputs), True, recorder._unwritten)  # which the region empties
        reads.append((recorder, read, {**recorder._streams.moved(), **torch_state(None, None)}))
        recorder.muted += 1
    try:
        result = plain(graph, inputs)
    finally:
        for recorder in recorders:
            recorder.muted -= 1
    for recorder, read, streams in reads:
        rest = [tensor for tensor in (kept() for kept in alive) if tensor is not None]
        written = [tensor for tensor in rest if fingerprint(tensor) not in read.inputs]
        recorder._add(op, read, streams, [result, *written], opaque=True)
    return result


skipped(_Recorder.__torch_dispatch__)
