"""What each denoising step of a run computes, by method: a picture of docs/how-it-works.md.

python -m scripts.draw_schedule docs/images/schedule.png
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from adaspa_cli.config.load import method_config
from adaspa_cli.masks.methods.registry import make_policy
from adaspa_cli.masks.plan import Attention
from scripts.draw_to_file import draw_to_file

STEPS = 50
METHODS = ("adaspa", "adaspa-plus")
COLOURS = {"dense": "#9aa5b1", "search": "#d1622b", "cached search": "#e8a33d", "sparse": "#3b6ea5"}


@dataclass(frozen=True)
class Bar:
    """A step: its phase, and the share of the video blocks that it computes."""

    phase: str
    density: float


def bars(method: str, steps: int = STEPS) -> Iterator[Bar]:
    """The steps of a run by a method preset, by its own policy."""
    algorithm = method_config(method, {}).algorithm
    plans = make_policy(algorithm, steps).plan(range(steps))
    for plan, sparsity in zip(plans, algorithm.sparsities(steps), strict=True):
        dense = plan.attention is Attention.DENSE or sparsity is None
        yield Bar(plan.phase, 1.0 if dense else 1 - (sparsity or 0.0))


def draw(path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(8.4, 4.0), dpi=150)
    FigureCanvasAgg(figure)
    for row, method in enumerate(METHODS):
        axes = figure.add_subplot(len(METHODS), 1, row + 1)
        found = list(bars(method))
        colours = [COLOURS[bar.phase] for bar in found]
        axes.bar(range(len(found)), [bar.density for bar in found], width=0.8, color=colours)
        axes.set_xlim(-0.8, STEPS - 0.2)
        axes.set_ylim(0, 1.05)
        axes.set_yticks([0, 0.5, 1])
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(method, fontsize=11, loc="left")
        axes.set_ylabel("density", fontsize=10)
        axes.tick_params(labelsize=10)
    axes.set_xlabel("denoising step", fontsize=10)
    patches = [Patch(color=colour, label=phase) for phase, colour in COLOURS.items()]
    figure.legend(handles=patches, ncols=len(patches), fontsize=10, frameon=False, loc="upper right")
    figure.tight_layout(pad=0.6)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    draw_to_file(draw, __doc__)
