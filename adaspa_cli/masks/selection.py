"""From block sums to a mask: row-wise selection, text sink, head-adaptive sparsity (AdaSpa, arXiv 2502.21079).

Shapes: W [H, Nq, Nk] block sums, Nv video key blocks, K the longest list of kept video blocks. Nothing here waits
for the device: numbers that depend on data stay tensors, and K follows from the settings.
"""

import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.masks.packing import full_mask, pack_lists
from adaspa_cli.masks.policy import FoundMask

RECALL_THRESHOLD = 0.8  # a head above it can bear more sparsity (AdaSpa, head-adaptive sparsity)


def kept_blocks(sparsity: float, video_blocks: int) -> int:
    """Video key blocks that a row keeps: round((1-γ) * Nv), at least 1 of those there are."""
    return min(video_blocks, max(1, round((1 - sparsity) * video_blocks)))


def select(
    block_sums: Tensor,
    layout: TokenLayout,
    block_size: tuple[int, int],
    sparsity: float,
    *,
    head_adaptive: bool,
) -> FoundMask:
    """Keep the heaviest video key blocks of every query row, and every block that contains text.

    Args:
        block_sums: W [H, Nq, Nk], float32.
        layout: where the text stands.
        block_size: tokens of a (query, key) block; W was summed over such blocks.
        sparsity: γ in [0, 1), share of the video key blocks left out.
        head_adaptive: γ is the mean; heads of high recall get more, heads of low recall less.

    Returns:
        The mask, and each head's recall: its kept mass over the sum of its W.
    """
    rows, columns = layout.video_blocks(block_size[0]), layout.video_blocks(block_size[1])
    heads, _, key_blocks = block_sums.shape
    if sparsity == 0:
        full = full_mask(layout, heads, block_size, block_sums.device)
        return FoundMask(full, torch.ones(heads, device=block_sums.device))
    base = kept_blocks(sparsity, len(columns))
    fewest, most = base, base
    if head_adaptive:
        fewest = kept_blocks((1 + sparsity) / 2, len(columns))
        most = kept_blocks(max(0.0, (3 * sparsity - 1) / 2), len(columns))

    video = block_sums[:, rows.start : rows.stop, columns.start : columns.stop]
    weight, position = torch.topk(video, most, dim=-1)  # [H, rows, K], heaviest first
    ranks = torch.arange(most, device=video.device)
    mass_by_rank = weight.sum(-2)  # [H, K]
    total = block_sums.sum((-1, -2))  # [H]
    text = total - video.sum((-1, -2))  # [H]: every block with text is kept

    def recall(counts: Tensor) -> Tensor:
        kept = (mass_by_rank * (ranks < counts[:, None])).sum(-1)
        return (text + kept) / total

    counts = torch.full((heads,), base, device=video.device)  # [H]
    if head_adaptive:
        counts = adapt_counts(recall(counts), fewest, base, most)
    position = torch.where(ranks < counts[:, None, None], position + columns.start, key_blocks)
    return FoundMask(pack_lists(position, counts, layout, block_size), recall(counts))


def adapt_counts(recall: Tensor, fewest: int, base: int, most: int) -> Tensor:
    """Kept video blocks per head [H] from the recall [H] that each head has with ``base`` blocks.

    With n heads above the threshold, at most half of them all, the n of highest recall keep ``fewest`` and the n of
    lowest recall keep ``most``, so that the mean stays (AdaSpa, head-adaptive sparsity).
    """
    heads = recall.shape[0]
    groups = (recall > RECALL_THRESHOLD).sum().clamp(max=heads // 2)
    order = torch.argsort(recall, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(heads, device=order.device))
    counts = torch.where(rank < groups, fewest, base)
    return torch.where(rank >= heads - groups, most, counts)
