"""What ranks tell each other: bytes and texts, as tensors; nothing is pickled."""

from __future__ import annotations

import contextlib
import datetime
import math
import numbers
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from ..errors import DesyncError
from ..scope.activation import all_or_none
from ..streams.buffers import without_modes
from .digests import digest

if TYPE_CHECKING:
    from ..streams.registry import Held

__all__ = ["Ranks", "listed"]

T = TypeVar("T", bound=Hashable)
_LENGTH = 64  # of the first message of every call, so that ranks that make different ones can tell
_GRACE = 1.0  # seconds: gloo gives up by itself in milliseconds, and a process that ends before that is aborted


class Ranks:
    """The processes of a group, of which this is one; or this process alone where no group is initialised.

    Args:
        group: a process group, or None for the default one.
        timeout: how many seconds to wait for the others, or None for as long as the group does. One that cannot be is
            an error of the first `ask`, where the others hear of it.
    """

    def __init__(self, group: Any = None, timeout: float | None = None) -> None:
        self._group, self._timeout = group, timeout
        self._seconds: float | None = None
        with contextlib.suppress(TypeError, ValueError):
            self._seconds = _checked(timeout)
        self.rank, self.size = 0, 1
        if hasattr(group, "get_group"):
            raise TypeError(f"group= is a process group, got {type(group).__name__}; pass mesh.get_group(name)")
        if dist.is_available() and dist.is_initialized():
            self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
            if self.rank < 0:
                raise ValueError("this process is not in the group; let only the group's own ranks make the call")
        elif group is not None:
            raise ValueError(
                "group= is given, but no process group is initialised; call torch.distributed.init_process_group() "
                "first, or leave group= out for this process alone"
            )

    @cached_property
    def names(self) -> list[int]:
        """The ranks of the group as they count in the whole job."""
        if not (dist.is_available() and dist.is_initialized()):
            return [0]
        return dist.get_process_group_ranks(self._joined)

    @property
    def _joined(self) -> Any:
        return dist.group.WORLD if self._group is None else self._group

    def ask(self, answer: Callable[[], tuple[str, bytes]]) -> list[bytes]:
        """Return the answer of each rank to the same question; what fails on one rank is an error on every rank.

        Args:
            answer: returns the call that is made, and what this rank has to say: as long on every rank that makes the
                same call. All that can be wrong with the call is checked in it.

        Raises:
            DesyncError: on another rank something fails, or another call is made.
        """
        failure: Exception | None = None
        try:
            _checked(self._timeout)
            question, mine = answer()
            head = digest(question.encode())[:7] + b"\1"
        except Exception as error:  # the others are waiting, and shall hear of it
            failure, question, head, mine = error, f"{type(error).__name__}: {error}", bytes(8), b""
        first = _LENGTH - len(head)
        answers = self.gather((head + mine[:first]).ljust(_LENGTH, b"\0"))
        if len({each[: len(head)] for each in answers}) > 1:
            told = self.gather_texts(question)
            if failure is None:
                alike = self.grouped(told)
                failed = [name for name, each in zip(self.names, answers, strict=True) if not any(each[: len(head)])]
                if failed:
                    causes = [f"{text} (on {listed(group)})" for text, group in alike.items() if group[0] in failed]
                    raise DesyncError(f"the call has failed: {'; '.join(causes)}", ranks=tuple(failed))
                fewest = min(alike.values(), key=lambda group: (len(group), -group[0]))
                raise DesyncError(
                    "the ranks do not ask the same: "
                    + "; ".join(f"{listed(group)}: {text}" for text, group in alike.items())
                    + ". Have every rank of the group make the same calls in the same order",
                    ranks=tuple(fewest),
                )
        if failure is not None:
            raise failure
        more = self.gather(mine[first:]) if len(mine) > first else [b""] * self.size
        return [each[len(head) :] + rest for each, rest in zip(answers, more, strict=True)]

    def change(self, plan: Iterable[Held], question: str, change: Callable[[], Any]) -> None:
        """Change streams on every rank of the group, or, where that fails on one, on none."""

        def answer() -> tuple[str, bytes]:
            change()
            return question, b""

        all_or_none(plan, lambda: self.ask(answer))

    def grouped(self, told: Sequence[T]) -> dict[T, list[int]]:
        """Return the ranks that have told the same, by what they have told."""
        groups: dict[T, list[int]] = {}
        for name, each in zip(self.names, told, strict=True):
            groups.setdefault(each, []).append(name)
        return groups

    def gather(self, data: bytes) -> list[bytes]:
        """Return what each rank gives; all of the same length."""
        if self.size == 1:
            return [data]
        with without_modes():
            mine = self._tensor(data)
            all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
            options = self._options("AllgatherOptions")
            if options is None:
                self._wait(lambda: dist.all_gather(all_of_them, mine, self._group, async_op=True))
            else:
                self._wait(lambda: self._joined.allgather([all_of_them], [mine], options))
            together = torch.cat(all_of_them).cpu().numpy().tobytes()
        return [together[start : start + len(data)] for start in range(0, len(together), len(data))]

    def broadcast(self, data: bytes, length: int, src: int) -> bytes:
        """Return the ``data`` of the rank ``src`` of the group, which is so long."""
        if self.size == 1:
            return data
        with without_modes():
            tensor = self._tensor(data if self.rank == src else bytes(length))
            options = self._options("BroadcastOptions")
            if options is None:
                self._wait(lambda: dist.broadcast(tensor, self.names[src], self._group, async_op=True))
            else:
                options.rootRank = src
                self._wait(lambda: self._joined.broadcast([tensor], options))
            return tensor.cpu().numpy().tobytes()

    def gather_texts(self, text: str) -> list[str]:
        """Return what each rank gives, of any length."""
        data = text.encode("utf-8", "surrogatepass")
        lengths = [int.from_bytes(length, "little") for length in self.gather(len(data).to_bytes(8, "little"))]
        padded = self.gather(data.ljust(max(1, *lengths), b"\0"))
        return [each[:length].decode("utf-8", "surrogatepass") for each, length in zip(padded, lengths, strict=True)]

    def _tensor(self, data: bytes) -> torch.Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self._device())

    def _device(self) -> torch.device:
        """Return where the group's backend takes tensors; in main memory if it can."""
        kinds = [pair.partition(":")[0] for pair in dist.get_backend_config(self._joined).split(",")]
        return torch.device("cpu" if "cpu" in kinds else kinds[0])

    def _options(self, name: str) -> Any:
        """Return the options of a collective that ends in time, or None where it is to end as the group says.

        A thread of gloo's waits for a collective as long as that may take, 30 minutes unless the group says otherwise,
        and a process does not end before its threads. The public functions take no timeout.
        """
        options: Any = getattr(dist.distributed_c10d, name, lambda: None)()
        if self._seconds is None or not hasattr(options, "timeout"):
            return None
        # gloo counts in milliseconds, and no further than some centuries
        options.timeout = datetime.timedelta(milliseconds=math.ceil(1000 * min(self._seconds, 1e8)))
        options.asyncOp = True
        return options

    def _wait(self, start: Callable[[], Any]) -> None:
        end = math.inf if self._seconds is None else time.monotonic() + self._seconds
        try:
            work = start()
            pause = 2e-5
            while end < math.inf and not work.is_completed():  # not wait(timeout): each backend means another thing
                if time.monotonic() > end + _GRACE:
                    raise RuntimeError
                time.sleep(pause)
                pause = min(2 * pause, 0.01)
            work.wait()
        except RuntimeError as error:
            is_late = time.monotonic() > end
            others = [name for rank, name in enumerate(self.names) if rank != self.rank]
            raise DesyncError(
                f"rank {self.names[self.rank]} has waited for {listed(others)}, and not all of them came or stayed: "
                f"{f'timeout={self._seconds:g} seconds are over' if is_late else str(error).splitlines()[0]}. "
                "They have ended, hang, or do not make the same calls in the same order. The group cannot be used any "
                "more: end this process"
            ) from error


def _checked(timeout: Any) -> float | None:
    if timeout is None:
        return None
    is_number = isinstance(timeout, numbers.Real) and not isinstance(timeout, bool)
    if not (is_number and 0 < timeout < math.inf):
        raise (ValueError if is_number else TypeError)(
            f"timeout= is a number of seconds above 0, or None to wait as long as the group does, got {timeout!r}; for "
            "a minute pass 60"
        )
    return float(timeout)


def listed(ranks: list[int]) -> str:
    """Return ``rank 1``, ``ranks 0 and 2``, or the first of many."""
    if len(ranks) > 8:
        return f"ranks {', '.join(map(str, ranks[:6]))} and {len(ranks) - 6} more"
    *most, last = map(str, ranks)
    return f"ranks {', '.join(most)} and {last}" if most else f"rank {last}"
