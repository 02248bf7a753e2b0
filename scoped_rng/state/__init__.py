"""The value of streams at one moment: capture, compare, restore, to and from a plain dict."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

from ..dynamo import never_compile
from ..errors import RestoreWarning, StateFormatError, StateMismatchError, shown, warn

if TYPE_CHECKING:
    from ..streams.registry import Held

__all__ = ["Missing", "RngState", "capture"]

Missing = Literal["error", "skip"]
FORMAT, VERSION = "scoped_rng.RngState", 1


@never_compile
def streams() -> Any:
    """Return the module of the streams; the first call imports numpy and torch, importing the package does not."""
    global _streams
    if _streams is None:
        from ..streams import ambient as _streams
    return _streams


_streams: Any = None


class RngState:
    """Hold the value of every stream at one moment.

    Immutable, compared bit for bit, hashable. `capture` makes one, `RngState.from_state_dict` reads one back.
    """

    __slots__ = ("_canonical", "_packed")

    def __init__(self, packed: dict[str, dict[str, Any]]) -> None:
        # Plain values with bytes in them, as codecs.pack makes them; never handed out, never changed.
        self._packed = packed
        self._canonical = {name: _canonical(plain) for name, plain in packed.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the streams: ``python``, ``numpy``, ``torch``, ``cuda:0``, ``also[0]`` and so on."""
        return tuple(self._packed)

    def __eq__(self, other: object) -> bool:
        return self._canonical == other._canonical if isinstance(other, RngState) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        return f"<RngState {self.digest()}: {', '.join(self._packed)}>"

    def digest(self) -> str:
        """Return 16 hex digits, equal for equal states in every process and on every platform."""
        digest = blake2b(digest_size=8)
        for name, canonical in sorted(self._canonical.items()):
            digest.update(_canonical(name) + canonical)
        return digest.hexdigest()

    def diff(self, other: RngState) -> list[str]:
        """Return the names of the streams that differ, or that only one of the two states has.

        >>> import random
        >>> before = capture()
        >>> _ = random.random()
        >>> capture().diff(before)
        ['python']
        """
        names = dict.fromkeys((*self._packed, *other._packed))
        return [name for name in names if self._canonical.get(name) != other._canonical.get(name)]

    @never_compile
    def restore(self, *, also: Any = (), missing: Missing = "error") -> None:
        """Put every stream to its value in this state: all of them, or none and an error.

        NumPy's fresh entropy is put back only inside a seeded scope, where it is a stream; elsewhere a
        ``RestoreWarning`` tells that a state which holds it leaves it alone.

        Args:
            also: the user objects, as they were given to `capture`; they are matched by position.
            missing: ``"skip"`` leaves out, without a word, what only the state has, or only the caller.

        Raises:
            StateMismatchError: the state is of devices or objects that are not here, or of another kind.

        >>> import random
        >>> state = capture()
        >>> first = random.random()
        >>> state.restore()
        >>> random.random() == first
        True
        """
        from ..scope.activation import all_or_none  # which is above this module

        ambient = streams_in_force()
        values = self.values_for(ambient, streams().adapt_all(also), missing)
        entropy = streams().ENTROPY
        if missing == "error" and entropy.name in self._packed and entropy not in ambient:
            warn(
                f"the state holds NumPy's fresh entropy ({entropy.name}), which is a stream only inside a seeded "
                "scope, and is left alone here, so unseeded generators do not go on from it; restore inside "
                'deterministic(seed), as it was captured, or leave it out with missing="skip"',
                RestoreWarning,
            )
        all_or_none([stream for stream, _ in values], lambda: [stream.put(value) for stream, value in values])

    def values_for(self, ambient: list[Held], also: tuple[Held, ...], missing: Missing) -> list[tuple[Held, Any]]:
        """Match the state with what is here.

        Returns:
            Each stream or object with the value that ``put`` takes.

        Raises:
            StateMismatchError: something is on one side only (unless ``missing="skip"``), or of another kind.
        """
        check_missing(missing)
        here = {held.name: held for held in (*ambient, *also)}
        absent = [name for name in self._packed if name not in here and name != streams().ENTROPY.name]
        strange = [held.name for held in also if held.name not in self._packed]
        if missing == "error" and absent:
            raise StateMismatchError(
                f"the state holds {', '.join(absent)}, which is not here; initialise the device, register the stream, "
                'or give the same objects as to capture(also=...), or leave it out with missing="skip"'
            )
        if missing == "error" and strange:
            raise StateMismatchError(
                f"{', '.join(strange)} is not in the state, which holds {', '.join(self._packed)}; capture it with the "
                'same also=, or leave it out with missing="skip"'
            )
        from . import codecs

        return [(here[name], codecs.value(here[name], plain)) for name, plain in self._packed.items() if name in here]

    @never_compile
    def state_dict(self) -> dict[str, Any]:
        """Return the state as a dict that goes into any checkpoint.

        It holds only dict, list, str, int, float and CPU uint8 tensors, so ``torch.load(weights_only=True)`` reads it.
        """
        from . import codecs

        return {"format": FORMAT, "version": VERSION, "streams": codecs.to_tensors(self._packed)}

    @classmethod
    @never_compile
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> RngState:
        """Read back what `state_dict` gave.

        Raises:
            StateFormatError: it is something else, damaged, or of another version.

        >>> state = capture()
        >>> RngState.from_state_dict(state.state_dict()) == state
        True
        """
        from . import codecs

        check_format(state_dict, FORMAT, VERSION, "the state_dict() of an RngState")
        packed = codecs.from_tensors(state_dict.get("streams"))
        try:
            return cls(packed)
        except RecursionError as error:
            raise StateFormatError("the state dict is nested too deep to be one; nothing was changed") from error


