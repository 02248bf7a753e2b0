"""A state as one line of text, which holds its own digest."""

from __future__ import annotations

import base64
import json
from typing import Any

import torch

from ..errors import ScopedRngError, StateFormatError
from . import RngState
from .codecs import to_tensors

__all__ = ["from_text", "to_text"]


def to_text(state: RngState) -> str:
    """Return a state as one line: its digest and its state dict in JSON, bytes in base64.

    A text stays what it is where tools move tensors to devices, cast them or want their shape to stay the same.
    """
    return f"{state.digest()} {json.dumps(state.state_dict(), default=_plain, separators=(',', ':'))}"


def from_text(text: Any) -> RngState:
    """Read back what `to_text` gave.

    Raises:
        StateFormatError: it is damaged, or something else.
    """
    try:
        digest, _, content = text.partition(" ")
        state = RngState.from_state_dict(json.loads(content, object_hook=_tensor))
        if state.digest() != digest:
            raise StateFormatError("its digest is another one")
    except Exception as error:
        told = error if isinstance(error, ScopedRngError) else f"{type(error).__name__}: {error}"
        raise StateFormatError(f"the text of the state is damaged: {told}; take another checkpoint") from error
    return state


def _plain(tensor: torch.Tensor) -> dict[str, str]:
    return {"base64": base64.b64encode(tensor.numpy().tobytes()).decode("ascii")}


def _tensor(item: dict[str, Any]) -> Any:
    if item.keys() != {"base64"} or not isinstance(item["base64"], str):
        return item
    return to_tensors(base64.b64decode(item["base64"], validate=True))
