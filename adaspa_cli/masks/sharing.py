"""A mask of one guidance branch for the other, whose prompt has another length.

Shapes: H heads, Nq and Nk blocks of a sequence, R query blocks without text, K width of a mask's lists.
"""

from __future__ import annotations

import dataclasses

import torch

from adaspa_cli.attention import BlockMask, TokenLayout
from adaspa_cli.attention.block_mask import index_dtype
from adaspa_cli.errors import RunError
from adaspa_cli.masks.order import HeadOrder
from adaspa_cli.masks.policy import FoundMask


def for_text(found: FoundMask, before: TokenLayout, now: TokenLayout) -> FoundMask:
    """The same video blocks in a sequence with another text, of which every block is kept as always.

    Waits for no device: with the text last, it stands last in every list too.

    Raises:
        RunError: the text moves the borders of the video's blocks.
    """
    if before == now:
        return found
    block = found.mask.block_size[0]
    same_video = dataclasses.replace(before, text_tokens=now.text_tokens) == now
    if not same_video or now.text_position == "first" or before.video_blocks(block) != now.video_blocks(block):
        raise RunError(
            f"the guidance branches cannot share masks: {before} and {now} do not leave the same blocks to the video",
            hint="drop --share-cfg-masks",
        )
    order = None if found.order is None else _order_for_text(found.order, now)
    return dataclasses.replace(found, mask=_mask_for_text(found.mask, before, now), order=order)


def _mask_for_text(mask: BlockMask, before: TokenLayout, now: TokenLayout) -> BlockMask:
    block = mask.block_size[0]
    video, blocks = now.video_blocks(block), now.blocks(block)
    texts = len(before.text_blocks(block)), len(now.text_blocks(block))
    kept = mask.counts[:, : video.stop] - texts[0]  # [H, R]
    longer = max(0, texts[1] - texts[0])
    lists = torch.nn.functional.pad(mask.indices[:, : video.stop], (0, longer)).int()  # [H, R, K + longer]
    place = torch.arange(lists.shape[-1], dtype=torch.int32, device=lists.device)
    text = place - kept[..., None]  # counted from the first block with text
    lists = torch.where(text < 0, lists, torch.where(text < texts[1], text + video.stop, 0))

    indices = torch.zeros(mask.heads, blocks, lists.shape[-1], dtype=index_dtype(blocks), device=lists.device)
    indices[:, : video.stop] = lists
    counts = torch.full((mask.heads, blocks), blocks, dtype=torch.int32, device=lists.device)
    counts[:, : video.stop] = kept + texts[1]
    return BlockMask(counts, indices, blocks, mask.block_size)


def _order_for_text(order: HeadOrder, now: TokenLayout) -> HeadOrder:
    """Text stays where it is."""
    text = torch.arange(now.video_tokens, now.tokens, device=order.forward.device)
    forward, backward = (torch.cat([x[: now.video_tokens], text]) for x in (order.forward, order.backward))
    return HeadOrder(order.moved, forward, backward)
