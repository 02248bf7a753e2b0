"""One state in a file of its own, and what is checked of all that is read back."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from ..errors import StateFormatError
from ..state import RngState, check_format
from ..state.text import from_text, to_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["load_state", "save_state", "state_under"]

FORMAT, VERSION = "scoped_rng.state", 1


def save_state(path: str | os.PathLike[str], state: RngState) -> None:
    """Write a state to a file, which ``torch.load(weights_only=True)`` reads as well.

    It is written beside and renamed when it is whole and on the disk: a crash at any moment leaves the old file or the
    new one. What a crash leaves beside it, the next save removes. A link stays, and what it leads to is written.

    Raises:
        TypeError: it is no state.
        OSError: the folder is not there, the path is no plain file, or it cannot be written; the old file is whole.

    >>> import tempfile
    >>> from scoped_rng import capture
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "rng.pt")
    ...     save_state(path, capture())
    ...     load_state(path) == capture()
    True
    """
    if not isinstance(state, RngState):
        raise TypeError(
            f"save_state writes the RngState that capture() gives, got {type(state).__name__}; make one of a state "
            "dict by RngState.from_state_dict()"
        )
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "save_state makes no folder, make it first: os.makedirs(folder)", str(target.parent)
        )
    if os.path.lexists(target) and not target.is_file():  # a rename would replace it: /dev/null, a circle of links
        raise FileExistsError(errno.EEXIST, "save_state writes plain files, and this is none", str(target))
    data = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, "state": to_text(state)}, data)
    # Not the file's own name, which may be as long as names can be; and unique by what no stream is drawn for.
    prefix = f".scoped_rng-{blake2b(os.fsencode(target.name), digest_size=8).hexdigest()}-"
    beside = target.with_name(prefix + uuid.uuid4().hex)
    try:
        with open(beside, "xb") as file:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # some network file systems have no locks
                    fcntl.flock(file, fcntl.LOCK_EX)
            file.write(data.getvalue())
            file.flush()
            os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, beside)  # as where it is opened and written
            if fcntl is None:
                file.close()  # Windows renames no open file; elsewhere the lock is held until it is renamed
            os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)
    _remove_left(target.parent, prefix)


def load_state(path: str | os.PathLike[str]) -> RngState:
    """Read back what `save_state` has written.

    Raises:
        OSError: the file is not there, or cannot be read.
        StateFormatError: it is truncated, was changed, or is something else.
    """
    data = Path(path).read_bytes()
    try:
        content = _content(data)
        check_format(content, FORMAT, VERSION, "a file of save_state()")
        return state_under(content, "state")
    except StateFormatError as error:
        raise StateFormatError(f"{os.fspath(path)!r}: {error}") from error


def state_under(content: Mapping[str, Any], key: str) -> RngState:
    """Return the state whose text is under the key."""
    text = content.get(key)
    if not isinstance(text, str):
        raise StateFormatError(
            f"{key!r} of the state is not text but {type(text).__name__}; it is damaged, take another checkpoint"
        )
    return from_text(text)


def _content(data: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the part of torch that finds the damage raises, OSError included
        told = f"torch.load: {str(error).partition('. ')[0]}" if data else "it is empty"
        raise StateFormatError(
            f"the file is truncated, damaged, or none of save_state() ({told}); take another checkpoint"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Have the disk keep the new name; not every system lets one open a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove_left(folder: Path, prefix: str) -> None:
    """Remove what saves of the same file have left that were killed; one under way holds its lock."""
    for left in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError), open(left, "rb") as file:
            found = os.fstat(file.fileno())
            # An empty one may be about to be locked.
            if fcntl is not None and (found.st_size or time.time() - found.st_mtime > 60):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
