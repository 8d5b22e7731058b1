"""How many blocks of a row a sparsity keeps, from the settings only. Imports nothing heavy."""

from __future__ import annotations

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


def most_needed(sparsity: float, blocks: int, head_adaptive: bool) -> int:
    """Blocks of a row that a ranking must hold for a mask of this sparsity."""
    return candidate_counts(sparsity, blocks, head_adaptive=head_adaptive)[-1]
