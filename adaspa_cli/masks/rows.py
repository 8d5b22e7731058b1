"""Attention weights of a few query rows, for methods that don't compute all of them.

Shapes: H heads, h of them at a time, n rows, L tokens, D head dimension.
"""

import torch
from torch import Tensor

# Weights of one group of heads: 134 MB in float32, four heads of 64 rows on 118,784 keys.
_GROUP_WEIGHTS = 1 << 25


def head_groups(heads: int, weights_per_head: int) -> list[slice]:
    """Split the heads into groups whose weights are few enough to be held at once."""
    size = max(1, _GROUP_WEIGHTS // max(1, weights_per_head))
    return [slice(start, min(start + size, heads)) for start in range(0, heads, size)]


def row_weights(q: Tensor, k: Tensor, rows: Tensor, scale: float) -> Tensor:
    """softmax(q k^T * scale) of ``rows`` [n] alone, float32 [h, n, L]; q, k [h, L, D]."""
    return torch.softmax((q[:, rows] @ k.mT).float().mul_(scale), dim=-1)
