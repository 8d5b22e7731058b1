"""How the heads of each attention layer are distributed in a run: first evenly, then by cost where that gains enough.

Dealt heads don't lie in a row, so they take longer to send. Every process knows the costs once a mask is found, so all
compute the same deal. Heads move at the next call of the layer: then nobody waits for the device to learn the costs,
and the mask moves with its heads.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from adaspa_cli.distributed.heads import ALL_HEADS, Deal, Heads, deal_by_cost, deal_evenly
from adaspa_cli.distributed.team import Team
from adaspa_cli.hooks.transfer import OnItsWay

LEAST_GAIN = 0.05  # of the costs of the slowest process

Key = tuple[int, str, int]  # layer, branch, sample: what has a mask of its own


class Deals:
    """The deals of a run in progress, by layer, branch and sample."""

    def __init__(self, team: Team, *, by_cost: bool = True) -> None:
        """``by_cost`` False keeps even parts for the whole run."""
        self._team, self._by_cost = team, by_cost
        self._heads: dict[Key, Heads] = {}
        self._costs: dict[Key, OnItsWay] = {}

    def start(self) -> None:
        """Begin a run: with even parts."""
        self._heads.clear()
        self._costs.clear()

    def of(self, key: Key) -> Heads:
        """The heads of this process, as :meth:`turn` left them."""
        return ALL_HEADS if self._team.alone else self._heads[key]

    def note(self, key: Key, costs: Tensor) -> None:
        """Take what the heads of this process cost, float32 [h], for the next deal; every process calls it."""
        if self._by_cost and not self._team.alone:
            self._costs[key] = OnItsWay.of(self._heads[key].gather(costs))

    def turn(self, key: Key, heads: int) -> tuple[Heads, Heads] | None:
        """Redistribute if new costs make it worth it; returns the previous and the new deal if they differ.

        Args:
            heads: number of all heads of the layer.
        """
        if self._team.alone:
            return None
        before = self._heads.setdefault(key, Heads(self._team, deal_evenly(heads, self._team.size)))
        costs = self._costs.pop(key, None)
        if costs is None:
            return None
        by_head = costs.there().tolist()
        deal = deal_by_cost(by_head, self._team.size)
        if _slowest(deal, by_head) > (1 - LEAST_GAIN) * _slowest(before.deal, by_head):
            return None
        self._heads[key] = now = Heads(self._team, deal)
        return before, now


def _slowest(deal: Deal, costs: Sequence[float]) -> float:
    """The largest cost of a member."""
    return max(sum(costs[head] for head in hand) for hand in deal)
