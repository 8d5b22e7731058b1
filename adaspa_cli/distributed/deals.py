"""How the heads of each attention layer are distributed in a run: first evenly, then by cost.

Every process knows the costs once a mask is found, so all compute the same deal. Heads move at the next call of the
layer: then nobody waits for the device to learn the costs, and the mask moves with its heads.
"""

from __future__ import annotations

from torch import Tensor

from adaspa_cli.distributed.heads import ALL_HEADS, Heads, deal_by_cost, deal_evenly
from adaspa_cli.distributed.team import Team
from adaspa_cli.hooks.transfer import OnItsWay

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
        """Redistribute if there are new costs; returns the previous and the new deal if they differ.

        Args:
            heads: number of all heads of the layer.
        """
        if self._team.alone:
            return None
        before = self._heads.setdefault(key, Heads(self._team, deal_evenly(heads, self._team.size)))
        costs = self._costs.pop(key, None)
        if costs is None:
            return None
        deal = deal_by_cost(costs.there().tolist(), self._team.size)
        if deal == before.deal:
            return None
        self._heads[key] = now = Heads(self._team, deal)
        return before, now
