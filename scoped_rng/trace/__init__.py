"""Record every torch op of a run as a fingerprint, and find the first at which two runs part.

`record` needs torch and xxhash; reading traces and comparing them needs neither, and they are not imported for it.
"""

from typing import TYPE_CHECKING, Any

from ..errors import TraceFormatError
from .divergence import Divergence, first_divergence
from .file import Record, Source, Trace

if TYPE_CHECKING:
    from .recorder import record

__all__ = ["Divergence", "Record", "Source", "Trace", "TraceFormatError", "first_divergence", "record"]


def __getattr__(name: str) -> Any:
    if name == "record":
        from .recorder import record

        return record
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
