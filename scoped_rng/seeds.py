"""What a seed may be, and how one seed gives others."""

from __future__ import annotations

import operator
from hashlib import blake2b
from typing import Any, SupportsIndex

__all__ = ["check_bool", "check_seed", "fold_in"]


def check_seed(seed: SupportsIndex) -> int:
    """Return ``seed`` as an int in [0, 2**64).

    Args:
        seed: anything with ``__index__`` (an int, a NumPy integer, a zero-dimensional integer tensor) but bool.

    Raises:
        TypeError: ``seed`` is not an integer.
        ValueError: ``seed`` is out of range.
    """
    if type(seed) is not int:
        try:
            seed = _index(seed)
        except TypeError:
            if isinstance(seed, str):
                hint = f"derive one from the name: fold_in(0, {seed!r})"
            elif callable(seed):
                hint = "with no seed to give, decorate with @fixed_seed or @isolated()"
            elif seed is None:
                hint = "give a number, or use isolated() for a scope that does not seed"
            else:
                hint = "give a whole number, such as 0"
            raise TypeError(
                f"a seed must be an int in [0, 2**64), got {type(seed).__name__} {seed!r}; {hint}"
            ) from None
    if not 0 <= seed < 1 << 64:
        raise ValueError(
            f"a seed must be in [0, 2**64), got {seed}; take it modulo 2**64 or derive one: fold_in(0, {seed})"
        )
    return seed


def _index(value: Any) -> int:
    # bool is an int in Python, and the bools of torch and of NumPy before 2 have an __index__ as well.
    if isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
        raise TypeError("a bool is not a number")
    try:
        return operator.index(value)
    except RuntimeError:  # torch's uint64 beyond the range of int64, or a meta tensor
        if getattr(value, "is_meta", True):
            raise TypeError("there is no value") from None
        return operator.index(value.item())


def check_bool(name: str, value: bool) -> bool:
    """Return ``value``, or refuse what is not a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}= is True or False, got {type(value).__name__} {value!r}")
    return value


def fold_in(seed: SupportsIndex, *path: SupportsIndex | str) -> int:
    """Derive a child seed from ``seed`` and a path of ints and strings.

    The same arguments give the same child in every process, on every platform and in every version. Different paths
    give independent children: each element is hashed with its kind and length (BLAKE2b, RFC 7693, keyed by the seed),
    so ``(1, 2)`` is not ``12`` and ``("a", "b")`` is not ``"ab"``.

    Args:
        seed: the parent, as in `deterministic`.
        path: what the child is for, such as ``"layer", 3``.

    Returns:
        An int in [0, 2**64).

    Raises:
        TypeError: an element is neither an int nor a str.

    >>> fold_in(0, "dropout", 3) == fold_in(0, "dropout", 3)
    True
    >>> fold_in(0, 1, 2) == fold_in(0, 12)
    False
    """
    digest = blake2b(key=check_seed(seed).to_bytes(8, "little"), digest_size=8, person=b"scoped_rng.v1")
    for element in path:
        if isinstance(element, str):
            kind, data = b"s", element.encode("utf-8", "surrogatepass")
        else:
            try:
                number = _index(element)
                # Python refuses to write thousands of digits, unless told otherwise.
                kind, data = (b"i", b"%d" % number) if number.bit_length() < 2048 else (b"x", b"%x" % number)
            except TypeError:
                raise TypeError(
                    f"fold_in takes ints and strings, got {type(element).__name__} {element!r}; "
                    "turn it into one of them first, for instance with str()"
                ) from None
        digest.update(kind + len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")
