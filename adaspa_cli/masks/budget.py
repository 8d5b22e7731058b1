"""How a budget of kept blocks is shared by the rows and heads of a layer, by any score of a block.

- *row*: every row of every head keeps k = round((1-γ) * Nv) video blocks, those of the largest score.
- *head-adaptive*: AdaSpa's three counts, by the recall of each head (arXiv 2502.21079, head-adaptive sparsity).
- *layer*: the rows of all heads share one budget of k a row in the mean: the largest scores of the layer are kept,
  and of each row a quarter of k at least and four times k at most. So lists are no longer than 4k, and their width
  follows from the settings: nothing waits for the device, and a stored mask stays small.

Two ways to the same mask, as in :mod:`adaspa_cli.masks.selection`: every row is sorted, or on a GPU none is. Text sink
and recall are as there; the recall is of the block sums, whatever the score.

Shapes: H heads, R query rows and Nv key blocks without text, W [H, Nq, Nk] block sums, K the longest list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout
from adaspa_cli.attention.block_mask import index_dtype
from adaspa_cli.attention.layout import ceil_div
from adaspa_cli.config.kept_blocks import candidate_counts, kept_blocks, longest_row, row_bounds
from adaspa_cli.config.names import BUDGETS
from adaspa_cli.distributed.heads import ALL_HEADS, Heads
from adaspa_cli.masks.packing import full_mask, pack_lists
from adaspa_cli.masks.policy import FoundMask
from adaspa_cli.masks.selection import adapt_counts, heaviest, kernels_take

_INFINITY_BITS = 0x7F800000  # of float32
_KERNEL_TRIES = 15  # eight looks at all scores instead of 31


def select_by_score(
    block_sums: Tensor,
    scores: Tensor,
    layout: TokenLayout,
    block_size: tuple[int, int],
    sparsity: float,
    budget: str,
    among: Heads = ALL_HEADS,
) -> FoundMask:
    """Keep the video key blocks of the largest scores, and every block that contains text.

    Args:
        block_sums: W [H, Nq, Nk], float32, not negative.
        scores: [H, Nq, Nk], float32, not negative; may be W.
        layout: where the text is.
        block_size: tokens of a (query, key) block.
        sparsity: γ in [0, 1), mean share of the video key blocks left out.
        budget: one of ``BUDGETS``.
        among: the heads of W among those of the layer, which share what the budget spreads over heads.

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
    base = kept_blocks(sparsity, len(columns))
    if budget == "head-adaptive" or not kernels_take(scores):
        return _by_sorting(block_sums, scores, layout, block_size, sparsity, budget, among)
    return _by_kernels(block_sums, scores, layout, block_size, base, budget, among)


def _by_sorting(
    block_sums: Tensor,
    scores: Tensor,
    layout: TokenLayout,
    block_size: tuple[int, int],
    sparsity: float,
    budget: str,
    among: Heads,
) -> FoundMask:
    """Sort every row: the truth to compare with, and the way on a CPU."""
    rows, columns = layout.video_blocks(block_size[0]), layout.video_blocks(block_size[1])
    video, video_scores = (x[:, rows.start : rows.stop, columns.start : columns.stop] for x in (block_sums, scores))
    base = kept_blocks(sparsity, len(columns))
    candidates = candidate_counts(sparsity, len(columns), head_adaptive=budget == "head-adaptive")
    least, _ = row_bounds(base, len(columns), budget)
    most = longest_row(sparsity, len(columns), budget)
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
        bits = torch.where(score.isnan(), torch.inf, score).view(torch.int32)
        keys = _Keys(lambda levels: (bits > levels[:, None, None, None]).sum(-1), 1, score.device)
        counts, _, _ = _shared(keys, least, most, _budget(base, scores, rows, among), among)
    elif len(candidates) > 1:
        counts = among.mine(adapt_counts(among.gather(recall(counts)), *candidates))[:, None].expand_as(counts)
    position = torch.where(ranks < counts[..., None], position + columns.start, block_sums.shape[-1])
    return FoundMask(pack_lists(position, counts, layout, block_size), recall(counts))


