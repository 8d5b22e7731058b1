"""From the video blocks that a method keeps to a mask: text is added, and the lists are sorted and packed.

Every method passes through here, so that all have the same text sink: each block with text, as query or as key, is
kept. Shapes: H heads, Nq and Nk blocks of the sequence, ``rows`` and ``columns`` those of them without text. Nothing
here waits for the device.
"""

import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout
from adaspa_cli.attention.block_mask import index_dtype
from adaspa_cli.masks.text import with_text


def full_mask(layout: TokenLayout, heads: int, block_size: tuple[int, int], device: torch.device) -> BlockMask:
    """The mask that keeps every block."""
    return BlockMask.full(heads, layout.blocks(block_size[0]), layout.blocks(block_size[1]), block_size, device)


def pack_lists(position: Tensor, counts: Tensor, layout: TokenLayout, block_size: tuple[int, int]) -> BlockMask:
    """Pack lists of key blocks.

    Args:
        position: [H, rows, K] kept key blocks, counted from the start of the sequence, in any order; unused slots
            hold Nk.
        counts: how many slots are used, [H] if alike in all rows of a head, or [H, rows].
        layout: where the text is.
        block_size: tokens of a (query, key) block.
    """
    rows, text = layout.video_blocks(block_size[0]), layout.text_blocks(block_size[1])
    query_blocks, key_blocks = layout.blocks(block_size[0]), layout.blocks(block_size[1])
    dtype = index_dtype(key_blocks + 1)
    heads = counts.shape[0]
    always = torch.arange(text.start, text.stop, dtype=dtype, device=position.device)
    lists = torch.cat([position.to(dtype), always.expand(heads, len(rows), -1)], dim=-1).sort(dim=-1).values
    lists = torch.where(lists == key_blocks, 0, lists).to(index_dtype(key_blocks))

    indices = lists.new_zeros(heads, query_blocks, lists.shape[-1])
    indices[:, rows.start : rows.stop] = lists
    kept = torch.full((heads, query_blocks), key_blocks, dtype=torch.int32, device=position.device)
    by_row = counts if counts.dim() == 2 else counts[:, None]
    kept[:, rows.start : rows.stop] = (by_row + len(text)).to(torch.int32)
    return BlockMask(kept, indices, key_blocks, block_size)


def pack_blocks(kept: Tensor, layout: TokenLayout, block_size: tuple[int, int]) -> BlockMask:
    """Pack bool [H, rows, columns] of video blocks, of which each row may keep another number.

    The lists are Nk wide, because only the device knows the longest: for masks that are not stored. Sorting holds 10
    bytes a block.
    """
    full, key_blocks = with_text(kept, layout, block_size), layout.blocks(block_size[1])
    places = torch.arange(key_blocks, dtype=index_dtype(key_blocks + 1), device=kept.device)
    lists = torch.where(full, places, key_blocks).sort(dim=-1).values
    lists = torch.where(lists == key_blocks, 0, lists).to(index_dtype(key_blocks))
    return BlockMask(full.sum(-1, dtype=torch.int32), lists, key_blocks, block_size)
