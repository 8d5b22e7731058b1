"""The order in which the Hopper kernel begins the rows of a mask, one entry a row.

Rows of one head are adjacent, because they read the same keys, which then come from the L2 cache; within a head they
are sorted by length, so that rows that run at one time have similar lengths. Heads take turns in falling and in rising
order, so that lengths do not jump where a head ends; the last one falls, so that the shortest rows end the launch. Rows
much longer than the mean, such as those of text, come first: started late, they would run alone.

An entry is 64 bits: row (b * H + h) * Nq + query block in bits 0 to 30, its count from bit 32 on, and bit 62 if no team
waits for the row, because it is much longer than the one begun a round later (*Rounds*, hopper_block_sparse_copy.py).
"""

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

LONG = 4  # times the mean

# A mask serves many calls, and its schedule costs as much as 2 % of one: kept as long as the counts are.
_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()


def kept_schedule(counts: Tensor, shape: tuple[int, int, int], key_blocks: int, teams: int) -> Tensor:
    """The schedule of ``counts`` expanded to ``shape`` [B, H, Nq], computed once for a mask and not once for a call."""
    if counts.is_inference():  # has no version to tell whether it was changed
        return schedule(counts.expand(shape), key_blocks, teams)
    made_for = (counts._version, shape, key_blocks, teams)
    before = _kept.get(counts)
    if before is None or before[0] != made_for:
        before = _kept[counts] = (made_for, schedule(counts.expand(shape), key_blocks, teams))
    order: Tensor = before[1]
    return order


def schedule(counts: Tensor, key_blocks: int, teams: int) -> Tensor:
    """Entries of the rows of ``counts`` [B, H, Nq] in the order in which ``teams`` teams begin them, int64."""
    # A count that no list can have must not hang the GPU.
    lengths = counts.flatten(0, 1).clamp(0, key_blocks).long()  # [B * H, Nq]
    heads = torch.arange(len(lengths), device=counts.device)[:, None]
    long = lengths * lengths.numel() > lengths.sum() * LONG
    rising = (heads - len(lengths)) % 2 == 0
    within = torch.where(rising & ~long, lengths, key_blocks - lengths)
    keys = torch.where(long, 0, heads + 1) * (key_blocks + 1) + within
    order = torch.argsort(keys.flatten(), stable=True)
    lengths = lengths.flatten()[order]
    later = torch.cat([lengths[teams:], lengths[-1:].expand(min(teams, len(lengths)))])
    alone = lengths * 4 > later * 5
    return order | lengths << 32 | alone.long() << 62
