"""Attention weights of one head, made a few rows at a time: never a matrix of all tokens by all tokens.

Shapes: L video tokens, n rows at a time, D head dimension, P cells along a side of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.layout import ceil_div
from adaspa_cli.masks.token_order import token_places

# Weights made at once: 67 MB in float32 on a GPU, and what stays in a processor's caches.
_ROWS_WEIGHTS, _CPU_ROWS_WEIGHTS = 1 << 24, 1 << 20

Keep = Callable[[int, Tensor], Tensor]
"""What a pattern leaves of weights [n, L] whose first row is the given one."""


@dataclass(frozen=True)
class HeadWeights:
    """The weights A [L, L] of one head among video tokens: exp(q k^T * scale - LSE).

    The LSE is that of the whole row, text included, so rows sum to less than one where text is looked at.

    Attributes:
        q, k: [L, D] of the video tokens, float32.
        lse: natural log-sum-exp of each row [L].
        scale: factor of q k^T.
        at_once: weights that are made at once, or one row of cells; None for what suits the device.
    """

    q: Tensor
    k: Tensor
    lse: Tensor
    scale: float
    at_once: int | None = None

    @classmethod
    def of_head(cls, q: Tensor, k: Tensor, lse: Tensor, layout: TokenLayout, head: int) -> HeadWeights:
        """Take one head's video tokens out of q, k [1, H, tokens, D] and lse [1, H, tokens].

        They come frame by frame and row by row, whatever their order in the sequence.
        """
        video = token_places(layout, q.device)
        return cls(q[0, head, video].float(), k[0, head, video].float(), lse[0, head, video], q.shape[-1] ** -0.5)

    @property
    def tokens(self) -> int:
        return self.q.shape[0]

    def rows(self, multiple: int = 1) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, weights [n, L]); n is a multiple of ``multiple`` but for the last."""
        at_once = self.at_once or (_CPU_ROWS_WEIGHTS if self.q.device.type == "cpu" else _ROWS_WEIGHTS)
        count = max(1, at_once // self.tokens // multiple) * multiple
        for start in range(0, self.tokens, count):
            part = slice(start, start + count)
            yield start, torch.exp_((self.q[part] @ self.k.T).mul_(self.scale).sub_(self.lse[part, None]))


def cell_size(tokens: int, pixels: int) -> int:
    """Tokens along a side of a picture's cell, so that the picture has at most ``pixels`` of them."""
    return ceil_div(tokens, pixels)


def area_means(weights: HeadWeights, keeps: dict[str, Keep], cell: int) -> dict[str, Tensor]:
    """Mean over each cell of what each pattern leaves of the weights: float64 [P, P].

    A mean over the whole area, and no sample of it, so that thin lines get faint and neither vanish nor make moiré.
    Cells at the end may be smaller, and are divided by what they have.
    """
    cells = ceil_div(weights.tokens, cell)
    device = weights.q.device
    sums = {name: torch.zeros(cells, cells, dtype=torch.float64, device=device) for name in keeps}
    for start, rows in weights.rows(cell):
        first = start // cell
        for name, keep in keeps.items():
            pooled = cell_sums(keep(start, rows), cell)
            sums[name][first : first + pooled.shape[0]] = pooled.double()
    areas = cell_areas(weights.tokens, cell, device)
    return {name: total / areas for name, total in sums.items()}


def mass(means: Tensor, tokens: int, cell: int) -> float:
    """Sum of the weights that a picture [P, P] of area means shows."""
    return float((means * cell_areas(tokens, cell, means.device)).sum())


def cell_areas(length: int, cell: int, device: torch.device) -> Tensor:
    """Elements of a matrix [length, length] in each cell: int64 [P, P]; cells at the end may have fewer."""
    sides = (length - torch.arange(ceil_div(length, cell), device=device) * cell).clamp(max=cell)
    return sides[:, None] * sides


def cell_sums(rows: Tensor, cell: int) -> Tensor:
    """Sums over cells of rows [n, L]."""
    count, tokens = rows.shape
    padded = torch.nn.functional.pad(rows, (0, -tokens % cell, 0, -count % cell))
    return padded.view(ceil_div(count, cell), cell, ceil_div(tokens, cell), cell).sum((1, 3))
