"""Adds the summaries of left-out blocks to a sparse output, on Hopper, written in Gluon.

Maths. ``summaries.py`` says what a summary is. Rows come with the output o and the log-sum-exp e of the keys that they
keep. With the logits x_j of the summaries that a row has a use for, all in units of log2, and any reference r,

    total = 2^(e - r) + sum of 2^(x_j - r),    lse = r + log2 total,
    out = (2^(e - r) o + sum of 2^(x_j - r) v̄_j) / total.

Work. The kept keys of a row are a list of its own, but its summaries are those of its whole head. So this is a pass of
its own, in which the two warpgroups of a program, with 64 rows each, read the same tiles: half of what each would read
for itself. A program takes every P-th item, 128 rows of one head, P programs in all. One warp copies.

Tiles. A step is one product with 128 summaries. What it starts from is no zero but the *bias* of each summary, which
the copying warp makes of the row's words: minus infinity where the row has no use for the summary, what the logarithm
of its tokens lacks where its block is ragged. So masks cost the multiplying warps a load for two scores. The logarithm
of the tokens of a whole block is taken from the reference, once a row.

Memory. All that an item needs passes through one ring of slots [128, D], in this order:

    Q  K0  K1 V0  K2 V1  ...  K(T-1) V(T-2)  V(T-1)  O

K and V tiles lie as in ``hopper_block_sparse.py``. The rows of queries and outputs lie apart for each warpgroup: half h
of them is box (slot * 2 + h) * D / 64 and what follows. Queries stay in registers. The new output takes the place of
the old one, in shared memory and in global memory; its slot is given back once the next item has begun.

Reference. It is fixed: 32 in log2 above the LSE of the kept keys, see ``hopper_block_sparse.py``. A summary may exceed
that LSE by 96 in log2. Where the total leaves its bounds for one of a warpgroup's rows, these keep the old output and
are written down, and a second launch computes them by the online softmax. So do all rows of float16.

Shapes: B batch, H heads, Lq and Lk tokens, D head dimension, Nq and Nk blocks, T tiles of summaries.
"""

import math

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from adaspa_kernels.common import LOG2_E
from adaspa_kernels.hopper import BLOCK, BOX, THREADS, TILE, boxes, next_slot
from adaspa_kernels.hopper_block_sparse import (
    _LARGEST_SUM as LARGEST_SUM,
)
from adaspa_kernels.hopper_block_sparse import (
    _LEAST_SUM as LEAST_SUM,
)
from adaspa_kernels.hopper_block_sparse import (
    _RAISED as RAISED,
)
from adaspa_kernels.hopper_block_sparse import (
    RING_BYTES,
    keeps_reference,
    multiprocessors,
)
from adaspa_kernels.hopper_block_sparse import (
    _log_sum as log_sum,
)
from adaspa_kernels.hopper_block_sparse import (
    _parts as sums_in_fours,
)
from adaspa_kernels.hopper_block_sparse_copy import _gather as gather
from adaspa_kernels.summaries import Summaries

SEPARATE = True  # summaries in a pass of their own, by this kernel; False: in the list's own loop

synchronise = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # Triton 3.6, 3.7

_READERS = gl.constexpr(2)
_LOG2_E = gl.constexpr(LOG2_E)


@gluon.jit
def _found(items, place):
    """Batch, head and number in its head of the item at ``place``, and which warpgroup it is for: 2 for both."""
    list_ptr, _count, heads, in_head, AGAIN = items
    item = place
    reader = 2
    if AGAIN:
        entry = gl.load(list_ptr + place)
        item = entry // 2
        reader = entry % 2
    return item // (in_head * heads), item // in_head % heads, item % in_head, reader


@gluon.jit
def _gather_rows(source, ring, full, slot, batch, head, first_row, PANELS: gl.constexpr):
    """Copy 128 rows of ``source`` to slot ``slot``, 64 for each warpgroup."""
    barrier = full.index(slot)
    mbarrier.expect(barrier, _READERS * PANELS * BLOCK * BLOCK * 2)
    for reader in gl.static_range(_READERS):
        for panel in gl.static_range(PANELS):
            box = ring.index((slot * _READERS + reader) * PANELS + panel)
            at = [batch, head, first_row + reader * BLOCK, panel * BLOCK]
            tma.async_copy_global_to_shared(source, at, barrier, box)


