"""Compensation for left-out blocks, for the report: its cost, and each call's estimate of its error.

Nothing dense is run for it: the probe rows of a repaired call say how far the others are from dense attention.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from adaspa_cli.report.schema import CompensationUse, LayerCompensation, Report

if TYPE_CHECKING:
    from adaspa_cli.sampling.records import AttentionCall

FIGURES = ("pooled", "before", "after")


def compensation_use(calls: Sequence[AttentionCall], densified: int = 0) -> CompensationUse | None:
    """Compensation for left-out blocks in these calls; None if there was none. Waits for the device."""
    made_up = [call for call in calls if call.estimate.work]
    if not made_up:
        return None
    steps = sorted({call.step for call in made_up})
    by_place = {figure: _by_place(made_up, figure) for figure in FIGURES}
    layers = []
    for layer in sorted({call.layer for call in made_up}):
        row = {
            figure: tuple(_mean(figure, by_place[figure].get((layer, step))) for step in steps) for figure in FIGURES
        }
        layers.append(LayerCompensation(layer, **row))
    whole = {figure: _mean(figure, [x for heads in by_place[figure].values() for x in heads]) for figure in FIGURES}
    work = sum(call.estimate.work for call in made_up) / len(calls)
    return CompensationUse(work, **whole, densified=densified, steps=tuple(steps), layers=tuple(layers))


def _by_place(calls: Sequence[AttentionCall], figure: str) -> dict[tuple[int, int], list[list[float]]]:
    """The figure's values of all heads of each call, by layer and step."""
    measured = {index: getattr(call.estimate, figure) for index, call in enumerate(calls)}
    known = {index: value.float().flatten() for index, value in measured.items() if value is not None}
    found: dict[tuple[int, int], list[list[float]]] = defaultdict(list)
    rows = torch.stack(list(known.values())).tolist() if known else []  # one wait for all of them
    for index, heads in zip(known, rows, strict=True):
        found[calls[index].layer, calls[index].step].append(heads)
    return found


def _mean(figure: str, calls: Sequence[Sequence[float]] | None) -> float | None:
    """Of all heads of some calls: of errors the root mean square, of shares the mean."""
    if not calls:
        return None
    values = [value for heads in calls for value in heads]
    mean = fmean(values) if figure == "pooled" else math.sqrt(fmean(value**2 for value in values))
    return round(mean, 6)


def error_note(report: Report) -> str | None:
    """What the probes of a run say of its error, in one line; None where there were none."""
    found = report.compensation
    if found is None or found.after is None or found.before is None:
        return None
    densified = f"; {found.densified} calls were dense for it" if found.densified else ""
    return (
        f"estimated attention error {found.after:.1%} ({found.before:.1%} without repair), of the dense output's norm"
        f"{densified}; see docs/adaspa-plus.md"
    )
