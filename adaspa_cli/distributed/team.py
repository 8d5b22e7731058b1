"""The processes of a team, and their communication.

Every member must make the same calls in the same order: a call that one of them leaves out is waited for until the
time-out of the process group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from adaspa_cli.hooks.timing import Span, Stopwatch


def even_parts(whole: int, parts: int) -> list[int]:
    """``whole`` as ``parts`` sizes that differ by one at most, the larger first."""
    size, more = divmod(whole, parts)
    return [size + (part < more) for part in range(parts)]


class Team:
    """This process among those that share the tokens of a sequence. Without arguments it is alone, and nothing is sent.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        spans: times of all exchanges since :meth:`start`, with what was waited for in them.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: dist.ProcessGroup | None = None) -> None:
        """``group`` holds exactly these processes, in the order of their ranks; None is the default group."""
        self.rank, self.size, self.group = rank, size, group
        self.spans: list[Span] = []

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def start(self) -> None:
        """Forget the times of the run before."""
        self.spans = []

    def sum(self, x: Tensor) -> Tensor:
        """The sum of every member's x, of one shape."""
        if self.alone:
            return x
        total = x.clone(memory_format=torch.contiguous_format)
        with self._timed(x):
            dist.all_reduce(total, group=self.group)
        return total

    def broadcast(self, x: Tensor, source: int = 0) -> None:
        """Overwrite x with that of the member ``source``."""
        if self.alone:
            return
        whole = x.contiguous()
        with self._timed(x):
            dist.broadcast(_bytes(whole), group_src=source, group=self.group)
        if whole is not x:
            x.copy_(whole)

    def gather(self, x: Tensor, sizes: Sequence[int], dim: int = 0) -> Tensor:
        """Every member's x, concatenated along ``dim``, where member i has ``sizes[i]``; a copy."""
        if self.alone:
            return x
        own = x.movedim(dim, 0).contiguous()
        if len(own) < max(sizes):
            own = torch.cat([own, own.new_zeros(max(sizes) - len(own), *own.shape[1:])])
        whole = own.new_empty(self.size, *own.shape)
        with self._timed(x):
            _all_gather()(_bytes(whole), _bytes(own), group=self.group)
        return torch.cat([whole[member, :size] for member, size in enumerate(sizes)]).movedim(0, dim)

    def all_to_all(self, sent: Tensor, send: Sequence[int], into: Tensor, receive: Sequence[int]) -> Any:
        """Begin to send every member a piece of a tensor; ``wait()`` of what is returned ends it.

        Args:
            sent: contiguous, the pieces for all members one after another.
            send: elements of each of them.
            into: contiguous, filled with what all members send, one after another.
            receive: elements of each of those.
        """
        width = sent.element_size()
        return dist.all_to_all_single(
            _bytes(into),
            _bytes(sent),
            [count * width for count in receive],
            [count * width for count in send],
            group=self.group,
            async_op=True,
        )

    def timed(self, device: torch.device) -> Timed:
        """``with team.timed(device):`` round what is sent and waited for."""
        return Timed(self, device)

    def _timed(self, x: Tensor) -> Timed:
        return self.timed(x.device)


class Timed(Stopwatch):
    """Adds its span to those of a team."""

    def __init__(self, team: Team, device: torch.device) -> None:
        super().__init__(device)
        self._team = team

    def __exit__(self, *ended: Any) -> None:
        super().__exit__(*ended)
        self._team.spans.append(self.span)


def _all_gather() -> Any:
    """Its name changed with torch 2.13."""
    return getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def _bytes(x: Tensor) -> Tensor:
    """The memory of a contiguous tensor: backends do not know every dtype, and none is computed with."""
    return x.view(-1).view(torch.uint8)
