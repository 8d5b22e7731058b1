"""What all plots share: colours, a frame of axes, and drawings as text that needs no font and no other file."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = (
    "#3b6ea5",
    "#d1622b",
    "#2f8f6b",
    "#a4457f",
    "#7a6a2f",
    "#5c5c8a",
    "#b03a3a",
    "#3a8ea5",
    "#6b8f2f",
    "#8a5c5c",
)
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "adaspa",
    "svg.fonttype": "path",
    "font.size": 9.0,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_WIDTH = 8.4  # inches
_INK = "#010203"  # stands for the colour of the text round a drawing, whatever that is
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")


@dataclass(frozen=True)
class Drawing:
    """A plot with its heading."""

    title: str
    svg: str


def svg(draw: Callable[[Axes], None], *, height: float) -> str:
    """Draw on one pair of axes, ``height`` inches high; letters are paths, so that a page needs no font.

    Letters and lines have the colour of the text round the drawing, and the ground is the page's, light or dark.
    """
    with rc_context(_STYLE | dict.fromkeys(_INKED, _INK) | {"grid.alpha": 0.15}):
        figure = Figure(figsize=(_WIDTH, height))
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata=nothing)
    text = buffer.getvalue().replace(_INK, "currentColor")
    return re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def png(fill: Callable[[Figure], object], path: Path, size: tuple[float, float], *, dpi: int = 150) -> None:
    """Fill a figure of ``size`` (width, height) in inches, and write it as a PNG file."""
    with rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=dpi)
        FigureCanvasAgg(figure)
        fill(figure)
        figure.savefig(path, format="png", bbox_inches="tight", metadata={"Software": None})
