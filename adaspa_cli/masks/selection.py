"""From block sums to a mask: row-wise selection, text sink, head-adaptive sparsity (AdaSpa, arXiv 2502.21079).

Two ways to the same mask: Triton kernels on a GPU, plain PyTorch elsewhere, which is the truth to compare with. Of
equally heavy blocks both keep those of the lowest index. Nothing here waits for the device: numbers that depend on
data stay tensors, and K follows from the settings.

Shapes: W [H, Nq, Nk] block sums, Nv video key blocks, C candidate counts, K the longest list.
"""

import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout
from adaspa_cli.attention.block_mask import index_dtype
from adaspa_cli.attention.mask_conversion import allowed
from adaspa_cli.config.kept_blocks import Candidates, candidate_counts
from adaspa_cli.distributed.heads import ALL_HEADS, Heads
from adaspa_cli.masks.packing import full_mask, pack_lists
from adaspa_cli.masks.policy import FoundMask

RECALL_THRESHOLD = 0.8  # a head above it can bear more sparsity (AdaSpa, head-adaptive sparsity)


def select(
    block_sums: Tensor,
    layout: TokenLayout,
    block_size: tuple[int, int],
    sparsity: float,
    *,
    head_adaptive: bool,
    among: Heads = ALL_HEADS,
) -> FoundMask:
    """Keep the heaviest video key blocks of every query row, and every block that contains text.

    Args:
        block_sums: W [H, Nq, Nk], float32, not negative.
        layout: where the text is.
        block_size: tokens of a (query, key) block; W was summed over such blocks.
        sparsity: γ in [0, 1), share of the video key blocks left out.
        head_adaptive: γ is the mean; heads of high recall get more, heads of low recall less.
        among: the heads of W among those of the layer, over which γ is the mean.

    Returns:
        The mask, and each head's recall: its kept mass over the sum of its W.
    """
    rows, columns = layout.video_blocks(block_size[0]), layout.video_blocks(block_size[1])
    heads = block_sums.shape[0]
    if sparsity == 0 or not rows or not columns:
        full = full_mask(layout, heads, block_size, block_sums.device)
        return FoundMask(full, block_sums.new_ones(heads))
    candidates = candidate_counts(sparsity, len(columns), head_adaptive=head_adaptive)
    find = by_kernels if kernels_take(block_sums) else by_torch
    return find(block_sums, layout, block_size, candidates, among)


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


def _choose(recall: Tensor, candidates: Candidates, among: Heads) -> Tensor:
    """The candidate of each head, int64 [H], from the recall [H] at the base."""
    if len(candidates) == 1:
        return torch.full(recall.shape, candidates[0], device=recall.device)
    return among.mine(adapt_counts(among.gather(recall), *candidates))


def kernels_take(block_sums: Tensor) -> bool:
    """Whether the kernels select from W [H, Nq, Nk]: on a GPU, unless they cannot take it."""
    if block_sums.device.type != "cuda":
        return False
    import adaspa_kernels

    return allowed("mask selection", adaspa_kernels.selection_unavailable(block_sums))


def by_kernels(
    block_sums: Tensor,
    layout: TokenLayout,
    block_size: tuple[int, int],
    candidates: Candidates,
    among: Heads = ALL_HEADS,
) -> FoundMask:
    """Two kernels around the choice of each head's candidate."""
    import adaspa_kernels

    rows, columns = layout.video_blocks(block_size[0]), layout.video_blocks(block_size[1])
    block_sums = block_sums[None]
    weighed = adaspa_kernels.weigh_rows(block_sums, rows, columns, candidates)
    recalls = weighed.kept.sum(-1)[:, 0] / weighed.total.sum(-1)  # [C, H]
    chosen = _choose(recalls[len(candidates) // 2], candidates, among)
    dtype = index_dtype(block_sums.shape[-1])
    counts, indices = adaspa_kernels.pack_rows(block_sums, rows, columns, weighed, chosen[None], dtype)
    recall = recalls[0]
    for candidate, its_recall in zip(candidates[1:], recalls[1:], strict=True):
        recall = torch.where(chosen == candidate, its_recall, recall)
    return FoundMask(BlockMask(counts[0], indices[0], block_sums.shape[-1], block_size), recall)


def heaviest(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The ``most`` heaviest of each row of scores [H, R, C], in descending order: the scores and their places.

    Of equal ones the first come first. A NaN is the heaviest, whatever its sign, by which a GPU sorts it.
    """
    # Stable, unlike topk. Head by head, because the whole rows' positions are large.
    heads = (torch.where(head.isnan(), torch.nan, head) for head in scores)
    ordered = (torch.sort(head, dim=-1, descending=True, stable=True) for head in heads)
    kept = [[x[:, :most].clone() for x in pair] for pair in ordered]
    score, position = (torch.stack(x) for x in zip(*kept, strict=True))
    return score, position


def by_torch(
    block_sums: Tensor,
    layout: TokenLayout,
    block_size: tuple[int, int],
    candidates: Candidates,
    among: Heads = ALL_HEADS,
) -> FoundMask:
    """Sort every row."""
    rows, columns = layout.video_blocks(block_size[0]), layout.video_blocks(block_size[1])
    video = block_sums[:, rows.start : rows.stop, columns.start : columns.stop]
    weight, position = heaviest(video, candidates[-1])  # [H, rows, most]
    ranks = torch.arange(candidates[-1], device=video.device)
    mass_by_rank = weight.sum(-2)  # [H, most]
    total = block_sums.sum((-1, -2))  # [H]
    text = total - video.sum((-1, -2))  # [H]: every block with text is kept

    def recall(counts: Tensor) -> Tensor:
        kept = torch.where(ranks < counts[:, None], mass_by_rank, 0).sum(-1)
        return (text + kept) / total

    base = torch.full(total.shape, candidates[len(candidates) // 2], device=video.device)
    chosen = _choose(recall(base), candidates, among)
    key_blocks = block_sums.shape[-1]
    position = torch.where(ranks < chosen[:, None, None], position + columns.start, key_blocks)
    return FoundMask(pack_lists(position, chosen, layout, block_size), recall(chosen))
