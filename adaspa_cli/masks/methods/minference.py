"""MInference: per head vertical-slash or block-sparse, estimated at each call (arXiv 2407.02490, section 3).

At every call after warm-up, for every head, both patterns are estimated from q and k:

- *Vertical-slash* (algorithm 2). The weights of the last 64 video queries, summed by column and by diagonal, say which
  columns and diagonals are heavy. They are taken in groups as wide as a block, because each block that a line touches
  is computed. The paper's attention is causal; here queries see both sides, but the last ones nothing ahead of them:
  what they show at a distance is kept on both sides. Columns and diagonals compete for one budget, the heaviest per
  computed weight first, which replaces the paper's offline search for their numbers; the main diagonal is always kept.
- *Block-sparse* (algorithm 3). The products of mean-pooled queries and keys; each row keeps its k largest.

Both have the budget of k = round((1-γ) * Nv) video blocks a row. The head takes the pattern that recalls more of the
weights of 64 video queries that are spread evenly; at this the lines count for what they cover, not for what they
touch, so that the budgets are equal. (The paper assigns patterns to heads offline, on a sample prompt.)

*Density.* A group of diagonals stands across two blocks of a row: a head of lines computes up to twice its budget (up
to 2 max(k, 2) / Nv), one of blocks exactly its budget.

Shapes: H heads, h of them at a time, L tokens, D head dimension, B tokens of a block, Lv and Nv video tokens and
blocks, G groups of diagonals: group g holds the distances from g * B to g * B + B - 1, ahead and behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from adaspa_cli.attention import BlockMask, TokenLayout
from adaspa_cli.attention.layout import ceil_div
from adaspa_cli.config.kept_blocks import kept_blocks
from adaspa_cli.masks.estimating import Estimating
from adaspa_cli.masks.packing import full_mask, pack_blocks
from adaspa_cli.masks.policy import Call, FoundMask
from adaspa_cli.masks.rows import head_groups, row_weights
from adaspa_cli.masks.schedule import sparsity_at


@dataclass(frozen=True)
class MInference(Estimating):
    """The method's settings.

    Attributes:
        last_queries: video queries at the end that show columns and diagonals.
        judged_queries: video queries that decide between the patterns.
    """

    last_queries: int = 64
    judged_queries: int = 64

    def estimate(self, call: Call, q: Tensor, k: Tensor, v: Tensor, scale: float) -> FoundMask:  # noqa: ARG002
        """Choose pattern and blocks of each head; the recall is not known."""
        layout, heads = call.layout, q.shape[1]
        video = layout.video_blocks(self.block)
        budget = kept_blocks(sparsity_at(self.sparsity, call.step), len(video))
        if budget == len(video):
            return FoundMask(full_mask(layout, heads, self.block_size, q.device), None)
        rows = max(self.last_queries, self.judged_queries)
        parts = []
        for group in head_groups(heads, rows * layout.tokens):
            kept = self._patterns(layout, q[0, group], k[0, group], budget, scale)
            parts.append(pack_blocks(kept, layout, self.block_size))
        counts, indices = torch.cat([part.counts for part in parts]), torch.cat([part.indices for part in parts])
        return FoundMask(BlockMask(counts, indices, layout.blocks(self.block), self.block_size), None)

    def _patterns(self, layout: TokenLayout, q: Tensor, k: Tensor, budget: int, scale: float) -> Tensor:
        """Kept video blocks, bool [h, Nv, Nv], of the heads of q, k [h, L, D]."""
        last = torch.arange(layout.video_tokens, device=q.device)[-self.last_queries :] + layout.video_start
        lines = heaviest_lines(row_weights(q, k, last, scale), layout, self.block, budget)
        blocks = heaviest_blocks(q, k, layout, self.block, budget)
        judged = spread_rows(layout, self.block, self.judged_queries, q.device)
        weights = row_weights(q, k, judged, scale)
        wins = lines.mass(weights, judged, layout) > block_mass(weights, blocks, judged, layout, self.block)
        return torch.where(wins[:, None, None], lines.blocks(), blocks)


@dataclass(frozen=True)
class Lines:
    """Kept columns and diagonals, in groups as wide as a block.

    Attributes:
        columns: bool [h, Nv], by video key block.
        diagonals: bool [h, G].
        block: B.
    """

    columns: Tensor
    diagonals: Tensor
    block: int

    def blocks(self) -> Tensor:
        """Every video block that a line touches: bool [h, Nv, Nv]."""
        # Group g touches the blocks g and g + 1 places from the diagonal.
        near = self.diagonals | F.pad(self.diagonals, (1, 0))[:, :-1]
        place = torch.arange(self.columns.shape[1], device=self.columns.device)
        return self.columns[:, None] | near[:, (place - place[:, None]).abs()]

    def mass(self, weights: Tensor, rows: Tensor, layout: TokenLayout) -> Tensor:
        """Mass [h] of ``weights`` [h, n, L] of ``rows`` [n] that is on lines, in video blocks."""
        video = _video_columns(weights, layout, self.block)  # [h, n, Nv * B]
        start = layout.video_blocks(self.block).start * self.block
        keys = torch.arange(start, start + video.shape[-1], device=rows.device)
        distance = (keys - rows[:, None]).abs() // self.block
        kept = self.diagonals[:, distance] | self.columns.repeat_interleave(self.block, dim=1)[:, None]
        return (video * kept).sum((-1, -2))


def heaviest_lines(weights: Tensor, layout: TokenLayout, block: int, budget: int) -> Lines:
    """The columns and diagonals of most mass in ``weights`` [h, m, L] of the last m video queries.

    They cover ``budget`` video blocks a row on average, or the main diagonal alone where that is more.
    """
    blocks = len(layout.video_blocks(block))
    columns = _per_block(weights, layout, block).sum(1)  # [h, Nv]
    diagonals = distance_mass(weights[..., layout.video_start :][..., : layout.video_tokens], block)  # [h, G]
    groups = diagonals.shape[1]
    # Blocks that the lines cover: a column all rows, a group of diagonals less the farther it is, on two sides.
    cost = torch.cat(
        [
            torch.full((blocks,), blocks, device=weights.device),
            2 * (blocks - torch.arange(groups, device=weights.device)).clamp_min(1),
        ]
    )
    mass = torch.cat([columns, diagonals], dim=-1)
    mass[:, blocks] = torch.inf
    order = mass.argsort(dim=-1, descending=True, stable=True)
    affordable = cost[order].cumsum(-1) <= budget * blocks
    kept = torch.zeros_like(affordable).scatter_(-1, order, affordable)
    kept[:, blocks] = True
    return Lines(kept[:, :blocks], kept[:, blocks:], block)


def _video_columns(weights: Tensor, layout: TokenLayout, block: int) -> Tensor:
    """The keys of ``weights`` [h, n, L] in video blocks, the last filled up with zeros: [h, n, Nv * B]."""
    video = layout.video_blocks(block)
    columns = weights[..., video.start * block : video.stop * block]
    return F.pad(columns, (0, len(video) * block - columns.shape[-1]))


def _per_block(weights: Tensor, layout: TokenLayout, block: int) -> Tensor:
    """Sum ``weights`` [h, n, L] over the keys of each video block: [h, n, Nv]."""
    columns = _video_columns(weights, layout, block)
    return columns.reshape(*columns.shape[:2], -1, block).sum(-1)


def distance_mass(weights: Tensor, block: int) -> Tensor:
    """Sum ``weights`` [h, m, Lv] of the last m of Lv tokens by distance, ahead and behind, in groups: [h, G]."""
    heads, rows, tokens = weights.shape
    # Rows of one more entry than they are read as shift by one each: diagonals of the mirrored rows become columns.
    padded = F.pad(weights.flip(1), (0, rows)).flatten(1)
    by_offset = padded[:, : rows * (tokens + rows - 1)].view(heads, rows, -1).sum(1)  # offset x - (Lv - 1) at x
    behind, ahead = by_offset[:, :tokens].flip(-1), by_offset[:, tokens:]
    by_distance = behind + F.pad(ahead, (1, tokens - rows))
    groups = ceil_div(tokens, block)
    return F.pad(by_distance, (0, groups * block - tokens)).view(heads, groups, block).sum(-1)


def heaviest_blocks(q: Tensor, k: Tensor, layout: TokenLayout, block: int, budget: int) -> Tensor:
    """In each row the video blocks of the largest products of mean queries and keys: bool [h, Nv, Nv]."""
    scores = _pool(q, layout, block) @ _pool(k, layout, block).mT
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.topk(budget, dim=-1).indices, True)


def _pool(x: Tensor, layout: TokenLayout, block: int) -> Tensor:
    """Mean of x [h, L, D] over the tokens of each video block, float32 [h, Nv, D]; the last may be ragged."""
    video = layout.video_blocks(block)
    tokens = x[:, video.start * block : video.stop * block]
    heads, count, head_dim = tokens.shape
    whole = count // block
    means = tokens[:, : whole * block].reshape(heads, whole, block, head_dim).mean(2, dtype=torch.float32)
    if whole == len(video):
        return means
    return torch.cat([means, tokens[:, whole * block :].mean(1, keepdim=True, dtype=torch.float32)], dim=1)


def spread_rows(layout: TokenLayout, block: int, count: int, device: torch.device) -> Tensor:
    """Places [count] of query rows that are spread evenly over the video blocks."""
    video = layout.video_blocks(block)
    start, stop = video.start * block, min(video.stop * block, layout.tokens)
    return start + (2 * torch.arange(count, device=device) + 1) * (stop - start) // (2 * count)


def block_mass(weights: Tensor, kept: Tensor, rows: Tensor, layout: TokenLayout, block: int) -> Tensor:
    """Mass [h] of ``weights`` [h, n, L] of ``rows`` [n] that is in ``kept`` video blocks [h, Nv, Nv]."""
    row_blocks = rows // block - layout.video_blocks(block).start
    return (_per_block(weights, layout, block) * kept[:, row_blocks]).sum((-1, -2))