def _by_kernels(
    block_sums: Tensor,
    scores: Tensor,
    layout: TokenLayout,
    block_size: tuple[int, int],
    base: int,
    budget: str,
    among: Heads,
) -> FoundMask:
    """Nothing is sorted: each row keeps what is above a threshold, and as many of its ties as are missing."""
    import adaspa_kernels
    from adaspa_kernels.selection import WeighedRows

    rows, columns = layout.video_blocks(block_size[0]), layout.video_blocks(block_size[1])
    least, most = row_bounds(base, len(columns), budget)
    by_row = adaspa_kernels.weigh_rows(scores[None], rows, columns, (least, base, most))
    threshold, ties = by_row.threshold[-1], by_row.ties[-1]  # [1, H, Nq]
    video = slice(rows.start, rows.stop)
    counts = torch.full((len(scores), len(rows)), base, device=scores.device)
    if budget == "layer":
        keys = _Keys(partial(adaspa_kernels.count_above, scores, rows, columns), _KERNEL_TRIES, scores.device)
        counts, level, above = _shared(keys, least, most, _budget(base, scores, rows, among), among)

        def own(of_bounds: Tensor, of_level: Tensor) -> Tensor:
            """A row at one of its bounds has the threshold and the ties of that, any other one those of the layer."""
            at_most = torch.where(counts == most, of_bounds[-1, 0, :, video], of_level)
            return torch.where(counts == least, of_bounds[0, 0, :, video], at_most).int()

        threshold[0, :, video] = own(by_row.threshold, level)
        ties[0, :, video] = own(by_row.ties, counts - above)
    one = WeighedRows((most,), by_row.total, by_row.kept[-1:], threshold[None], ties[None])
    chosen = torch.full((1, len(scores)), most, device=scores.device)
    kept, indices = adaspa_kernels.pack_rows(scores[None], rows, columns, one, chosen, index_dtype(scores.shape[-1]))
    kept[0, :, video] = (counts + len(layout.text_blocks(block_size[1]))).int()
    mass, total = adaspa_kernels.listed_mass(block_sums, kept[0], indices[0])
    return FoundMask(BlockMask(kept[0], indices[0], scores.shape[-1], block_size), mass.sum(-1) / total.sum(-1))


def _budget(base: int, scores: Tensor, rows: range, among: Heads) -> int:
    """Of all video rows of the layer."""
    return base * len(rows) * (sum(among.sizes) or len(scores))


@dataclass(frozen=True)
class _Keys:
    """Scores of the rows of some heads, seen as integers in the same order.

    Attributes:
        above: how many of each row, integers [T, H, R], are above each of some levels, int32 [T]. Blocks that a row may
            not keep at all may be missing.
        tries: how many levels at once cost little more than one.
        device: where they are.
    """

    above: Callable[[Tensor], Tensor]
    tries: int
    device: torch.device


def _shared(keys: _Keys, least: int, most: int, budget: int, among: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """How many of its largest keys each row keeps, if all rows of the layer share a budget.

    Args:
        keys: of the heads here.
        least, most: bounds of each row's number.
        budget: of all rows of the layer.
        among: the heads here among those of the layer.

    Returns:
        The numbers, int64 [H, R]; the level, the key that separates kept from left-out blocks wherever a row is at none
        of its bounds; and how many keys of each row are above it, [H, R].
    """
    level = _level(keys, least, most, budget, among)
    reached, above = keys.above(torch.stack([level - 1, level]).int())
    counts, reached = above.long().clamp(least, most), reached.long().clamp(least, most)
    # Of equal ones the first rows' are kept, until the budget is spent.
    more = reached - counts
    by_head = among.gather(more.sum(-1))
    earlier_heads = among.mine(by_head.cumsum(0) - by_head)
    before = earlier_heads[:, None] + more.cumsum(-1) - more
    given = (budget - among.sum(counts.sum()) - before).clamp(min=0).minimum(more)
    return counts + given, level, above


def _level(keys: _Keys, least: int, most: int, budget: int, among: Heads) -> Tensor:
    """The smallest number such that rows that keep what is above it, within their bounds, keep no more than ``budget``,
    int64 []: each look at the keys leaves one of ``tries + 1`` parts of where it may be. Nothing waits."""
    parts = torch.arange(1, keys.tries + 1, device=keys.device)
    low = torch.full((), -1, device=keys.device)
    high = torch.full_like(low, _INFINITY_BITS)
    left = _INFINITY_BITS + 1
    while left > 1:
        tried = (low + (high - low) * parts // (keys.tries + 1)).clamp(min=0)
        enough = among.sum(keys.above(tried.int()).clamp(least, most).sum((-1, -2))) <= budget
        low, high = torch.where(enough, low, tried).amax(), torch.where(enough, tried, high).amin()
        left = ceil_div(left, keys.tries + 1)
    return high
