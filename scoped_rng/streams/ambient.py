"""All that every scope covers. Importing this imports numpy and torch."""

from __future__ import annotations

from typing import Any

import torch

from ..dynamo import skipped
from ..flags import STRICT, WARN
from .devices import check_devices, device_streams
from .numpy import ENTROPY, NUMPY_STREAMS
from .objects import TorchGeneratorStream, adapt_all
from .python import PYTHON
from .registry import REGISTERED, Held

__all__ = ["ENTROPY", "STRICT", "WARN", "adapt_all", "ambient_streams", "check_devices"]

_numpy, *_entropy = NUMPY_STREAMS
_global_streams: list[Held] = [PYTHON, _numpy, TorchGeneratorStream("torch", torch.default_generator), *_entropy]


@skipped
def ambient_streams(devices: Any = None) -> list[Held]:
    """Return the streams that every scope covers, and those of the devices asked for."""
    streams = _global_streams + device_streams(devices)
    return [*streams, *REGISTERED.values()] if REGISTERED else streams
