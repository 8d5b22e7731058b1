"""Density and recall of masks as heat maps, a layer a row and a head a column, for pages."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from adaspa_cli.report.schema import CompensationUse, Search

_OWN_HEAT = 4  # search steps that get heat maps of their own; more of them are averaged
_NUMBERS = 8  # heads up to which a heat map's cells are wide enough for their number


@dataclass(frozen=True)
class Heat:
    """One figure by layer (row) and head, with the bounds of its colours.

    Attributes:
        name: of the figure, as ``Density``.
        where: of which step and branch.
        low, high: values of the palest and the darkest colour.
        numbers: whether cells are wide enough for their numbers.
        scale: what maps with the same colours have in common.
        shared: number of maps with these colours; 0 for a map with colours of its own.
    """

    name: str
    where: str
    rows: list[tuple[int, list[float]]]
    low: float
    high: float
    numbers: bool
    scale: str
    shared: int = 0

    @property
    def title(self) -> str:
        return f"{self.name}, {self.where}"

    @property
    def least(self) -> float:
        return min(min(row) for _, row in self.rows)

    @property
    def most(self) -> float:
        return max(max(row) for _, row in self.rows)

    def strength(self, value: float) -> float:
        """Place of a value between the bounds, 0 to 1."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5


def heat(name: str, where: str, rows: list[tuple[int, list[float]]], scale: str | None = None) -> Heat:
    """A heat map of (layer, value of each head), its colours from the lowest to the highest value.

    Args:
        scale: see :func:`with_shared_scales`; by default the name.
    """
    values = [value for _, row in rows for value in row]
    return Heat(name, where, rows, min(values), max(values), len(rows[0][1]) <= _NUMBERS, scale or name)


def with_shared_scales(heats: Iterable[Heat]) -> list[Heat]:
    """The maps, those of one scale in the same colours, so that layers, heads, steps and files can be compared."""
    heats = list(heats)
    groups: dict[str, list[Heat]] = defaultdict(list)
    for one in heats:
        groups[one.scale].append(one)
    bounds = {
        scale: (min(one.least for one in group), max(one.most for one in group), len(group))
        for scale, group in groups.items()
        if len(group) > 1
    }
    return [
        replace(one, low=bounds[one.scale][0], high=bounds[one.scale][1], shared=bounds[one.scale][2])
        if one.scale in bounds
        else one
        for one in heats
    ]


def heats(searches: Sequence[Search]) -> list[Heat]:
    """Heat maps of density and recall, by guidance branch and step; of many steps the mean."""
    steps = sorted({search.step for search in searches})
    apart = len(steps) <= _OWN_HEAT
    groups: dict[tuple[str, int], dict[int, list[Search]]] = defaultdict(lambda: defaultdict(list))
    for search in searches:
        groups[search.branch, search.step if apart else -1][search.layer].append(search)
    branches = {search.branch for search in searches}
    found = []
    for (branch, step), layers in groups.items():
        when = f"step {step}" if apart else f"mean of steps {steps[0]} to {steps[-1]}"
        where = f"{when}, {branch}" if len(branches) > 1 else when
        by_layer = sorted(layers.items())
        density = [(layer, _mean([s.density for s in its])) for layer, its in by_layer]
        recall = [(layer, _mean([s.recall for s in its if s.recall])) for layer, its in by_layer if its[0].recall]
        found += [heat(name, where, rows) for name, rows in (("Density", density), ("Recall", recall)) if rows]
    return with_shared_scales(found)


def error_heats(compensation: CompensationUse | None) -> list[Heat]:
    """Maps of what the summaries stand for and of the error after the repair, a layer a row and a step a column."""
    if compensation is None:
        return []
    steps = f"steps {compensation.steps[0]} to {compensation.steps[-1]}"
    pooled = {entry.layer: entry.pooled for entry in compensation.layers}
    after = {entry.layer: entry.after for entry in compensation.layers}
    found = []
    for name, by_layer in (("Pooled share", pooled), ("Error after repair", after)):
        known = {layer: [value for value in row if value is not None] for layer, row in by_layer.items()}
        if all(len(known[layer]) == len(row) for layer, row in by_layer.items()):
            found.append(heat(name, steps, list(known.items())))
    return found


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    """Mean by head."""
    return [statistics.fmean(values) for values in zip(*rows, strict=True)]
