"""Masks and block sums without their blocks with text, and with those of another text.

Every block with text is kept, and how many there are depends on the prompt. So a mask is stored without them, and
lent to another guidance branch without them: they are added for the layout that uses it.

Shapes: H heads, Nq and Nk blocks of the sequence, R and C those of them without text, S = ceil(C / 32) words.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout
from adaspa_cli.attention.layout import same_video_blocks
from adaspa_cli.attention.mask_conversion import pack_words
from adaspa_cli.errors import RunError
from adaspa_cli.masks.order import HeadOrder
from adaspa_cli.masks.policy import FoundMask

BlockSize = tuple[int, int]


def video_part(x: Tensor, layout: TokenLayout, block_size: BlockSize) -> Tensor:
    """The rows and columns of x [H, Nq, Nk] without text: a view [H, R, C]."""
    rows, columns = (layout.video_blocks(size) for size in block_size)
    return x[:, rows.start : rows.stop, columns.start : columns.stop]


def with_text(kept: Tensor, layout: TokenLayout, block_size: BlockSize) -> Tensor:
    """Bool [H, Nq, Nk] of a layout: bool [H, R, C] for its video blocks, and every block with text."""
    blocks = [layout.blocks(size) for size in block_size]
    full = torch.ones(kept.shape[0], *blocks, dtype=torch.bool, device=kept.device)
    video_part(full, layout, block_size).copy_(kept)
    return full


def fit_to_text(found: FoundMask, before: TokenLayout, now: TokenLayout) -> FoundMask:
    """The same video blocks in a sequence with another text, of which every block is kept as always.

    Waits for no device.

    Raises:
        RunError: the text moves the borders of the video's blocks.
    """
    if before == now:
        return found
    mask = found.mask
    if not same_video_blocks(before, now, mask.block_size):
        raise RunError(
            f"the guidance branches cannot share masks: {before} and {now} do not leave the same blocks to the video",
            hint="drop --share-cfg-masks",
        )
    texts = [len(layout.text_blocks(mask.block_size[1])) for layout in (before, now)]
    width = mask.indices.shape[-1] + max(0, texts[1] - texts[0])
    kept = with_text(video_part(mask.to_bool(), before, mask.block_size), now, mask.block_size)
    order = None if found.order is None else _order_for(found.order, before, now)
    return dataclasses.replace(found, mask=BlockMask.from_bool(kept, mask.block_size, width=width), order=order)


def _order_for(order: HeadOrder, before: TokenLayout, now: TokenLayout) -> HeadOrder:
    """Text stays where it is."""

    def fit(places: Tensor) -> Tensor:
        fitted = torch.arange(now.tokens, device=places.device)
        theirs, ours = (slice(start, start + now.video_tokens) for start in (before.video_start, now.video_start))
        fitted[ours] = places[theirs] - before.video_start + now.video_start
        return fitted

    return HeadOrder(order.moved, fit(order.forward), fit(order.backward))


def pack_video(mask: BlockMask, layout: TokenLayout) -> Tensor:
    """The video part of a mask as int32 words [H, R, S]: key block j, counted from the first without text, is bit
    j % 32, from the lowest, of word j // 32."""
    return pack_words(video_part(mask.to_bool(), layout, mask.block_size).contiguous())


def sums_with_text(video: Tensor, text: Tensor, layout: TokenLayout, block_size: BlockSize) -> Tensor:
    """Block sums [H, Nq, Nk] of video part [H, R, C] and text mass [H].

    The mass of all blocks with text stands in one of them: they are kept together, so only their sum matters.
    """
    rows, columns = (layout.blocks(size) for size in block_size)
    sums = torch.zeros(video.shape[0], rows, columns, dtype=torch.float32, device=video.device)
    video_part(sums, layout, block_size).copy_(video)
    places = [layout.text_blocks(size) for size in block_size]
    if all(places):
        sums[:, places[0].start, places[1].start] = text
    return sums
