"""Blocks ranked by weight, so that one search serves many sparsities.

The row-wise selection of AdaSpa (method: arXiv 2502.21079) keeps the first blocks of each row's order, and
head-adaptive sparsity needs each head's recall at three numbers of blocks. So the order of the heaviest K blocks of a
row, and each head's recall for every number of blocks up to K, are enough for the exact mask of every sparsity that
keeps no more than K blocks of a row.

Shapes: H heads, R query and C key blocks without text, K ranked blocks of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaspa_cli.attention.block_mask import index_dtype
from adaspa_cli.config.kept_blocks import candidate_counts
from adaspa_cli.masks.selection import adapt_counts


@dataclass(frozen=True)
class Ranking:
    """The heaviest blocks of each row.

    Attributes:
        order: int16 (int32 from 32,768 blocks on) [H, R, K], heaviest first, counted from the first block without text;
            of equally heavy ones the first.
        recall_by_rank: float32 [H, K + 1], recall of each head if its rows keep so many blocks, and all text.
    """

    order: Tensor
    recall_by_rank: Tensor

    @property
    def blocks(self) -> int:
        """K."""
        return self.order.shape[-1]


def rank(video: Tensor, text: Tensor, keep: int) -> Ranking:
    """Rank the ``keep`` heaviest blocks of each row of block sums [H, R, C]; ``text`` [H] is the mass with text.

    Holds one head's sort at a time.
    """
    orders, masses = [], []
    dtype = index_dtype(video.shape[-1])
    for head in video:
        head = torch.where(head.isnan(), torch.nan, head)  # a NaN is the heaviest, as in the selection
        weight, position = torch.sort(head, dim=-1, descending=True, stable=True)
        orders.append(position[:, :keep].to(dtype))
        masses.append(weight[:, :keep].sum(0, dtype=torch.float64).cumsum(0))
    text = text.double()
    total = text + video.sum((-1, -2), dtype=torch.float64)
    kept = torch.nn.functional.pad(torch.stack(masses), (1, 0)) + text[:, None]
    return Ranking(torch.stack(orders), (kept / total[:, None]).float())


def choose_counts(ranking: Ranking, sparsity: float, blocks: int, head_adaptive: bool) -> Tensor:
    """Kept video blocks of each head's rows, int64 [H], as the selection from the block sums would have them.

    Raises:
        ValueError: the ranking does not reach so far; :func:`~adaspa_cli.config.kept_blocks.most_needed` tells.
    """
    candidates = candidate_counts(sparsity, blocks, head_adaptive=head_adaptive)
    if candidates[-1] > ranking.blocks:
        raise ValueError(f"sparsity {sparsity} needs {candidates[-1]} ranked blocks of a row, not {ranking.blocks}")
    base = ranking.recall_by_rank[:, candidates[len(candidates) // 2]]
    if len(candidates) == 1:
        return torch.full(base.shape, candidates[0], device=base.device)
    return adapt_counts(base, *candidates)


def ranked_blocks(order: Tensor, counts: Tensor, blocks: int) -> Tensor:
    """Bool [H, R, C] from the order [H, R, K] and the kept blocks of each head's rows [H]; ``blocks`` is C."""
    used = torch.arange(order.shape[-1], device=order.device) < counts[:, None, None]
    columns = torch.where(used, order.long(), blocks)  # an extra column swallows what is not kept
    kept = torch.zeros(*order.shape[:-1], blocks + 1, dtype=torch.bool, device=order.device)
    return kept.scatter_(-1, columns, True)[..., :-1]