@never_compile
def capture(*, also: Any = (), devices: Any = None) -> RngState:
    """Return the value of every stream now, changing nothing.

    Args:
        also: user objects to capture as well, as in `deterministic`; their names are ``also[0]`` and so on.
        devices: as in `deterministic`.

    Raises:
        TypeError: an object's ``getstate()`` gives something that cannot be written as plain data.

    >>> capture() == capture()
    True
    """
    from . import codecs

    packed = {}
    for held in (*streams().ambient_streams(streams().check_devices(devices)), *streams().adapt_all(also)):
        plain = codecs.pack(held)
        if plain is not None:
            packed[held.name] = plain
    return RngState(packed)


def streams_in_force() -> list[Held]:
    """Return the streams that have a value here: NumPy's fresh entropy only inside a seeded scope."""
    here = streams()
    return [held for held in here.ambient_streams() if held is not here.ENTROPY or held.is_seeded()]


def check_missing(missing: object) -> None:
    """Refuse anything but the two policies."""
    if missing not in ("error", "skip"):
        raise ValueError(f'missing= is "error" or "skip", got {missing!r}')


def check_format(state: Any, expected: str, version: int, what: str) -> None:
    """Refuse what is not a dict of this format and version."""
    found = state if isinstance(state, Mapping) else {}
    if not isinstance(found.get("format"), str) or found["format"] != expected:
        raise StateFormatError(f"this is not {what}: 'format' is not {expected!r}")
    if type(found.get("version")) is not int or found["version"] != version:
        raise StateFormatError(
            f"the state is of version {shown(found.get('version'))}, this is for version {version}; update scoped_rng"
        )


def _canonical(value: Any) -> bytes:
    """Encode a packed value so that equal bytes mean equal bits."""
    if isinstance(value, bytes):
        kind, data = b"b", value
    elif isinstance(value, str):
        kind, data = b"s", value.encode("utf-8", "surrogatepass")
    elif isinstance(value, int):
        kind, data = b"i", b"%d" % value
    elif isinstance(value, float):
        kind, data = b"f", value.hex().encode()
    elif isinstance(value, list):
        kind, data = b"l", b"".join(map(_canonical, value))
    else:
        kind = b"d"
        data = b"".join(_canonical(key) + _canonical(item) for key, item in sorted(value.items()))
    return kind + len(data).to_bytes(8, "little") + data
