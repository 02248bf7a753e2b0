"""What a packed value must be for a stream to take it without harm."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from ..errors import StateFormatError

__all__ = ["check_gaussian", "check_mersenne", "check_torch_mersenne", "expect", "expect_alike", "expect_keys"]


def expect_alike(state: Any, model: Any) -> None:
    """Refuse a nesting that is not of the keys, kinds and shapes of ``model``."""
    if isinstance(model, dict):
        expect_keys(state, *model)
        for key, inner in model.items():
            expect_alike(state[key], inner)
    elif isinstance(model, np.ndarray):
        same = isinstance(state, np.ndarray) and state.dtype == model.dtype and state.shape == model.shape
        expect(same, f"an array is not of {model.dtype} and {model.shape}")
    elif isinstance(model, str):
        expect(type(state) is str, "a name is not a str")
    else:
        expect(type(state) is int and 0 <= state < 1 << 128, f"{state!r} is out of range")


def check_mersenne(key: Any, position: Any, whose: str = "the") -> None:
    """Refuse what is no state of a Mersenne Twister, or one that it never leaves."""
    expect(isinstance(key, bytes) and len(key) == 2496, "a Mersenne Twister has 624 words of 32 bits")
    # The first word counts with its top bit alone. From zeros only zeros follow, and NumPy's randn would never return.
    expect(bool(key[3] & 0x80) or any(key[4:]), f"{whose} Mersenne Twister state is all zero")
    expect(type(position) is int and 0 <= position <= 624, f"the position {position!r} is not in [0, 624]")


def check_torch_mersenne(data: bytes) -> None:
    """Refuse what torch's CPU generator takes but cannot draw from."""
    # torch's layout: the seed, how many words are left, a flag, the place of the next one, 624 words of 64 bits of
    # which the low 32 count, a gaussian (three doubles and a flag), and a gaussian in float32.
    _, left, _, place, *words = struct.unpack_from("<QiiQ624Q", data)
    key = struct.pack("<624I", *(word & 0xFFFF_FFFF for word in words))
    expect(left >= 1 and place + left <= 625, f"{left} words are left from the place {place} on")
    check_mersenne(key, place, "torch's")
    gaussians = (*struct.unpack_from("<3d", data, 5016), *struct.unpack_from("<f", data, 5048))
    expect(all(map(math.isfinite, gaussians)), "the cached gaussian is not finite")


def check_gaussian(gaussian: Any) -> None:
    """Refuse what is neither no cached gaussian nor one."""
    expect(
        isinstance(gaussian, list)
        and len(gaussian) <= 1
        and all(type(number) is float and math.isfinite(number) for number in gaussian),
        f"the cached gaussian is {gaussian!r}",
    )


def expect(holds: bool, otherwise: str) -> None:
    """Raise unless it holds."""
    if not holds:
        raise StateFormatError(otherwise)


def expect_keys(plain: Any, *keys: str) -> None:
    """Refuse what is not a dict with these keys."""
    expect(isinstance(plain, dict) and set(plain) == set(keys), f"the keys are not {', '.join(keys)}")
