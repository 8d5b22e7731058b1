"""Figures of a mask file: kept blocks of a head, step below step, and heat maps by layer and head."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from adaspa_cli.attention.layout import ceil_div
from adaspa_cli.report.heat import Heat
from adaspa_cli.visual.mask_look import MaskLook

# Of a sheet of pictures, in pixels; greys from 0, black.
_SIDE, _NARROWEST, _GAP, _LINE, _LABEL = 256, 230, 12, 18, 64
_INK, _FRAME, _WHITE = 40, 168, 255
_MOST_TICKS = 12


def greys(shares: Tensor) -> NDArray[np.uint8]:
    """Shares of kept blocks [P, P] as greys: 255, white, where none is kept, to 0, black, where all are."""
    levels: NDArray[np.uint8] = (255 - (shares * 255).round()).numpy().astype(np.uint8)
    return levels


def draw_blocks(seen: MaskLook, layer: int, head: int) -> Image.Image:
    """Kept blocks of one head: a row for each step, a column for each guidance branch.

    A cell is a square of whole pixels, as in :func:`~adaspa_cli.visual.figures.draw_patterns`.
    """
    facts, steps = seen.file.description, seen.choice.steps
    cells = len(seen.shares[layer, facts.branches[0], steps[0]][head])
    side = cells * max(1, round(_SIDE / cells))
    titles = [f"kept blocks of layer {layer}, head {head}"]
    if facts.model.random_weights:
        titles.append("random weights: the masks mean nothing")
    across, down, top = max(side, _NARROWEST) + _GAP, side + _GAP + 2 * _LINE, len(titles) * _LINE + _GAP
    sheet = Image.new("L", (_LABEL + len(facts.branches) * across, top + len(steps) * down), _WHITE)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, title in enumerate(titles):
        pen.text((_LABEL, 4 + number * _LINE), title, fill=_INK, font=font)
    for row, step in enumerate(steps):
        pen.text((4, top + row * down + 2 * _LINE + side // 2), f"step {step}", fill=_INK, font=font)
        for column, branch in enumerate(facts.branches):
            left, upper = _LABEL + column * across, top + row * down
            for number, line in enumerate(caption(seen, layer, head, branch, step)):
                pen.text((left, upper + number * (_LINE - 3)), line, fill=_INK, font=font)
            upper += 2 * _LINE
            picture = Image.fromarray(greys(seen.shares[layer, branch, step][head]))
            sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left, upper))
            pen.rectangle((left - 1, upper - 1, left + side, upper + side), outline=_FRAME)
    return sheet


def caption(seen: MaskLook, layer: int, head: int, branch: str, step: int) -> list[str]:
    """Density and recall of a mask, and its overlap with the step before."""
    entry, overlap = seen.file.entry((layer, branch, step)), seen.overlap(layer, head, branch, step)
    where = f"{branch}: " if len(seen.file.description.branches) > 1 else ""
    lines = [f"{where}density {entry.density[head]:.3f}, recall {entry.recall[head]:.3f}"]
    return lines if overlap is None else [*lines, f"IoU with step {overlap[0]}: {overlap[1]:.3f}"]


def png_bytes(sheet: Image.Image) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


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
