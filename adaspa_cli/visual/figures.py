"""Figures of a visualised model: weight maps with patterns, recall and LSE by step, masks of one video on others.

The figures of AdaSpa (arXiv 2502.21079): 5 and A to C (patterns, several steps below one another), 6a to 6c.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from adaspa_cli.report.drawing import COLOURS
from adaspa_cli.report.media import data_uri, png_bytes
from adaspa_cli.visual.probe import MASK, SEEN, WEIGHTS, HeadPicture, MaskRecord
from adaspa_cli.visual.sheet import Tile, draw_sheet

PATTERNS = ("oracle", "block", "column", "diagonal", "diagonal+column")
_MAP = "magma_r"
_DECADES = 3.0  # orders of magnitude that a picture tells apart
_LEVELS = 239  # steps of colour


def colours(means: Tensor, weights: Tensor) -> NDArray[np.uint8]:
    """Area means [P, P] as palette indices, on a log scale that the picture of all ``weights`` gives.

    0 is nothing at all (white), 1 to 239 go over three orders of magnitude up to the heaviest cell.
    """
    most = float(weights.max())
    if most <= 0:
        return np.zeros(means.shape, np.uint8)
    decades = (means / most).clamp(min=10**-_DECADES).log10() / _DECADES + 1
    levels = (decades * (_LEVELS - 1)).round() + 1
    return levels.where(means > 0, 0).numpy().astype(np.uint8)


def palette() -> NDArray[np.uint8]:
    """Colours [256, 3]: those of :func:`colours`, and greys for letters."""
    table = colormaps[_MAP](np.linspace(0, 1, _LEVELS))[:, :3]
    greys = np.linspace(40, 245, 255 - _LEVELS)[:, None].repeat(3, 1)
    return np.concatenate([[[255, 255, 255]], (table * 255).round(), greys]).astype(np.uint8)


def map_image(means: Tensor, weights: Tensor) -> Image.Image:
    """A picture of area means, one pixel a cell."""
    image = Image.fromarray(colours(means, weights), "P")
    image.putpalette(palette().tobytes())
    return image


def map_png(means: Tensor, weights: Tensor) -> str:
    """The same as a PNG in a data URI."""
    return data_uri("image/png", png_bytes(map_image(means, weights)))


def draw_patterns(steps: Mapping[int, HeadPicture], path: Path, title: str) -> None:
    """One head's weights and patterns, a row for each step, with the recall of each."""
    rows = [
        (
            f"step {step}",
            [
                Tile(map_image(picture.means[name], picture.means[WEIGHTS]), _pattern_caption(picture, name))
                for name in names(picture)
            ],
        )
        for step, picture in steps.items()
    ]
    table = Image.new("P", (1, 1))
    table.putpalette(palette().tobytes())
    sheet = draw_sheet("RGB", [title], rows)
    sheet.quantize(palette=table, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)


def names(picture: HeadPicture) -> tuple[str, ...]:
    """The pictures of a head, in the order in which they are shown."""
    return tuple(name for name in (WEIGHTS, *PATTERNS, MASK, SEEN) if name in picture.means)


def pattern_figure(picture: HeadPicture, name: str) -> str:
    """What is left of the mass, or what is seen of it."""
    return f"{'seen' if name == SEEN else 'recall'} {picture.recall[name]:.3f}"


def _pattern_caption(picture: HeadPicture, name: str) -> list[str]:
    return [name] if name == WEIGHTS else [name, pattern_figure(picture, name)]


def recall_by_step(records: Mapping[tuple[int, int], MaskRecord], layers: Sequence[int]) -> Callable[[Axes], None]:
    """Recall over steps of each step's own mask (whole lines) and of the reference step's (broken), by layer."""

    def draw(axes: Axes) -> None:
        for number, layer in enumerate(layers):
            colour = COLOURS[number % len(COLOURS)]
            for key, style in (("recall", "o-"), ("reused", "s--")):
                points = [
                    (step, getattr(records[at], key)) for at in sorted(records) for step in [at[1]] if at[0] == layer
                ]
                known = [(step, heads) for step, heads in points if heads is not None]
                if not known:
                    continue
                across = [step for step, _ in known]
                if key == "recall":
                    lows, highs = ([edge(heads) for _, heads in known] for edge in (min, max))
                    axes.fill_between(across, lows, highs, color=colour, alpha=0.1, linewidth=0)
                middle = [statistics.fmean(heads) for _, heads in known]
                label = f"layer {layer}, {'own mask' if key == 'recall' else 'mask kept'}"
                axes.plot(across, middle, style, color=colour, label=label, markersize=3.5)
        axes.set(xlabel="step", ylabel="recall, mean over heads")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)

    return draw


def lse_by_step(records: Mapping[tuple[int, int], MaskRecord], layers: Sequence[int]) -> Callable[[Axes], None]:
    """Mean LSE of the video's rows over steps, by layer, with the spread of the heads."""

    def draw(axes: Axes) -> None:
        for number, layer in enumerate(layers):
            points = [(step, records[at].lse) for at in sorted(records) for step in [at[1]] if at[0] == layer]
            colour, across = COLOURS[number % len(COLOURS)], [step for step, _ in points]
            lows, highs = ([edge(heads) for _, heads in points] for edge in (min, max))
            axes.fill_between(across, lows, highs, color=colour, alpha=0.1, linewidth=0)
            middle = [statistics.fmean(heads) for _, heads in points]
            axes.plot(across, middle, "o-", color=colour, label=f"layer {layer}", markersize=3.5)
        axes.set(xlabel="step", ylabel="LSE, mean over heads")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)

    return draw


def recall_across(table: Sequence[Sequence[float | None]]) -> Callable[[Axes], None]:
    """Recall of the mask of one video (row) on the weights of another (column); empty where it was not measured."""

    def draw(axes: Axes) -> None:
        values = np.array([[np.nan if value is None else value for value in row] for row in table])
        known = values[~np.isnan(values)]
        low, high = float(known.min()), float(known.max())
        axes.imshow(values, cmap="Blues", vmin=low - 0.3 * (high - low) - 1e-6, vmax=high + 0.6 * (high - low) + 1e-6)
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                axes.text(column, row, f"{value:.3f}", ha="center", va="center", color="black")
        numbers = range(len(table))
        axes.set(xlabel="weights of video", ylabel="mask of video", xticks=numbers, yticks=numbers)
        axes.set_xticklabels([str(number + 1) for number in numbers])
        axes.set_yticklabels([str(number + 1) for number in numbers])
        axes.grid(visible=False)

    return draw


def one_plot(draw: Callable[[Axes], None]) -> Callable[[Figure], Any]:
    """A figure with one pair of axes."""
    return lambda figure: draw(figure.add_subplot())
