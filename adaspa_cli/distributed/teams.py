"""The teams that a process belongs to: all processes of a video, those that share its tokens, those of its branches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist

from adaspa_cli.distributed.team import Team


@dataclass(frozen=True)
class Teams:
    """A grid of processes: guidance branches x parts of the tokens.

    Attributes:
        all: every process of the video.
        tokens: those that share the tokens, and the heads, of this process's branches.
        branches: those that have the same part of the tokens in another guidance branch; alone without
            ``cfg_parallel``.
    """

    all: Team = field(default_factory=Team)
    tokens: Team = field(default_factory=Team)
    branches: Team = field(default_factory=Team)

    def __iter__(self) -> Iterator[Team]:
        """Each team once."""
        return iter({id(team): team for team in (self.all, self.tokens, self.branches)}.values())

    @classmethod
    def of(cls, rank: int, size: int, branches: int = 1, timeout: timedelta | None = None) -> Teams:
        """Of a process in the default group, whose first ranks have the first branch; every process calls it.

        ``timeout`` is that of the default group, which the groups of a team do not take over by themselves.
        """
        parts = size // branches
        every = Team(rank, size)
        if branches == 1:
            return cls(every, every)
        tokens = [[branch * parts + part for part in range(parts)] for branch in range(branches)]
        across = [list(range(part, size, parts)) for part in range(parts)]
        return cls(every, _team(rank, tokens, timeout), _team(rank, across, timeout))


def _team(rank: int, groups: list[list[int]], timeout: timedelta | None) -> Team:
    """The one of these groups of ranks that ``rank`` is in."""
    made = [(ranks, dist.new_group(ranks, timeout=timeout)) for ranks in groups]
    (ranks, group) = next((ranks, group) for ranks, group in made if rank in ranks)
    return Team(ranks.index(rank), len(ranks), group)
