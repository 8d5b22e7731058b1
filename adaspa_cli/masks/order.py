"""Another order of the tokens for some heads, so that their pattern becomes one of blocks.

Shapes: H heads, L tokens, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadOrder:
    """One permutation, and the heads that it moves; the others keep their order.

    Attributes:
        moved: bool [H].
        forward: int64 [L], the token that comes to each place.
        backward: int64 [L], the place that each token comes to: the inverse of ``forward``.
    """

    moved: Tensor
    forward: Tensor
    backward: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Bring x [1, H, L, D] into the order of the mask."""
        return self._gather(x, self.forward)

    def undo(self, x: Tensor) -> Tensor:
        """Bring x [1, H, L, D] back into the model's order."""
        return self._gather(x, self.backward)

    def _gather(self, x: Tensor, order: Tensor) -> Tensor:
        """Copy every head, also those that stay: which ones those are only the device knows.

        The result is [L, H, D] in memory, as models flatten it.
        """
        heads, tokens = x.shape[1:3]
        stay = torch.arange(tokens, device=x.device)
        source = torch.where(self.moved, order[:, None], stay[:, None])  # [L, H]
        rows = x[0].transpose(0, 1)[source, torch.arange(heads, device=x.device)]
        return rows.transpose(0, 1)[None]
