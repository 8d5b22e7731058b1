"""Figures of a mask file: kept blocks of a head, step below step, and heat maps by layer and head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from adaspa_cli.attention.layout import ceil_div
from adaspa_cli.report.heat import Heat
from adaspa_cli.visual.mask_look import MaskLook
from adaspa_cli.visual.sheet import Tile, draw_sheet

_MOST_TICKS = 12


def greys(shares: Tensor) -> NDArray[np.uint8]:
    """Shares of kept blocks [P, P] as greys: 255, white, where none is kept, to 0, black, where all are."""
    levels: NDArray[np.uint8] = (255 - (shares * 255).round()).numpy().astype(np.uint8)
    return levels


def draw_blocks(seen: MaskLook, layer: int, head: int) -> Image.Image:
    """Kept blocks of one head: a row for each step, a column for each guidance branch."""
    facts = seen.file.description
    titles = [f"kept blocks of layer {layer}, head {head}"]
    if facts.model.random_weights:
        titles.append("random weights: the masks mean nothing")
    rows = [
        (
            f"step {step}",
            [
                Tile(
                    Image.fromarray(greys(seen.shares[layer, branch, step][head])),
                    caption(seen, layer, head, branch, step),
                )
                for branch in facts.branches
            ],
        )
        for step in seen.choice.steps
    ]
    return draw_sheet("L", titles, rows)


def caption(seen: MaskLook, layer: int, head: int, branch: str, step: int) -> list[str]:
    """Density and recall of a mask, and its overlap with the step before."""
    entry, overlap = seen.file.entry((layer, branch, step)), seen.overlap(layer, head, branch, step)
    where = f"{branch}: " if len(seen.file.description.branches) > 1 else ""
    lines = [f"{where}density {entry.density[head]:.3f}, recall {entry.recall[head]:.3f}"]
    return lines if overlap is None else [*lines, f"IoU with step {overlap[0]}: {overlap[1]:.3f}"]


def draw_heats(heats: Sequence[Heat]) -> Callable[[Figure], None]:
    """Heat maps side by side, each with the bar of its colours."""

    def draw(figure: Figure) -> None:
        for axes, heat in zip(figure.subplots(1, len(heats), squeeze=False)[0], heats, strict=True):
            values = np.array([row for _, row in heat.rows])
            wider = 0.0 if heat.high > heat.low else 1e-3  # one value alone has no range of colours
            image = axes.imshow(values, cmap="Blues", vmin=heat.low - wider, vmax=heat.high + wider, aspect="auto")
            axes.set(title=heat.title, xlabel="head", ylabel="layer")
            axes.set_xticks(_ticks(values.shape[1]))
            axes.set_yticks(_ticks(len(values)), [str(heat.rows[row][0]) for row in _ticks(len(values))])
            axes.grid(visible=False)
            figure.colorbar(image, ax=axes, format="%.3f")
        figure.tight_layout()

    return draw


def heat_size(heats: Sequence[Heat]) -> tuple[float, float]:
    """Width and height, in inches, that suit heat maps."""
    return 4.2 * len(heats), min(9.0, max(2.4, 1.2 + 0.13 * len(heats[0].rows)))


def _ticks(count: int) -> list[int]:
    return list(range(0, count, ceil_div(count, _MOST_TICKS)))