@gluon.jit
def _make_biases(p_words, second, bias, slot, tile, last, ragged):
    """Put the biases of one tile's summaries where both warpgroups read them; words of the other are ``second`` on."""
    ragged_place, ragged_worth = ragged
    layout: gl.constexpr = gl.BlockedLayout([4], [32], [1], [0])
    column = gl.arange(0, TILE, layout)
    worth = gl.where(tile == last, ragged_worth, 0.0)
    b_worth = gl.where(column == ragged_place, worth, 0.0)
    for reader in gl.static_range(_READERS):
        b_words = gl.load(p_words + reader * second + tile * 4 + column // 32)
        b_closed = ((b_words >> (column % 32)) & 1) != 0
        bias.index(slot * _READERS + reader).store(gl.where(b_closed, float("-inf"), b_worth))
    # The thread that says the tile is coming speaks for all of the warp.
    synchronise()


@gluon.jit
def _copy(sources, memory, items, words, SLOTS: gl.constexpr, PANELS: gl.constexpr, BLOCKS: gl.constexpr):
    """The copying warp."""
    q_source, k_source, v_source, out_source = sources
    ring, full, empty, bias, _opened = memory
    words_ptr, word_rows, query_blocks, tiles, ragged = words
    _list_ptr, count, heads, _in_head, _AGAIN = items
    slot = 0
    # The ring starts empty: the wait for the phase before the first one returns at once.
    phase = 1
    for place in range(gl.program_id(0), count, gl.num_programs(0)):
        batch, head, number, _reader = _found(items, place)
        # Both query blocks of the item, which may be one.
        first = number * BLOCKS
        second = gl.minimum(first + (BLOCKS - 1), query_blocks - 1)
        row = ((batch * heads + head) * query_blocks + first) % word_rows
        p_words = words_ptr + row.to(gl.int64) * (tiles * 4)
        next_words = (second - first) * (tiles * 4)

        mbarrier.wait(empty.index(slot), phase)
        _gather_rows(q_source, ring, full, slot, batch, head, number * TILE, PANELS)
        slot, phase = next_slot(slot, phase, SLOTS)
        for tile in range(tiles + 1):
            if tile < tiles:
                mbarrier.wait(empty.index(slot), phase)
                _make_biases(p_words, next_words, bias, slot, tile, tiles - 1, ragged)
                gather(k_source, ring, full, slot, batch, head, tile * TILE, tile * TILE + BLOCK, PANELS)
                slot, phase = next_slot(slot, phase, SLOTS)
            if tile > 0:
                mbarrier.wait(empty.index(slot), phase)
                gather(v_source, ring, full, slot, batch, head, tile * TILE - TILE, tile * TILE - BLOCK, PANELS)
                slot, phase = next_slot(slot, phase, SLOTS)
        mbarrier.wait(empty.index(slot), phase)
        _gather_rows(out_source, ring, full, slot, batch, head, number * TILE, PANELS)
        slot, phase = next_slot(slot, phase, SLOTS)


@gluon.jit
def _score(b_q, memory, slot, READER: gl.constexpr):
    """Issue the product of one tile's keys, on top of their biases."""
    tiles, _rows, _full, _empty, bias, _opened = memory
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    b_bias = bias.index(slot * _READERS + READER).load(gl.SliceLayout(0, scores_layout))
    b_s = b_bias[None, :].broadcast_to([BLOCK, TILE])
    return warpgroup_mma(b_q, tiles.index(slot).permute((1, 0)), b_s, is_async=True)


@gluon.jit
def _follow(b_s, b_max, b_sum, worth, scale_log2):
    """A step of the online softmax: weights, largest score, sum, and by how much what is there shrinks."""
    # [64]
    b_new_max = gl.maximum(b_max, gl.max(b_s, 1) * scale_log2 + worth)
    # [64]: finite also where all scores so far are minus infinity.
    b_finite = gl.where(b_new_max == float("-inf"), 0.0, b_new_max)
    # [64, 128]
    b_p = gl.exp2(b_s * scale_log2 - (b_finite - worth)[:, None])
    # [64]
    b_rescale = gl.exp2(b_max - b_finite)
    return b_p, b_new_max, b_sum * b_rescale + gl.sum(b_p, 1), b_rescale


@gluon.jit
def _merge(
    targets, memory, items, sizes,
    READER: gl.constexpr, SLOTS: gl.constexpr, D: gl.constexpr, dtype: gl.constexpr, FIXED: gl.constexpr,
):  # fmt: skip
    """A multiplying warpgroup: 64 rows of each item."""
    out_target, kept_ptr, lse_ptr, again_ptr = targets
    ring, full, empty, bias, opened = memory
    list_ptr, count, heads, in_head, _AGAIN = items
    tiles, query_rows, scale_log2, worth = sizes
    PANELS: gl.constexpr = D // BLOCK
    shared_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, out_layout, 2)
    queries_layout: gl.constexpr = gl.DotOperandLayout(0, scores_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, scores_layout)
    out_row_layout: gl.constexpr = gl.SliceLayout(1, out_layout)
    tiles_ring = ring._reinterpret(dtype, [SLOTS, TILE, D], shared_layout)
    rows_ring = ring._reinterpret(dtype, [SLOTS * _READERS, BLOCK, D], shared_layout)
    memory = (tiles_ring, rows_ring, full, empty, bias, opened)

    slot = 0
    phase = 0
    leaving = -1
    for place in range(gl.program_id(0), count, gl.num_programs(0)):
        batch, head, number, reader = _found(items, place)
        first_row = number * TILE + READER * BLOCK
        there = first_row < query_rows
        lse_offset = (batch * heads + head).to(gl.int64) * query_rows + first_row
        # [64]
        b_kept = gl.load(kept_ptr + lse_offset + gl.arange(0, BLOCK, row_layout), mask=there, other=0.0) * _LOG2_E

        mbarrier.wait(full.index(slot), phase)
        b_q = rows_ring.index(slot * _READERS + READER).load(queries_layout)
        async_copy.mbarrier_arrive(empty.index(slot), increment_count=False)
        slot, phase = next_slot(slot, phase, SLOTS)

        mbarrier.wait(full.index(slot), phase)
        b_s = _score(b_q, memory, slot, READER)
        b_s = warpgroup_mma_wait(0, deps=[b_s])
        async_copy.mbarrier_arrive(empty.index(slot), increment_count=False)
        if FIXED:
            b_max = gl.where(b_kept == float("-inf"), 0.0, b_kept) + RAISED
            b_reference = b_max - worth
            # [64, 128], [64, 16]
            b_p = gl.exp2(b_s * scale_log2 - b_reference[:, None])
            b_sum = sums_in_fours(b_p)
        else:
            b_p, b_max, b_sum, _ = _follow(b_s, b_kept, gl.zeros([BLOCK], gl.float32, row_layout), worth, scale_log2)
        b_weights = gl.convert_layout(b_p.to(dtype), weights_layout)
        b_out = gl.zeros([BLOCK, D], gl.float32, out_layout)
        if leaving >= 0:
            # The output of the item before has left by now.
            tma.store_wait(0)
            async_copy.mbarrier_arrive(empty.index(leaving), increment_count=False)
        slot, phase = next_slot(slot, phase, SLOTS)
        mbarrier.wait(full.index(slot), phase)

        for _ in range(1, tiles):
            k_slot = slot
            b_s = _score(b_q, memory, k_slot, READER)
            v_slot, phase = next_slot(slot, phase, SLOTS)
            mbarrier.wait(full.index(v_slot), phase)
            b_out = warpgroup_mma(b_weights, tiles_ring.index(v_slot), b_out, is_async=True)
            b_s = warpgroup_mma_wait(1, deps=[b_s])
            async_copy.mbarrier_arrive(empty.index(k_slot), increment_count=False)
            if FIXED:
                b_p = gl.exp2(b_s * scale_log2 - b_reference[:, None])
                b_sum = b_sum + sums_in_fours(b_p)
            else:
                b_p, b_max, b_sum, b_rescale = _follow(b_s, b_max, b_sum, worth, scale_log2)
            # Over at once; it keeps the assembler from moving the next wait up.
            mbarrier.wait(opened.index(0), 0)
            b_out = warpgroup_mma_wait(0, deps=[b_out])
            async_copy.mbarrier_arrive(empty.index(v_slot), increment_count=False)
            if not FIXED:
                # [64, D]
                b_out = b_out * gl.convert_layout(b_rescale, out_row_layout)[:, None]
            b_weights = gl.convert_layout(b_p.to(dtype), weights_layout)
            # The next tile is K(i+1), or V(i) if this is the last step.
            slot, phase = next_slot(v_slot, phase, SLOTS)
            mbarrier.wait(full.index(slot), phase)

        b_out = warpgroup_mma(b_weights, tiles_ring.index(slot), b_out, is_async=True)
        b_out = warpgroup_mma_wait(0, deps=[b_out])
        async_copy.mbarrier_arrive(empty.index(slot), increment_count=False)
        slot, phase = next_slot(slot, phase, SLOTS)

        # [64]
        if FIXED:
            b_sum = gl.convert_layout(gl.sum(b_sum, 1), row_layout)
        b_finite = gl.where(b_max == float("-inf"), 0.0, b_max)
        b_old = gl.exp2(b_kept - b_finite)
        b_total = b_sum + b_old
        wanted = there & ((reader == 2) | (reader == READER))
        if FIXED:
            inside = (b_total >= LEAST_SUM) & (b_total <= LARGEST_SUM)
            outside = gl.max(gl.where(inside, 0, 1), 0) > 0
            if there & outside:
                entry = ((batch * heads + head) * in_head + number) * _READERS + READER
                gl.store(list_ptr + gl.atomic_add(again_ptr, 1, sem="relaxed"), entry)
            wanted = there & (outside == 0)
        b_divisor = gl.where(b_total == 0, 1.0, b_total)
        mbarrier.wait(full.index(slot), phase)
        place_of_rows = rows_ring.index(slot * _READERS + READER)
        if wanted:
            b_before = place_of_rows.load(out_layout).to(gl.float32)
            b_share = gl.convert_layout(b_old / b_divisor, out_row_layout)
            b_new = b_out * gl.convert_layout(1 / b_divisor, out_row_layout)[:, None] + b_before * b_share[:, None]
            place_of_rows.store(b_new.to(dtype))
            fence_async_shared()
            for panel in gl.static_range(PANELS):
                box = ring.index((slot * _READERS + READER) * PANELS + panel)
                tma.async_copy_shared_to_global(out_target, [batch, head, first_row, panel * BLOCK], box)
            # Exactly what it was where no summary weighs anything.
            b_lse = gl.load(kept_ptr + lse_offset + gl.arange(0, BLOCK, row_layout))
            b_lse = gl.where(b_sum == 0, b_lse, log_sum(b_finite, b_total))
            gl.store(lse_ptr + lse_offset + gl.arange(0, BLOCK, row_layout), b_lse)
        leaving = slot
        slot, phase = next_slot(slot, phase, SLOTS)
    tma.store_wait(0)


