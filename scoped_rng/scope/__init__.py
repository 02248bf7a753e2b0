"""Scopes: the recipes `deterministic`, `isolated` and `replay`. Making one changes nothing; entering it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

from .. import dynamo
from ..dynamo import never_compile, skipped
from ..seeds import check_bool, check_seed
from ..state import Missing, RngState, check_missing, streams
from .activation import Activation, find

if TYPE_CHECKING:
    from ..streams.registry import Held

__all__ = ["Scope", "deterministic", "isolated", "replay"]

F = TypeVar("F", bound="Callable[..., Any]")


class Scope:
    """A recipe that `deterministic`, `isolated` and `replay` make: a context manager, and a decorator.

    It can be used any number of times, nested in itself as well; each entry has its own activation.
    """

    def __init__(
        self,
        name: str,
        seed: int | None,
        also: Any = (),
        devices: Any = None,
        strict: bool | None = None,
        state: RngState | None = None,
        missing: Missing = "error",
    ) -> None:
        if dynamo.waiting and dynamo.imported("torch") is not None:
            dynamo.skip_frames()
        self._name = name
        self._seed = seed
        self._also: tuple[Held, ...] = () if isinstance(also, tuple) and not also else streams().adapt_all(also)
        self._devices = None if devices is None else streams().check_devices(devices)
        self._strict = strict
        self._state = state
        self._missing = missing

    @property
    def seed(self) -> int | None:
        """The seed that the scope sets, or None if it does not seed."""
        return self._seed

    def __repr__(self) -> str:
        shown = self._seed if self._state is None else self._state
        return f"{self._name}({'' if shown is None else shown})"

    def plan(self) -> list[Held]:
        """Return what the scope covers now."""
        plan: list[Held] = streams().ambient_streams(self._devices)
        plan += self._also
        if self._strict is not None:
            plan.append(streams().STRICT if self._strict else streams().WARN)
        return plan

    def begin(self, plan: list[Held]) -> None:
        """Start what was taken: from the seed, at the captured state, or as it is."""
        seed = self._seed
        if seed is not None:
            for held in plan:
                held.seed(seed)
        elif self._state is not None:
            ambient = plan[: len(plan) - len(self._also)]
            for held, value in self._state.values_for(ambient, self._also, self._missing):
                held.put(value)

    def __enter__(self) -> Scope:
        activation = Activation(self)
        try:
            try:
                activation.start()
                return self
            except BaseException:
                activation.stop()
                raise
        except BaseException as error:
            activation.stop()
            activation.report(error)
            raise

    def __exit__(self, leaving: Any, error: BaseException | None, traceback: TracebackType | None) -> None:
        # `leaving` comes in as the error's type, which is not needed. As a name that is bound from the start it keeps
        # which activation is left, so that after an interrupt at any line below the second try goes on with the same
        # one.
        try:
            leaving = find(self)
            if leaving is not None:
                leaving.stop()
        except BaseException as interrupt:
            leaving = leaving if isinstance(leaving, Activation) else find(self)
            if leaving is not None:
                leaving.stop()
                leaving.report(interrupt)
            raise
        if leaving is None:
            raise RuntimeError(f"{self!r} is left but was not entered, or was left already")
        if leaving.trouble:
            leaving.report(error)

    def __call__(self, fn: F) -> F:
        from ..decorators import decorate  # which is above this module

        decorated: F = decorate(self, fn)
        return decorated


never_compile(Scope.__enter__)
never_compile(Scope.__exit__)
never_compile(Scope.__call__)


@skipped
def deterministic(
    seed: SupportsIndex, *, strict: bool = False, also: Any = (), devices: Sequence[Any] | None = None
) -> Scope:
    """Seed every random stream and make torch deterministic for a block, and put everything back after it.

    Inside, Python, NumPy and torch draw the very numbers that ``random.seed(seed); np.random.seed(seed);
    torch.manual_seed(seed)`` would give, on the CPU and on every initialised accelerator; unseeded NumPy generators
    made inside draw from the seed as well. Outside, the next draw of every stream is what it would have been.

    Args:
        seed: an int in [0, 2**64). torch's CPU generator uses its low 32 bits alone.
        strict: raise where torch has only a nondeterministic algorithm (else it warns), and fill uninitialised memory.
        also: one object or a list or tuple of them, held as well and seeded by ``fold_in(seed, "also", position)``:
            ``random.Random``, ``numpy.random.Generator``, ``numpy.random.RandomState``, ``torch.Generator``,
            ``torch.nn.Module`` (its buffers and training mode), or anything with ``seed``, ``getstate``, ``setstate``.
        devices: None for every device of every initialised backend, or a list of ``"cuda:1"``, ``torch.device`` and
            ints (of the current accelerator); ``[]`` for none.

    Returns:
        A scope: a context manager and a decorator, to be used as often as wanted.

    Raises:
        TypeError, ValueError: an argument is wrong; nothing was touched.
        ConcurrentScopeError: on entry, where it would overlap a scope of another thread or task.

    >>> import torch
    >>> with deterministic(0):
    ...     first = torch.rand(2)
    >>> with deterministic(0) as scope:
    ...     second = torch.rand(2)
    >>> torch.equal(first, second), scope.seed
    (True, 0)
    """
    return Scope("deterministic", check_seed(seed), also, devices, check_bool("strict", strict))


@skipped
def isolated(seed: SupportsIndex | None = None, *, also: Any = (), devices: Sequence[Any] | None = None) -> Scope:
    """Keep whatever a block draws from moving the streams outside; leave the determinism flags alone.

    Args:
        seed: None to go on from the ambient state, or a seed as in `deterministic`.
        also: as in `deterministic`.
        devices: as in `deterministic`.

    >>> import random
    >>> before = random.getstate()
    >>> with isolated():
    ...     _ = random.random()
    >>> random.getstate() == before
    True
    """
    return Scope("isolated", None if seed is None else check_seed(seed), also, devices)


@skipped
def replay(state: RngState, *, also: Any = (), missing: Missing = "error") -> Scope:
    """Put every stream to a captured state for a block, and back after it.

    Args:
        state: what `capture` gave.
        also: the user objects, as they were given to `capture`; they are matched by position.
        missing: ``"skip"`` leaves out devices and objects that only the state has, or only the caller.

    Raises:
        StateMismatchError: on entry, where the state is of devices or objects that are not here, or of another kind.

    >>> import random, scoped_rng
    >>> state = scoped_rng.capture()
    >>> first = random.random()
    >>> with replay(state):
    ...     again = random.random()
    >>> first == again
    True
    """
    if not isinstance(state, RngState):
        raise TypeError(
            f"replay takes the RngState that capture() gives, got {type(state).__name__}; "
            "read a saved dict back with RngState.from_state_dict(...)"
        )
    check_missing(missing)
    return Scope("replay", None, also, state=state, missing=missing)
