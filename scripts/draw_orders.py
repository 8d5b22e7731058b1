"""What a block of tokens covers in raster order and along the Hilbert curve: the picture of docs/adaspa-plus.md.

python -m scripts.draw_orders docs/images/token-orders.png
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.masks.token_order import video_order
from scripts.draw_to_file import draw_to_file

LAYOUT = TokenLayout(8, 16, 16, 0, "last")
BLOCK = 64
SHOWN = (5, 13, 22)  # blocks that are coloured
COLOURS = ["#eef1f4", "#3b6ea5", "#d1622b", "#2f8f6b"]


def coloured(order: Tensor) -> Tensor:
    """Which of the shown blocks each token is in, 1 to 3, or 0: [frames, rows, columns]; ``order`` is the token at
    each place."""
    colours = torch.zeros(LAYOUT.video_tokens, dtype=torch.int64)
    for colour, block in enumerate(SHOWN, start=1):
        colours[order[block * BLOCK : (block + 1) * BLOCK]] = colour
    return colours.view(LAYOUT.frames, LAYOUT.height, LAYOUT.width)


def draw(path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(8.4, 2.7), dpi=150)
    FigureCanvasAgg(figure)
    orders = {"raster": torch.arange(LAYOUT.video_tokens), "hilbert": video_order(LAYOUT).forward}
    for row, (name, order) in enumerate(orders.items()):
        for frame, cells in enumerate(coloured(order)):
            axes = figure.add_subplot(2, LAYOUT.frames, row * LAYOUT.frames + frame + 1)
            axes.imshow(cells.numpy(), cmap=ListedColormap(COLOURS), vmin=0, vmax=3)
            axes.set_xticks([])
            axes.set_yticks([])
            if not row:
                axes.set_title(f"frame {frame}", fontsize=10)
            if not frame:
                axes.set_ylabel(name, fontsize=11)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    draw_to_file(draw, __doc__)
