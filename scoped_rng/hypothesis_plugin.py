"""torch under Hypothesis' control, and strategies for seeds and generators.

Hypothesis seeds Python's and NumPy's global streams for every example and puts them back after it. With `register`,
which it calls by an entry point, it does so with torch's as well. Importing this imports neither hypothesis nor torch
nor numpy: Hypothesis may come here while it is being imported itself, and torch is covered once somebody else has
imported it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .dynamo import imported
from .scope.activation import Transaction

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from .streams.registry import Held

__all__ = ["generators", "register", "seeds"]

T = TypeVar("T")


class TorchRandom:
    """Be for Hypothesis, as one source of randomness, torch's CPU generator and those of initialised accelerators.

    What an example imports or initialises first is covered from the next one on; a backend that it initialises starts
    from the example's seed all the same, as in a scope.
    """

    def getstate(self) -> Transaction:
        taken = Transaction()
        taken.take(_torch_streams())
        return taken

    def seed(self, seed: int) -> None:
        for held in _torch_streams():
            held.seed(seed)

    def setstate(self, taken: Transaction) -> None:
        try:
            taken.put_back()
        finally:
            taken.put_back()  # where an interrupt has hit the first
            taken.report(sys.exc_info()[1])  # the example's own failure, which is not to be hidden


def _torch_streams() -> list[Held]:
    torch = imported("torch")
    if torch is None:
        return []
    from .streams.devices import device_streams
    from .streams.objects import TorchGeneratorStream

    return [TorchGeneratorStream("torch", torch.default_generator), *device_streams(None)]


_TORCH = TorchRandom()  # Hypothesis holds it weakly


def register() -> None:
    """Let Hypothesis seed and restore torch's generators for every example, as it does Python's and NumPy's.

    Where scoped_rng is installed, Hypothesis calls this when it is imported. A second call does nothing.

    >>> register()
    """
    from hypothesis import register_random

    register_random(_TORCH)


# Led by 0, so that also a Hypothesis that does not shrink from one branch of `one_of` to another gets there.
_EDGES = (0, 2**32 - 1, 2**32, 2**63, 2**64 - 1)


def seeds() -> SearchStrategy[int]:
    """Generate seeds: every int in [0, 2**64), shrinking to 0.

    What other code often gets wrong comes up often: 2**32 - 1, 2**32, 2**63 and 2**64 - 1; and so do seeds below 2**32.

    Returns:
        A strategy.

    >>> import scoped_rng
    >>> from hypothesis import given
    >>> @given(seeds())
    ... def test_children_differ(seed):
    ...     assert scoped_rng.fold_in(seed, "left") != scoped_rng.fold_in(seed, "right")
    >>> test_children_differ()
    """
    from hypothesis import strategies as st

    return st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.sampled_from(_EDGES))


class _Maker:
    """Make a generator from a seed. Hypothesis prints what is made as a call of this."""

    def __init__(self, shown: str, make: Callable[[int], Any]) -> None:
        self._shown, self._make = shown, make

    def __call__(self, seed: int) -> Any:
        return self._make(seed)

    def __repr__(self) -> str:
        return self._shown


def _numpy_generator(seed: int) -> Any:
    import numpy as np

    return np.random.default_rng(seed)


def _numpy_random_state(seed: int) -> Any:
    import numpy as np

    return np.random.RandomState(seed)


def _torch_generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


_MAKERS = {
    "random.Random": _Maker("random.Random", random.Random),
    "numpy.random.Generator": _Maker("numpy.random.default_rng", _numpy_generator),
    "numpy.random.RandomState": _Maker("numpy.random.RandomState", _numpy_random_state),
    "torch.Generator": _Maker("torch.Generator().manual_seed", _torch_generator),
}


@overload
def generators() -> SearchStrategy[Any]: ...
@overload
def generators(*kinds: type[T]) -> SearchStrategy[T]: ...
def generators(*kinds: type[Any]) -> SearchStrategy[Any]:
    """Generate seeded generators for code that takes one; they shrink to the first kind and the seed 0.

    Args:
        kinds: which of ``random.Random``, ``numpy.random.Generator``, ``numpy.random.RandomState`` and
            ``torch.Generator`` (on the CPU); none of them means all, each of which is imported when it is drawn.

    Returns:
        A strategy. A falsifying example shows how to make the generator: ``torch.Generator().manual_seed(0)``.

    Raises:
        TypeError: a kind is none of these.

    >>> import torch
    >>> from hypothesis import given
    >>> @given(generators(torch.Generator))
    ... def test_noise_is_in_range(generator):
    ...     assert 0 <= torch.rand((), generator=generator) < 1
    >>> test_noise_is_in_range()
    """
    from hypothesis import strategies as st

    paths = dict.fromkeys(map(_path, kinds)) or _MAKERS
    # NumPy's legacy generator takes no seed from 2**32 on.
    legacy = st.integers(0, 2**32 - 1)
    return st.one_of([(legacy if "RandomState" in path else seeds()).map(_MAKERS[path]) for path in paths])


def _path(kind: type[Any]) -> str:
    for path in _MAKERS:
        module, _, name = path.rpartition(".")
        if isinstance(kind, type) and kind is getattr(sys.modules.get(module), name, None):
            return path
    raise TypeError(
        f"generators() takes the classes {', '.join(_MAKERS)}, or nothing for all of them, got {kind!r}; "
        "give the class itself, as in generators(random.Random)"
    )
