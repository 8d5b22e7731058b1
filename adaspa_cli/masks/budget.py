"""How the kept blocks are spread over the rows and heads of a layer, by any score of a block.

- *row*: every row of every head keeps k = round((1-γ) * Nv) video blocks, those of the largest score.
- *head-adaptive*: AdaSpa's three counts, by the recall of each head (arXiv 2502.21079, head-adaptive sparsity).
- *layer*: the rows of all heads share one budget of k a row in the mean: the largest scores of the layer are kept,
  and of each row a quarter of k at least and four times k at most. So lists are no longer than 4k, and their width
  follows from the settings: nothing waits for the device, and a stored mask stays small.

Text sink and recall are as in :mod:`adaspa_cli.masks.selection`; the recall is of the block sums, whatever the score.

Shapes: H heads, R query rows and Nv key blocks without text, W [H, Nq, Nk] block sums, K the longest list.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.layout import ceil_div
from adaspa_cli.config.methods.adaspa import BUDGETS
from adaspa_cli.masks.packing import full_mask, pack_lists
from adaspa_cli.masks.policy import FoundMask
from adaspa_cli.masks.selection import adapt_counts, candidate_counts, heaviest, kept_blocks

LEAST_SHARE, MOST_TIMES = 4, 4  # of the base count, in a layer's budget

_INFINITY_BITS = 0x7F800000  # of float32


def select_by_score(
    block_sums: Tensor,
    scores: Tensor,
    layout: TokenLayout,
    block_size: tuple[int, int],
    sparsity: float,
    budget: str,
) -> FoundMask:
    """Keep the video key blocks of the largest scores, and every block that contains text.

    Args:
        block_sums: W [H, Nq, Nk], float32, not negative.
        scores: [H, Nq, Nk], float32, not negative; may be W.
        layout: where the text stands.
        block_size: tokens of a (query, key) block.
        sparsity: γ in [0, 1), mean share of the video key blocks left out.
        budget: one of ``BUDGETS``.

    Returns:
        The mask, and each head's recall: its kept mass over the sum of its W.

    Raises:
        ValueError: an unknown budget.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget must be one of {', '.join(BUDGETS)}, got {budget!r}")
    rows, columns = layout.video_blocks(block_size[0]), layout.video_blocks(block_size[1])
    heads = len(block_sums)
    if sparsity == 0 or not rows or not columns:
        full = full_mask(layout, heads, block_size, block_sums.device)
        return FoundMask(full, block_sums.new_ones(heads))
    video, video_scores = (x[:, rows.start : rows.stop, columns.start : columns.stop] for x in (block_sums, scores))
    base = kept_blocks(sparsity, len(columns))
    candidates = candidate_counts(sparsity, len(columns), head_adaptive=budget == "head-adaptive")
    most = min(len(columns), MOST_TIMES * base) if budget == "layer" else candidates[-1]
    score, position = heaviest(video_scores, most)  # [H, R, K]
    mass = video.gather(-1, position)
    total = block_sums.sum((-1, -2))
    text = total - video.sum((-1, -2))  # [H]: every block with text is kept
    ranks = torch.arange(most, device=position.device)

    def recall(counts: Tensor) -> Tensor:
        kept = torch.where(ranks < counts[..., None], mass, 0).sum((-1, -2))
        return (text + kept) / total

    counts = torch.full(position.shape[:2], base, device=position.device)
    if budget == "layer":
        counts = _layer_counts(score, base)
    elif len(candidates) > 1:
        counts = adapt_counts(recall(counts), *candidates)[:, None].expand_as(counts)
    position = torch.where(ranks < counts[..., None], position + columns.start, block_sums.shape[-1])
    return FoundMask(pack_lists(position, counts, layout, block_size), recall(counts))


def _layer_counts(score: Tensor, base: int) -> Tensor:
    """How many of its heaviest blocks each row keeps, int64 [H, R], from their scores [H, R, K] in descending order."""
    keys = torch.where(score.isnan(), torch.inf, score)
    keys[..., : ceil_div(base, LEAST_SHARE)] = torch.inf
    # Scores are not negative, so their bits are in the same order. Of equal ones the first are kept.
    bits = keys.view(torch.int32)
    budget = base * score.shape[:2].numel()
    threshold = _threshold(bits, budget)
    above, level = bits > threshold, bits == threshold
    ties = level.flatten().cumsum(0, dtype=torch.int32).view_as(bits)
    return (above | (level & (ties <= budget - above.sum()))).sum(-1)


def _threshold(bits: Tensor, budget: int) -> Tensor:
    """The smallest number that no more than ``budget`` of the bits are above: bisection, without waiting."""
    low = torch.full((), -1, dtype=torch.int32, device=bits.device)
    high = torch.full_like(low, _INFINITY_BITS)
    for _ in range(_INFINITY_BITS.bit_length()):
        middle = low + torch.div(high - low, 2, rounding_mode="floor")
        enough = (bits > middle).sum() <= budget
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high