# Not specialised: a length of 1 would be a constant, and every length that 16 divides a kernel of its own.
@gluon.jit(
    do_not_specialize=["heads", "in_head", "query_blocks", "query_rows", "tiles", "word_rows", "items", "ragged_place"]
)
def hopper_remainder_kernel(
    q_source, k_source, v_source, out_target, kept_ptr, lse_ptr, words_ptr, again_ptr, list_ptr,
    heads, in_head, query_blocks, query_rows, tiles, word_rows, items, ragged_place, ragged_worth, worth, scale_log2,
    D: gl.constexpr, SLOTS: gl.constexpr, BLOCKS: gl.constexpr, FIXED: gl.constexpr, AGAIN: gl.constexpr,
):  # fmt: skip
    """Grid (programs). ``*_source`` and ``out_target`` are descriptors of [1, 1, 64, 64] boxes.

    An item is 128 query rows, ``BLOCKS`` query blocks; a head has ``in_head`` of them, and LSE of ``query_rows`` rows.
    ``again_ptr`` holds a zero, which becomes the number of entries of ``list_ptr``: item * 2 + warpgroup. ``AGAIN`` is
    the launch that computes these.
    """
    if AGAIN:
        items = gl.load(again_ptr)
    PANELS: gl.constexpr = D // BLOCK
    dtype: gl.constexpr = k_source.dtype
    ring = gl.allocate_shared_memory(dtype, [SLOTS * PANELS * 2, 1, 1, BLOCK, BLOCK], k_source.layout)
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    bias = gl.allocate_shared_memory(gl.float32, [SLOTS * _READERS, TILE], plain)
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    opened = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(SLOTS):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=_READERS * THREADS)
    mbarrier.init(opened.index(0), count=1)
    fence_async_shared()
    mbarrier.arrive(opened.index(0), count=1)

    memory = (ring, full, empty, bias, opened)
    all_items = (list_ptr, items, heads, in_head, AGAIN)
    sources = (q_source, k_source, v_source, out_target)
    words = (words_ptr, word_rows, query_blocks, tiles, (ragged_place, ragged_worth))
    targets = (out_target, kept_ptr, lse_ptr, again_ptr)
    sizes = (tiles, query_rows, scale_log2, worth)
    gl.warp_specialize(
        [
            (_merge, (targets, memory, all_items, sizes, 0, SLOTS, D, dtype, FIXED)),
            (_merge, (targets, memory, all_items, sizes, 1, SLOTS, D, dtype, FIXED)),
            (_copy, (sources, memory, all_items, words, SLOTS, PANELS, BLOCKS)),
        ],
        [4, 1],
        [232, 40],
    )


