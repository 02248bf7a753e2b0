"""What ranks tell each other: bytes and texts, as tensors; nothing is pickled."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist

from ..errors import DesyncError
from ..streams.buffers import without_modes

__all__ = ["Ranks", "listed"]


class Ranks:
    """The processes of a group, of which this is one; or this process alone where no group is initialised.

    Args:
        group: a process group, or None for the default one.
        timeout: how many seconds to wait for the others, or None for as long as the group does.
    """

    def __init__(self, group: Any = None, timeout: float | None = None) -> None:
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf
        ):
            raise ValueError(f"timeout= is a number of seconds above 0, or None for the group's own, got {timeout!r}")
        self._group, self._timeout = group, timeout
        self.rank, self.size = 0, 1
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
        return dist.get_process_group_ranks(dist.group.WORLD if self._group is None else self._group)

    def gather(self, data: bytes) -> list[bytes]:
        """Return what each rank gives; all of the same length."""
        if self.size == 1:
            return [data]
        with without_modes():
            mine = self._tensor(data)
            all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
            self._wait(lambda: dist.all_gather(all_of_them, mine, self._group, async_op=True))
            together = torch.cat(all_of_them).cpu().numpy().tobytes()
        return [together[start : start + len(data)] for start in range(0, len(together), len(data))]

    def broadcast(self, data: bytes, length: int, src: int) -> bytes:
        """Return the ``data`` of the rank ``src`` of the group, which is so long."""
        if self.size == 1:
            return data
        with without_modes():
            tensor = self._tensor(data if self.rank == src else bytes(length))
            self._wait(lambda: dist.broadcast(tensor, self.names[src], self._group, async_op=True))
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
        backends = dist.get_backend_config(dist.group.WORLD if self._group is None else self._group)
        kinds = [pair.partition(":")[0] for pair in backends.split(",")]
        return torch.device("cpu" if "cpu" in kinds else kinds[0])

    def _wait(self, start: Callable[[], Any]) -> None:
        try:
            work = start()
            if self._timeout is not None:
                # Not wait(timeout): what that means depends on the backend.
                end, pause = time.monotonic() + self._timeout, 2e-5
                while not work.is_completed():
                    if time.monotonic() > end:
                        raise RuntimeError(f"timeout={self._timeout:g} seconds are over")
                    time.sleep(pause)
                    pause = min(2 * pause, 0.01)
            work.wait()
        except RuntimeError as error:
            others = [name for rank, name in enumerate(self.names) if rank != self.rank]
            raise DesyncError(
                f"rank {self.names[self.rank]} has waited for {listed(others)}, and not all of them came or stayed: "
                f"{str(error).splitlines()[0]}. They have ended, hang, or do not make the same calls in the same "
                "order. The group cannot be used any more: end this process"
            ) from error


def listed(ranks: list[int]) -> str:
    """Return ``rank 1``, ``ranks 0 and 2``, or the first of many."""
    if len(ranks) > 8:
        return f"ranks {', '.join(map(str, ranks[:6]))} and {len(ranks) - 6} more"
    *most, last = map(str, ranks)
    return f"ranks {', '.join(most)} and {last}" if most else f"rank {last}"
