"""The part of a mask, and of block sums, that no text is in: what a mask file keeps.

Blocks with text are always kept, and how many there are depends on the prompt. So a mask is stored without them, and
they are added again for the layout of the run that uses it.

Shapes: H heads, Nq and Nk blocks of the sequence, R and C those of them without text, S = ceil(C / 32) words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout
from adaspa_cli.attention.mask_conversion import pack_words, unpack_words


def video_part(x: Tensor, layout: TokenLayout, block: int) -> Tensor:
    """The rows and columns of x [H, Nq, Nk] without text: a view [H, R, C]."""
    video = layout.video_blocks(block)
    return x[:, video.start : video.stop, video.start : video.stop]


def pack_video(mask: BlockMask, layout: TokenLayout) -> Tensor:
    """The video part of a mask as int32 words [H, R, S]: key block j, counted from the first without text, is bit
    j % 32, from the lowest, of word j // 32."""
    return pack_words(video_part(mask.to_bool(), layout, mask.block_size[0]).contiguous())


def unpack_video(words: Tensor, blocks: int) -> Tensor:
    """Words [H, R, S] to bool [H, R, C]; ``blocks`` is C."""
    return unpack_words(words, blocks)


def with_text(kept: Tensor, layout: TokenLayout, block: int) -> BlockMask:
    """The mask of a layout: bool [H, R, C] for its video blocks, and every block with text.

    Waits for the device once, to learn the longest row.
    """
    blocks = layout.blocks(block)
    full = torch.ones(kept.shape[0], blocks, blocks, dtype=torch.bool, device=kept.device)
    video_part(full, layout, block).copy_(kept)
    return BlockMask.from_bool(full, (block, block))


def sums_with_text(video: Tensor, text: Tensor, layout: TokenLayout, block: int) -> Tensor:
    """Block sums [H, Nq, Nk] of video part [H, R, C] and text mass [H].

    The mass of all blocks with text stands in one of them: they are kept together, so only their sum matters.
    """
    blocks = layout.blocks(block)
    sums = torch.zeros(video.shape[0], blocks, blocks, device=video.device)
    video_part(sums, layout, block).copy_(video)
    places = layout.text_blocks(block)
    if places:
        sums[:, places.start, places.start] = text
    return sums


def mask_recall(mask: BlockMask, block_sums: Tensor) -> Tensor:
    """Share of W [H, Nq, Nk] that a mask keeps, float32 [H]; a head at a time, for its memory."""
    kept = mask.to_bool()
    shares = [torch.where(rows, sums, 0).sum() / sums.sum() for rows, sums in zip(kept, block_sums, strict=True)]
    return torch.stack(shares)
