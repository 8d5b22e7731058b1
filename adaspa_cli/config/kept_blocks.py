"""How many blocks of a row a sparsity keeps, from the settings only. Imports nothing heavy."""

from __future__ import annotations

LEAST_SHARE, MOST_TIMES = 4, 4  # of the base count, in a layer's budget
Candidates = tuple[int, ...]  # kept video blocks of a row: base, or fewest, base, most


def kept_blocks(sparsity: float, video_blocks: int) -> int:
    """Video key blocks that a row keeps: round((1-γ) * Nv), at least 1 of those there are."""
    return min(video_blocks, max(1, round((1 - sparsity) * video_blocks)))


def candidate_counts(sparsity: float, video_blocks: int, *, head_adaptive: bool) -> Candidates:
    """Kept video blocks of a row that a head may get, ascending; the base sparsity's stand in the middle."""
    base = kept_blocks(sparsity, video_blocks)
    if not head_adaptive or sparsity == 0:
        return (base,)
    fewest = kept_blocks((1 + sparsity) / 2, video_blocks)
    return fewest, base, kept_blocks(max(0.0, (3 * sparsity - 1) / 2), video_blocks)


def row_bounds(base: int, video_blocks: int, budget: str) -> tuple[int, int]:
    """The fewest and the most video blocks that a row may keep, where ``base`` is their mean."""
    if budget != "layer":
        return base, base
    return -(-base // LEAST_SHARE), min(video_blocks, MOST_TIMES * base)


def longest_row(sparsity: float, video_blocks: int, budget: str) -> int:
    """The most video blocks that a row of a mask may keep."""
    candidates = candidate_counts(sparsity, video_blocks, head_adaptive=budget == "head-adaptive")
    return max(candidates[-1], row_bounds(kept_blocks(sparsity, video_blocks), video_blocks, budget)[1])


def most_needed(sparsity: float, blocks: int, head_adaptive: bool) -> int:
    """Blocks of a row that a ranking must hold for a mask of this sparsity."""
    return candidate_counts(sparsity, blocks, head_adaptive=head_adaptive)[-1]
