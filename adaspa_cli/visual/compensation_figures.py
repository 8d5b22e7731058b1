"""Figures of the compensation for left-out blocks: the mass that is seen, and the error of the output, by step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from matplotlib.axes import Axes

from adaspa_cli.report.drawing import COLOURS
from adaspa_cli.report.heat import Heat, heat, with_shared_scales
from adaspa_cli.visual.compensation import KEPT, REPAIR, SUMMARIES, Compensated

Records = Mapping[tuple[int, int], Compensated]
"""By (layer, step)."""

_STYLES = {KEPT: "o:", SUMMARIES: "s--", REPAIR: "D-"}
_SHARES = (("kept exactly", "#3b6ea5"), ("seen through summaries", "#e8a33d"), ("seen by neither", "#d9dde3"))


def mass_by_step(records: Records, layers: Sequence[int]) -> Callable[[Axes], None]:
    """Shares of the mass, mean over heads: a bar for each step, the layers side by side."""
    steps = sorted({step for _, step in records})

    def draw(axes: Axes) -> None:
        bars = itertools.product(enumerate(layers), enumerate(steps))
        places = [(number * (len(steps) + 1) + at, layer, step) for (number, layer), (at, step) in bars]
        shares = [_shares(records[layer, step]) for _, layer, step in places]
        below = [0.0] * len(places)
        for number, (name, colour) in enumerate(_SHARES):
            values = [share[number] for share in shares]
            axes.bar([place for place, _, _ in places], values, bottom=below, color=colour, label=name, width=0.9)
            below = [low + value for low, value in zip(below, values, strict=True)]
        axes.set_xticks([place for place, _, _ in places], [str(step) for _, _, step in places])
        for number, layer in enumerate(layers):
            axes.text(number * (len(steps) + 1) + (len(steps) - 1) / 2, 1.02, f"layer {layer}", ha="center")
        axes.set(xlabel="step", ylabel="share of the mass, mean over heads", ylim=(0, 1.1))
        axes.grid(visible=False, axis="x")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)

    return draw


def _shares(compensated: Compensated) -> tuple[float, float, float]:
    return fmean(compensated.exact), fmean(compensated.pooled), fmean(compensated.unseen)


def error_by_step(records: Records, layers: Sequence[int]) -> Callable[[Axes], None]:
    """Error of the output after each stage, mean over heads, by layer; crosses are what the probes estimate."""

    def draw(axes: Axes) -> None:
        for number, layer in enumerate(layers):
            steps = [step for at, step in sorted(records) if at == layer]
            found = [records[layer, step] for step in steps]
            colour = COLOURS[number % len(COLOURS)]
            for stage, style in _STYLES.items():
                if stage in found[0].errors:
                    means = [fmean(compensated.errors[stage]) for compensated in found]
                    axes.plot(steps, means, style, color=colour, label=f"layer {layer}, {stage}", markersize=3.5)
            estimates = [(step, fmean(one.after)) for step, one in zip(steps, found, strict=True) if one.after]
            if estimates:
                axes.plot(*zip(*estimates, strict=True), "x", color=colour, label=f"layer {layer}, estimated on probes")
        axes.set(xlabel="step", ylabel="error of the output, mean over heads", ylim=(0, None))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)

    return draw


def compensation_heats(records: Records) -> list[Heat]:
    """Maps by layer and head, mean over the steps that were looked at."""
    steps = sorted({step for _, step in records})
    layers = sorted({layer for layer, _ in records})
    when = f"step {steps[0]}" if len(steps) == 1 else f"mean of steps {steps[0]} to {steps[-1]}"
    stages = list(records[layers[0], steps[0]].errors)
    figures: dict[str, Callable[[Compensated], list[float]]] = {"Kept exactly": lambda one: one.exact}
    if SUMMARIES in stages:
        figures["Seen through summaries"] = lambda one: one.pooled
    figures |= {f"Error, {stage}": _error_of(stage) for stage in stages}
    return with_shared_scales(
        heat(
            name,
            when,
            [(layer, _means([figure(records[layer, step]) for step in steps])) for layer in layers],
            scale=name.partition(",")[0],
        )
        for name, figure in figures.items()
    )


def _error_of(stage: str) -> Callable[[Compensated], list[float]]:
    return lambda one: one.errors[stage]


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(values) for values in zip(*rows, strict=True)]
