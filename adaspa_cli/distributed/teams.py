"""The teams that a process belongs to: all processes of a video, those that share its tokens, those of its branches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

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
    def of(cls, rank: int, size: int, branches: int = 1) -> Teams:
        """Of a process in the default group, whose first ranks have the first branch; every process calls it."""
        parts = size // branches
        every = Team(rank, size)
        if branches == 1:
            return cls(every, every)
        tokens = _team(rank, [[branch * parts + part for part in range(parts)] for branch in range(branches)])
        return cls(every, tokens, _team(rank, [list(range(part, size, parts)) for part in range(parts)]))


def _team(rank: int, groups: list[list[int]]) -> Team:
    """The one of these groups of ranks that ``rank`` is in."""
    made = [(ranks, dist.new_group(ranks)) for ranks in groups]
    (ranks, group) = next((ranks, group) for ranks, group in made if rank in ranks)
    return Team(ranks.index(rank), len(ranks), group)
