"""Where in the program an op was called: the user's line, the module, and for backward those of the forward op."""

from __future__ import annotations

import os
import sys
import sysconfig
import weakref
from types import CodeType, FrameType
from typing import Any

import torch

from .file import Place, Source

__all__ = ["Places", "source_line"]

_torch: Any = torch  # for what torch leaves untyped
_C: Any = torch._C
_LIBRARY = tuple(
    os.path.join(os.path.dirname(os.path.abspath(file)), "") for file in (__file__, torch.__file__, os.__file__)
)
_STANDARD = os.path.join(sysconfig.get_paths()["stdlib"], "")
_INSTALLED = (os.path.join("", "site-packages", ""), os.path.join("", "dist-packages", ""))
_WRAPPERS = (os.path.join("", "typing_extensions.py"),)  # round each function of torch that is deprecated
_is_users: dict[str, bool] = {}
_sources: dict[tuple[int, int], tuple[CodeType, Source]] = {}
_MOST_SOURCES = _MOST_FORWARD = 1 << 16

# A module is known by the frame of its call: hooks would cost as much, make dynamo compile anew, and miss what raises.
_CALL: CodeType = getattr(torch.nn.Module, "_wrapped_call_impl", torch.nn.Module.__call__).__code__
_BACKWARD = (torch.autograd.backward.__code__, torch.autograd.grad.__code__)


def _of_user(file: str) -> bool:
    """Return whether it is neither torch, nor this package, nor Python's library, nor made up by one of them."""
    of_user = not file.startswith(("<frozen", "<eval_with_key>", *_LIBRARY[:2])) and not file.endswith(_WRAPPERS)
    if of_user and file.startswith((_STANDARD, _LIBRARY[2])):
        of_user = any(part in file for part in _INSTALLED)
    _is_users[file] = of_user
    return of_user


def _source(frame: FrameType) -> Source:
    code, instruction = frame.f_code, frame.f_lasti
    known = _sources.get((id(code), instruction))  # finding the line from the instruction takes longer
    if known is not None:
        return known[1]
    source = Source(code.co_filename, frame.f_lineno, code.co_name)
    if len(_sources) >= _MOST_SOURCES:
        _sources.clear()
    _sources[id(code), instruction] = code, source  # the code is kept, so that its id stays its own
    return source


def _is_outside(code: CodeType) -> bool:
    """Return whether it calls backward(), with which no op of backward has to do, nor what lies beyond."""
    return code is _BACKWARD[0] or code is _BACKWARD[1]


def _walk(frame: FrameType | None, end: FrameType | None, backward: bool) -> tuple[Source | None, FrameType | None]:
    """Return the user's line and the innermost call of a module.

    This runs for every op and over every frame, so it looks for both and then for the one that is left.
    """
    known = _is_users.get
    while frame is not None:
        code = frame.f_code
        if code is _CALL:
            return _line(frame.f_back, backward), frame
        of_user = known(code.co_filename)
        if of_user or (of_user is None and _of_user(code.co_filename)):
            return _source(frame), None if frame is end else _call(frame.f_back, end, backward)
        if backward and _is_outside(code):
            break
        frame = frame.f_back
    return None, None


def _call(frame: FrameType | None, end: FrameType | None = None, backward: bool = False) -> FrameType | None:
    while frame is not None:
        code = frame.f_code
        if code is _CALL:
            return frame
        if frame is end or (backward and _is_outside(code)):
            break
        frame = frame.f_back
    return None


def _line(frame: FrameType | None, backward: bool = False) -> Source | None:
    while frame is not None:
        code = frame.f_code
        of_user = _is_users.get(code.co_filename)
        if of_user or (of_user is None and _of_user(code.co_filename)):
            return _source(frame)
        if backward and _is_outside(code):
            break
        frame = frame.f_back
    return None


def source_line() -> Source | None:
    """Return the user's line that has led here."""
    return _line(sys._getframe(1))


class Places:
    """Tell the place of each op, and keep those of forward ops for their backward ones."""

    def __init__(self) -> None:
        self._paths: dict[int, tuple[weakref.ref[Any], str]] = {}
        # By the sequence number of the autograd node: as many as fit, so that memory does not grow with the run.
        self._forward: list[tuple[int, Place] | None] = [None] * _MOST_FORWARD
        self._newest = -1
        self._end: FrameType | None = None

    def begin(self) -> None:
        """Look no further out than the caller of record(), which stays in its frame as long as it records.

        What lies beyond is the same for every op, and under a test runner it is many frames.
        """
        frame = sys._getframe(3).f_back  # of contextlib
        self._end = None if _call(frame) is not None else frame

    def end(self) -> None:
        """Let go of that frame, and of all that it holds."""
        self._end = None

    def here(self, backward: bool) -> Place:
        """Return the module and the user's line that an op was called from: this is called by what writes it down."""
        forward = self._of_node() if backward else None
        source, call = _walk(sys._getframe(2).f_back, self._end, forward is not None)
        place: Place = ("" if call is None else self._path(call)), source
        if forward is not None:
            place = place[0] or forward[0], source or forward[1]
        # What autograd has just numbered is the node of this op; a later op without one leaves that in place.
        number = _get_sequence_nr() - 1
        if number != self._newest:
            self._newest = number
            self._forward[number % _MOST_FORWARD] = number, place
        return place

    def _of_node(self) -> Place | None:
        node = _C._current_autograd_node()
        number = -1 if node is None else node._sequence_nr()
        kept = self._forward[number % _MOST_FORWARD]
        return kept[1] if kept is not None and kept[0] == number else None

    def _path(self, call: FrameType) -> str:
        module = call.f_locals["self"]
        known = self._paths.get(id(module))
        if known is not None and known[0]() is module:
            return known[1]
        modules, frame = [module], call.f_back
        while frame is not None:
            if frame.f_code is _CALL:
                modules.append(frame.f_locals["self"])
            frame = frame.f_back
        outermost = modules[-1]
        if module is outermost:
            return type(module).__name__  # not kept: the next call of it may be part of another's
        if len(self._paths) >= _MOST_SOURCES:
            self._paths.clear()
        names = {}
        for name, part in outermost.named_modules():
            names[id(part)] = name
            if part is not outermost:
                self._paths[id(part)] = weakref.ref(part), name
        # One that is not registered has the name of what called it, and its class.
        inside = next(index for index, part in enumerate(modules) if id(part) in names)
        classes = (type(part).__name__ for part in modules[:inside][::-1])
        return ".".join([names[id(modules[inside])], *classes]).strip(".")


_get_sequence_nr: Any = _torch.autograd._get_sequence_nr