def add_summaries(
    q: Tensor, out: Tensor, kept_lse: Tensor, summaries: Summaries, *, key_tokens: int, block: int, scale: float
) -> Tensor:
    """Add to ``out``, in place, the summaries of the blocks that each row leaves out.

    Two launches, but for float16: the second computes the rows that left the range of the first one's reference.

    Args:
        q, out: [B, H, Lq, D]; out is the attention over the kept keys.
        kept_lse: its natural LSE, float32 [B, H, Lq], the first of Nq * block numbers a head.
        summaries: of keys that q attends to.
        key_tokens: Lk.
        block: tokens of a query block, 64 or 128.
        scale: factor of q k^T.

    Returns:
        The LSE of both, [B, H, Lq].
    """
    batch, heads, query_tokens, head_dim = q.shape
    query_rows = kept_lse.stride(1)
    in_head = triton.cdiv(query_tokens, TILE.value)
    items = batch * heads * in_head
    words = summaries.words
    tiles = words.shape[-1] * 32 // TILE.value
    lse = torch.empty(batch, heads, query_rows, dtype=torch.float32, device=q.device)
    again = torch.zeros(1, dtype=torch.int32, device=q.device)
    entries = torch.empty(items * 2, dtype=torch.int32, device=q.device)
    last = summaries.keys.shape[2] - 1
    shapes = (
        heads, in_head, query_rows // block, query_rows, tiles, words.numel() // words.shape[-1], items,
        last % TILE.value, summaries.ragged_worth(key_tokens) / scale, math.log2(block), scale * LOG2_E,
    )  # fmt: skip
    sources = tuple(boxes(x) for x in (q, summaries.keys, summaries.values, out))
    options = {
        "D": head_dim, "SLOTS": RING_BYTES // (2 * BOX * head_dim * 2), "BLOCKS": TILE.value // block, "num_warps": 4,
        "maxnreg": 168,
    }  # fmt: skip
    fixed = keeps_reference(q.dtype)
    kernel = hopper_remainder_kernel[(min(multiprocessors(q.device), items),)]
    with torch.cuda.device_of(q):
        for again_now in (False, True) if fixed else (False,):
            kernel(
                *sources, kept_lse, lse, words, again, entries, *shapes,
                FIXED=fixed and not again_now, AGAIN=again_now, **options,
            )  # fmt: skip
    return lse[..., :query_tokens]
