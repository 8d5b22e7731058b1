"""Which process has which heads of a layer, and what the processes exchange about them.

Shapes: H heads of the layer, h of them here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaspa_cli.distributed.team import Team, even_parts

Deal = tuple[tuple[int, ...], ...]
"""The heads of each member of a team, ascending."""


def deal_evenly(heads: int, members: int) -> Deal:
    """Heads in a row, as many for each member as can be."""
    sizes = even_parts(heads, members)
    starts = [sum(sizes[:member]) for member in range(members)]
    return tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True))


def deal_by_cost(costs: Sequence[float], members: int) -> Deal:
    """Distribute heads so that the costs of all members are similar; numbers of heads differ by one at most.

    Like cards, the costliest first, to and fro: so where heads come in few classes of cost, all members get as many of
    each. Dense steps need equal numbers.
    """
    order = sorted(range(len(costs)), key=lambda head: (-costs[head], head))
    hands: list[list[int]] = [[] for _ in range(members)]
    for place, head in enumerate(order):
        around, member = divmod(place, members)
        hands[member if around % 2 == 0 else members - 1 - member].append(head)
    return tuple(tuple(sorted(hand)) for hand in hands)


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads that an attention call has here, of all heads of its layer.

    Attributes:
        team: the processes that share them; alone, a call has all heads.
        deal: who has which; empty where the process is alone.
    """

    team: Team
    deal: Deal = ()

    @property
    def own(self) -> tuple[int, ...] | None:
        """Those of this process; None for all."""
        return self.deal[self.team.rank] if self.deal else None

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many each member has."""
        return tuple(map(len, self.deal))

    def mine(self, x: Tensor) -> Tensor:
        """Of x [H, *] that of the call's heads, [h, *]."""
        return x if self.own is None else pick(x, self.own, 0)

    def gather(self, x: Tensor) -> Tensor:
        """x [h, *] of all heads of the layer in their order, [H, *]; every process calls it."""
        if self.own is None:
            return x
        dealt = tuple(head for hand in self.deal for head in hand)
        return pick(self.team.gather(x, self.sizes), _inverse(dealt), 0)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of every member's x; every process calls it."""
        return self.team.sum(x)

    def move(self, x: Tensor, to: Heads) -> Tensor:
        """x [h, *] of these heads to that of the heads that the process has in another deal; every process calls it."""
        if self.own is None or to.own is None:
            return x
        own, rank, width = self.own, self.team.rank, x[0].numel()
        leaving = [[head for head in hand if head in own] for hand in to.deal]
        coming = [[head for head in to.own if head in hand] for hand in self.deal]
        sent = pick(x, tuple(own.index(head) for hand in leaving for head in hand), 0).contiguous()
        into = x.new_empty(len(to.deal[rank]), *x.shape[1:])
        with self.team.timed(x.device):
            self.team.all_to_all(
                sent, [len(part) * width for part in leaving], into, [len(part) * width for part in coming]
            ).wait()
        return pick(into, _inverse_of(tuple(head for part in coming for head in part), to.own), 0)


ALL_HEADS = Heads(Team())


def pick(x: Tensor, places: tuple[int, ...], dim: int) -> Tensor:
    """Some places along a dimension; a view where they come in a row."""
    if in_a_row(places):
        return x.narrow(dim, places[0] if places else 0, len(places))
    return x.index_select(dim, index_of(places, x.device))


def pick_into(into: Tensor, x: Tensor, places: tuple[int, ...], dim: int) -> None:
    """Write some places along a dimension into a tensor, in one pass."""
    if in_a_row(places):
        into.copy_(pick(x, places, dim))
    else:
        torch.index_select(x, dim, index_of(places, x.device), out=into)


def in_a_row(places: tuple[int, ...]) -> bool:
    """Whether each place is the next of the one before."""
    return not places or places == tuple(range(places[0], places[0] + len(places)))


@functools.lru_cache(256)
def index_of(places: tuple[int, ...], device: torch.device) -> Tensor:
    """Places as int64 on a device; made once, because it waits for the device."""
    with torch.inference_mode(False):
        return torch.tensor(places, dtype=torch.int64, device="cpu").to(device)


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """Where each of 0, 1, ... stands in an order."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _inverse_of(found: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Where each of ``wanted`` stands among those found."""
    return tuple(found.index(head) for head in wanted)
