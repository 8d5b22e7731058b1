"""Figures of mask files: kept blocks of a head, step below step, and heat maps by layer and head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from adaspa_cli.attention.layout import ceil_div
from adaspa_cli.maskfiles.description import Place
from adaspa_cli.report.heat import Heat
from adaspa_cli.visual import view
from adaspa_cli.visual.mask_reading import MaskReading
from adaspa_cli.visual.sheet import Tile, draw_sheet

_MOST_TICKS = 12


def greys(shares: Tensor) -> NDArray[np.uint8]:
    """Shares of kept blocks [P, P] as greys: 255, white, where none is kept, to 0, black, where all are."""
    levels: NDArray[np.uint8] = (255 - (shares * 255).round()).numpy().astype(np.uint8)
    return levels


def draw_blocks(seen: MaskReading, layer: int, head: int) -> Image.Image:
    """Kept blocks of one head: a row for each step, a column for each guidance branch and file."""
    rows = [
        (
            f"step {step}",
            [
                Tile(
                    Image.fromarray(greys(seen.shares[number, (layer, branch, step)][head])),
                    caption(seen, number, (layer, branch, step), head),
                )
                for branch in seen.choice.branches
                for number in range(len(seen.files))
            ],
        )
        for step in seen.choice.steps
    ]
    return draw_sheet("L", [f"Kept blocks of layer {layer}, head {head}", *_legend(seen)], rows)


def draw_looks(seen: MaskReading, layer: int, head: int) -> Image.Image:
    """What the mask of the query token keeps, over the frames: rows and columns as in :func:`draw_blocks`."""
    query = seen.choice.query
    frames = view.frames_shown(None, seen.files[0].description.layout)
    rows = [
        (
            f"step {step}",
            [
                Tile(
                    Image.fromarray(view.paint(frames, seen.looks[number, (layer, branch, step)][head], query)),
                    caption(seen, number, (layer, branch, step), head),
                )
                for branch in seen.choice.branches
                for number in range(len(seen.files))
            ],
        )
        for step in seen.choice.steps
    ]
    titles = [
        f"Tokens that token {','.join(map(str, query))} (frame, row, column) looks at, layer {layer}, head {head}",
        "orange: kept, dark: left out, blue: the token; a picture for each frame of tokens, row by row",
    ]
    return draw_sheet("RGB", [*titles, *_files(seen)], rows)


def _legend(seen: MaskReading) -> list[str]:
    """What a sheet needs to be read without its page."""
    cell = seen.choice.cell(seen.files[0].description)
    what, axes = "blocks", "query blocks downwards, key blocks across"
    if seen.choice.by_tokens:
        what, axes = "tokens", "query tokens downwards, key tokens across, frame by frame and row by row"
    lines = [
        "black: kept, white: left out" if cell == 1 else f"a point: {cell} x {cell} {what}, the darker the more kept",
        axes,
        "text: not drawn, but in density and recall",
    ]
    return lines + _files(seen)


def _files(seen: MaskReading) -> list[str]:
    """What the numbers of files stand for, and a warning."""
    lines = []
    if len(seen.files) > 1:
        lines += [f"file {number}: {file.path.name}" for number, file in enumerate(seen.files, 1)]
    if any(file.description.model.random_weights for file in seen.files):
        lines.append("random weights: the masks are meaningless")
    return lines


def caption(seen: MaskReading, number: int, place: Place, head: int) -> list[str]:
    """Whose mask it is, where there are several; its density and recall; its overlaps."""
    entry = seen.files[number].entry(place)
    whose = [place[1]] if len(seen.choice.branches) > 1 else []
    whose += [f"file {number + 1}"] if len(seen.files) > 1 else []
    figures = f"density {entry.density[head]:.3f}, recall {entry.recall[head]:.3f}"
    overlaps = [f"IoU with {other}: {value:.3f}" for other, value in seen.overlaps(number, place, head)]
    return [*([", ".join(whose)] if whose else []), figures, *overlaps]


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
            ticks = None if heat.high > heat.low else [heat.low]
            figure.colorbar(
                image, ax=axes, label=heat.name, ticks=ticks, format="%.3f", aspect=7 * figure.get_figheight()
            )
        figure.tight_layout(w_pad=3)

    return draw


def heat_size(heats: Sequence[Heat]) -> tuple[float, float]:
    """Width and height, in inches, that suit heat maps."""
    return 4.4 * len(heats), min(9.0, max(2.4, 1.2 + 0.13 * len(heats[0].rows)))


def _ticks(count: int) -> list[int]:
    return list(range(0, count, ceil_div(count, _MOST_TICKS)))
