"""Where two values first differ, and how it is told."""

from __future__ import annotations

import dataclasses
import reprlib
from typing import Any, Literal

__all__ = ["Difference", "What", "short"]

What = Literal[
    "type", "structure", "layout", "dtype", "shape", "device", "requires_grad", "bits", "value", "incomparable"
]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Tell where two values first differ, and how; ``str()`` gives it as a sentence.

    Attributes:
        path: the way to the leaf, such as ``['model'].weight`` or ``[0]['x']``; empty for the values themselves.
        what: ``"type"``, ``"structure"``, ``"layout"``, ``"dtype"``, ``"shape"``, ``"device"``, ``"requires_grad"``,
            ``"bits"``, ``"value"``, or ``"incomparable"``: objects of a kind that nothing is known of.
        first: the value on the first side: the first element that differs, a type, a shape, or (of a structure) the
            paths that only this side has.
        second: the same on the second side.
        index: where in a tensor, an array or a text the first difference is.
        count: how many elements differ in their bits.
        total: how many elements there are.
        ulps: of floats, the largest distance of two elements that differ, in units in the last place: how many floats
            of this dtype it is from one to the other. None where one of each two is NaN.
        bits: the first element's bits on both sides, as hexadecimal numbers.
    """

    path: str
    what: What
    first: Any = None
    second: Any = None
    index: tuple[int, ...] | None = None
    count: int | None = None
    total: int | None = None
    ulps: int | None = None
    bits: tuple[str, str] | None = None

    def __str__(self) -> str:
        return f"{short(self.path) or 'the values'}: {self._told()}"

    def _told(self) -> str:
        if self.what == "structure":
            return "structure differs: " + self._told_of_structure()
        if self.what == "type":
            first, second = _name(self.first), _name(self.second)
            return "type differs: " + (
                f"two classes of the same name, {first}; make the class once, or compare what its objects hold"
                if first == second
                else f"{first} against {second}"
            )
        if self.what == "incomparable" and isinstance(self.first, (set, frozenset)):
            return "a set of objects that are equal to themselves alone cannot be compared; make it a list or a dict"
        if self.what == "incomparable":
            return (
                f"{_name(type(self.first))} objects cannot be compared: they have neither an __eq__ of their own nor a "
                "state that can be read; give the class an __eq__, or leave them out"
            )
        if self.what not in ("bits", "value"):
            return f"{self.what} differs: {self.first} against {self.second}"
        first, second = _shown(self.first), _shown(self.second)
        if self.bits is not None and first == second:  # NaNs, or zeros that are printed without their sign
            first, second = (f"{shown} ({bits})" for shown, bits in zip((first, second), self.bits, strict=True))
        if self.what == "value" and self.index is not None:  # two texts
            (at,) = self.index
            begin = max(0, at - 10)
            first, second = (repr(text[begin : at + 20]) for text in (self.first, self.second))
            return f"differs from position {at} on: {first} against {second} there"
        told = f"{first} against {second}"
        if self.index:
            told = f"{self.count} of {self.total} elements differ, the first at {list(self.index)}: {told}"
        if self.ulps is not None:
            told += f", {'at most ' if self.count != 1 else ''}{self.ulps} ULP{'' if self.ulps == 1 else 's'} apart"
        return told

    def _told_of_structure(self) -> str:
        if set(self.first) == set(self.second):
            return f"the same keys in another order, {_listed(self.first)} against {_listed(self.second)}"
        sides = (("first", self.first), ("second", self.second))
        return ", ".join(f"only the {side} has {_listed(paths)}" for side, paths in sides if paths)


def _listed(paths: tuple[str, ...]) -> str:
    more = len(paths) - 3
    return ", ".join(map(short, paths[:3])) + (f" and {more} more" if more > 0 else "")


def short(path: str) -> str:
    """Return a path as it is shown, without the middle of a long one."""
    return path if len(path) <= 125 else f"{path[:60]} ... {path[-60:]}"


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _shown(value: Any) -> str:
    try:
        return _REPR.repr(value)
    except Exception:  # an integer that is too long to be written, say
        return f"<{type(value).__name__}>"


_REPR = reprlib.Repr()
_REPR.maxother = _REPR.maxstring = 80
