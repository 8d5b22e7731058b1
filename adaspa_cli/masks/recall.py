"""The recall of a mask."""

import torch
from torch import Tensor


def mask_recall(kept: Tensor, block_sums: Tensor, text: Tensor | None = None) -> Tensor:
    """Share of block sums W that a mask keeps, float32 [H]; a head at a time, for its memory.

    Args:
        kept: bool [H, *], of the same shape as W.
        block_sums: W [H, *], with all blocks or with those without text.
        text: mass [H] of the blocks with text, which are always kept, where W lacks them.
    """
    shares = [
        (torch.where(blocks, sums, 0).sum() + always) / (sums.sum() + always)
        for blocks, sums, always in zip(kept, block_sums, [0.0] * len(kept) if text is None else text, strict=True)
    ]
    return torch.stack(shares)
