"""Exact block sums for Hopper, written in Gluon: the second pass of AdaSpa's precise online search.

Maths, inputs and output are those of ``block_sums.py`` (arXiv 2502.21079), for blocks of 64x64:
W[p, q] = sum of 2^(Q_p K_q^T * scale * log2(e) - LSE * log2(e)) over block (p, q). With a row stride N, every
Nth row of a block stands for N of its rows.

Work. One program multiplies 192 query rows with all keys: three warpgroups with 64 rows each, and one warp that copies
tiles of 128 keys for all three. The rows are those of three neighbouring query blocks; with a row stride they are every
Nth row of 3 N blocks. While one warpgroup multiplies, the others compute exponentials.

Memory. q and k are [B, H, L, D] views that the copy engine takes. It reads rows past the end as zeros; they get no
weight, because the LSE past the last query is +inf and the last tile masks what is past the last key. The boxes and
slots are those of ``hopper_block_sparse.py``.

Ring. Key tiles pass through a ring of ``SLOTS`` slots. Every warpgroup reads every tile; a slot is empty once all 384
threads have arrived at its barrier.

Sums. A thread adds up the weights that it holds of a block, 32 of 4,096, and writes this part to shared memory. After
``GROUP`` tiles the warpgroup adds up the 128 parts of each block, which takes far fewer exchanges between threads than
a reduction of each tile. A warp holds 16 rows, as two halves of 8. With a row stride, the weighed rows of a query block
lie in two warps (N = 2), one warp (4), half of its rows (8) or a quarter of them (16). From N = 8 on a thread holds
rows of two query blocks, and writes a part for each.

Shapes: B batch, H heads, Lq and Lk tokens, D head dimension, Nq and Nk blocks, N row stride.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from adaspa_kernels.common import LOG2_E
from adaspa_kernels.hopper import BLOCK, BOX, THREADS, TILE, boxes, load_box, next_slot, seen_as
from adaspa_kernels.launch import run

_WARPGROUPS = gl.constexpr(3)


@gluon.jit
def _copy(
    q_source, k_source, q_boxes, q_full, ring, full, empty, tiles, batch, head, first_row,
    SLOTS: gl.constexpr, PANELS: gl.constexpr,
):  # fmt: skip
    """The copying warp: 64 query rows for each warpgroup, then all keys."""
    for warpgroup in gl.static_range(_WARPGROUPS):
        barrier = q_full.index(warpgroup)
        mbarrier.expect(barrier, PANELS * BLOCK * BLOCK * 2)
        row = first_row + warpgroup * BLOCK
        for panel in gl.static_range(PANELS):
            box = q_boxes.index(warpgroup * PANELS + panel)
            load_box(q_source, [batch, head, row, panel * BLOCK], barrier, box)

    slot = 0
    # The ring starts empty: the wait for the phase before the first one returns at once.
    phase = 1
    for tile in range(tiles):
        mbarrier.wait(empty.index(slot), phase)
        barrier = full.index(slot)
        mbarrier.expect(barrier, PANELS * TILE * BLOCK * 2)
        for panel in gl.static_range(PANELS):
            for half in gl.static_range(2):
                box = ring.index((slot * PANELS + panel) * 2 + half)
                row = tile * TILE + half * BLOCK
                load_box(k_source, [batch, head, row, panel * BLOCK], barrier, box)
        slot, phase = next_slot(slot, phase, SLOTS)


@gluon.jit
def _store_parts(parts, b_p, HALVES: gl.constexpr):
    """Reduce the weights [64, 128] of a tile's two blocks to one part per block, half and thread [2 * HALVES, 128]."""
    # Rows are (warp, 2, lane / 4), columns (block, 8, lane % 4, 2), as the product leaves them.
    b_parts = b_p.reshape([4, 2, 8, 2, 8, 4, 2])
    b_parts = gl.sum(gl.sum(b_parts, 6), 4)
    # [4, 2, 8, 2, 4]: warp, half, row, block, lane % 4
    if HALVES == 1:
        parts.store(gl.sum(b_parts, 1).permute([2, 0, 1, 3]).reshape([2, THREADS]))
    else:
        parts.store(b_parts.permute([3, 1, 0, 2, 4]).reshape([4, THREADS]))


@gluon.jit
def _fold(parts, sums, group, GROUP: gl.constexpr, STRIDE: gl.constexpr, HALVES: gl.constexpr):
    """Add up the parts of the blocks of ``GROUP`` tiles and write their sums."""
    p_sums, first_block, query_tokens, query_blocks, key_blocks = sums
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [4, 1], [1, 0])
    # [2 * GROUP * HALVES, 128]
    b_parts = seen_as(parts, gl.float32, [2 * GROUP * HALVES, THREADS], parts.layout).load(layout)
    if STRIDE == 1:
        blocks = group * (2 * GROUP) + gl.arange(0, 2 * GROUP, gl.SliceLayout(1, layout))
        stored = (blocks < key_blocks) & (first_block < query_blocks)
        gl.store(p_sums + blocks, gl.sum(b_parts, 1), mask=stored)
    else:
        WITHIN: gl.constexpr = STRIDE // HALVES  # query blocks that differ by threads
        # [2 * GROUP * HALVES, WITHIN]
        b_sums = gl.sum(b_parts.reshape([2 * GROUP * HALVES, WITHIN, THREADS // WITHIN]), 2)
        sums_layout: gl.constexpr = gl.BlockedLayout([1, 1], [8, 4], [4, 1], [1, 0])
        b_sums = gl.convert_layout(b_sums, sums_layout)
        part = gl.arange(0, 2 * GROUP * HALVES, gl.SliceLayout(1, sums_layout))[:, None]
        within = gl.arange(0, WITHIN, gl.SliceLayout(0, sums_layout))[None, :]
        blocks = group * (2 * GROUP) + part // HALVES
        # Threads are (warp, row, lane % 4): with halves their warp counts for more, a quarter of their rows for less.
        query_block = within
        if STRIDE == 8:
            query_block = within * 2 + part % 2
        if STRIDE == 16:
            query_block = within // 2 * 4 + part % 2 * 2 + within % 2
        # Rows that one weighed row stands for.
        real = gl.minimum(gl.maximum(query_tokens - (first_block + query_block) * BLOCK, 1), BLOCK)
        worth = real.to(gl.float32) / ((real + STRIDE - 1) // STRIDE).to(gl.float32)
        stored = (blocks < key_blocks) & (first_block + query_block < query_blocks)
        gl.store(p_sums + query_block.to(gl.int64) * key_blocks + blocks, b_sums * worth, mask=stored)


@gluon.jit
def _weigh(
    b_q, b_lse, tiles_ring, full, empty, parts, slot, phase, tile, key_tokens, scale_log2,
    SLOTS: gl.constexpr, GROUP: gl.constexpr, HALVES: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Weigh one tile of keys; return the next slot and phase."""
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    mbarrier.wait(full.index(slot), phase)
    b_s = gl.zeros([BLOCK, TILE], gl.float32, scores_layout)
    b_s = warpgroup_mma(b_q, tiles_ring.index(slot).permute((1, 0)), b_s, use_acc=False, is_async=True)
    b_s = warpgroup_mma_wait(0, deps=[b_s])
    async_copy.mbarrier_arrive(empty.index(slot), increment_count=False)
    # [64, 128]
    b_p = gl.exp2(b_s * scale_log2 - b_lse[:, None])
    if MASKED:
        key = tile * TILE + gl.arange(0, TILE, gl.SliceLayout(0, scores_layout))
        b_p = gl.where((key < key_tokens)[None, :], b_p, 0.0)
    _store_parts(parts.index(tile % GROUP), b_p, HALVES)
    slot, phase = next_slot(slot, phase, SLOTS)
    return slot, phase


@gluon.jit
def _sum_blocks(
    lse_ptr, sums_ptr, q_boxes, q_full, ring, full, empty, parts, stride_lb, stride_lh, stride_ll,
    weighed_tokens, query_tokens, key_tokens, query_blocks, key_blocks, scale_log2, log2_e,
    batch, head, heads, first_row,
    INDEX: gl.constexpr, SLOTS: gl.constexpr, GROUP: gl.constexpr, STRIDE: gl.constexpr, D: gl.constexpr,
    dtype: gl.constexpr,
):  # fmt: skip
    """One multiplying warpgroup: its 64 queries against all keys."""
    rows_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    b_q = seen_as(q_boxes, dtype, [_WARPGROUPS, BLOCK, D], rows_layout).index(INDEX)
    tiles_ring = seen_as(ring, dtype, [SLOTS, TILE, D], rows_layout)

    # [64]: +inf gives a row no weight: it is past the end, or has no keys.
    first_row = first_row + INDEX * BLOCK
    rows = first_row + gl.arange(0, BLOCK, gl.SliceLayout(1, scores_layout))
    p_lse = lse_ptr + batch.to(gl.int64) * stride_lb + head.to(gl.int64) * stride_lh + rows.to(gl.int64) * stride_ll
    b_lse = gl.load(p_lse, mask=rows < weighed_tokens, other=float("inf"))
    b_lse = gl.where(b_lse == float("-inf"), float("inf"), b_lse * log2_e)
    HALVES: gl.constexpr = 2 if STRIDE >= 8 else 1
    first_block = first_row // BLOCK * STRIDE
    p_sums = sums_ptr + ((batch.to(gl.int64) * heads + head) * query_blocks + first_block) * key_blocks
    sums = (p_sums, first_block, query_tokens, query_blocks, key_blocks)

    slot = 0
    phase = 0
    mbarrier.wait(q_full, 0)
    whole = key_tokens // TILE
    for tile in range(whole):
        slot, phase = _weigh(
            b_q, b_lse, tiles_ring, full, empty, parts, slot, phase, tile, key_tokens, scale_log2,
            SLOTS, GROUP, HALVES, False,
        )  # fmt: skip
        if tile % GROUP == GROUP - 1:
            _fold(parts, sums, tile // GROUP, GROUP, STRIDE, HALVES)
    if whole * TILE < key_tokens:
        slot, phase = _weigh(
            b_q, b_lse, tiles_ring, full, empty, parts, slot, phase, whole, key_tokens, scale_log2,
            SLOTS, GROUP, HALVES, True,
        )  # fmt: skip
    # An unfinished group remains unless the last whole tile closed one and nothing came after it.
    tiles = gl.cdiv(key_tokens, TILE)
    if (whole < tiles) | (tiles % GROUP != 0):
        _fold(parts, sums, (tiles - 1) // GROUP, GROUP, STRIDE, HALVES)


# Not specialised: a length of 1 would be a constant, and every length that 16 divides a kernel of its own.
@gluon.jit(do_not_specialize=["weighed_tokens", "query_tokens", "key_tokens", "query_blocks", "key_blocks"])
def hopper_block_sums_kernel(
    q_source, k_source, lse_ptr, sums_ptr, stride_lb, stride_lh, stride_ll,
    weighed_tokens, query_tokens, key_tokens, query_blocks, key_blocks, scale_log2, log2_e,
    D: gl.constexpr, SLOTS: gl.constexpr, GROUP: gl.constexpr, STRIDE: gl.constexpr,
):  # fmt: skip
    """Grid (ceil(weighed rows / 192), H, B). ``*_source`` are descriptors of [1, 1, 64, 64] boxes.

    ``q_source`` and ``lse_ptr`` hold every ``STRIDE``-th of ``query_tokens`` rows, ``weighed_tokens`` in all.
    """
    PANELS: gl.constexpr = D // BLOCK
    dtype: gl.constexpr = k_source.dtype
    boxes_layout: gl.constexpr = k_source.layout
    PARTS: gl.constexpr = 4 if STRIDE >= 8 else 2
    parts_layout: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    first_row = gl.program_id(0) * (_WARPGROUPS * BLOCK)
    head = gl.program_id(1)
    batch = gl.program_id(2)
    heads = gl.num_programs(1)

    q_boxes = gl.allocate_shared_memory(dtype, [_WARPGROUPS * PANELS, 1, 1, BLOCK, BLOCK], boxes_layout)
    ring = gl.allocate_shared_memory(dtype, [SLOTS * PANELS * 2, 1, 1, BLOCK, BLOCK], boxes_layout)
    parts_a = gl.allocate_shared_memory(gl.float32, [GROUP, PARTS, THREADS], parts_layout)
    parts_b = gl.allocate_shared_memory(gl.float32, [GROUP, PARTS, THREADS], parts_layout)
    parts_c = gl.allocate_shared_memory(gl.float32, [GROUP, PARTS, THREADS], parts_layout)
    q_full = gl.allocate_shared_memory(gl.int64, [_WARPGROUPS, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(_WARPGROUPS):
        mbarrier.init(q_full.index(i), count=1)
    for i in gl.static_range(SLOTS):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=_WARPGROUPS * THREADS)
    fence_async_shared()

    gl.warp_specialize(
        [
            (
                _sum_blocks,
                (
                    lse_ptr, sums_ptr, q_boxes, q_full.index(0), ring, full, empty, parts_a,
                    stride_lb, stride_lh, stride_ll, weighed_tokens, query_tokens, key_tokens, query_blocks, key_blocks,
                    scale_log2, log2_e, batch, head, heads, first_row, 0, SLOTS, GROUP, STRIDE, D, dtype,
                ),
            ),
            (
                _sum_blocks,
                (
                    lse_ptr, sums_ptr, q_boxes, q_full.index(1), ring, full, empty, parts_b,
                    stride_lb, stride_lh, stride_ll, weighed_tokens, query_tokens, key_tokens, query_blocks, key_blocks,
                    scale_log2, log2_e, batch, head, heads, first_row, 1, SLOTS, GROUP, STRIDE, D, dtype,
                ),
            ),
            (
                _sum_blocks,
                (
                    lse_ptr, sums_ptr, q_boxes, q_full.index(2), ring, full, empty, parts_c,
                    stride_lb, stride_lh, stride_ll, weighed_tokens, query_tokens, key_tokens, query_blocks, key_blocks,
                    scale_log2, log2_e, batch, head, heads, first_row, 2, SLOTS, GROUP, STRIDE, D, dtype,
                ),
            ),
            (
                _copy,
                (
                    q_source, k_source, q_boxes, q_full, ring, full, empty, gl.cdiv(key_tokens, TILE), batch, head,
                    first_row, SLOTS, PANELS,
                ),
            ),
        ],
        [4, 4, 1],
        [160, 160, 32],
    )  # fmt: skip


def launch(q: Tensor, k: Tensor, lse: Tensor, *, query_tokens: int, scale: float, row_stride: int) -> Tensor:
    """Run the kernel on arguments that ``block_sums.block_sums`` has checked: W, float32 [B, H, Nq, Nk].

    q and lse are every ``row_stride``-th of ``query_tokens`` rows.
    """
    batch, heads, weighed_tokens, head_dim = q.shape
    query_blocks, key_blocks = triton.cdiv(query_tokens, BOX), triton.cdiv(k.shape[2], BOX)
    sums = torch.empty(batch, heads, query_blocks, key_blocks, dtype=torch.float32, device=q.device)
    run(
        hopper_block_sums_kernel, (triton.cdiv(weighed_tokens, BOX * _WARPGROUPS.value), heads, batch),
        boxes(q), boxes(k), lse, sums, *lse.stride(),
        weighed_tokens, query_tokens, k.shape[2], query_blocks, key_blocks, scale * LOG2_E, LOG2_E,
        D=head_dim, STRIDE=row_stride, where=q, **launch_options(row_stride),
    )  # fmt: skip
    return sums


def launch_options(row_stride: int) -> dict[str, int]:
    """Slots of the ring, tiles of a group, and registers: 128 a thread for 512 threads, handed out as 160 and 32.

    From a row stride of 8 on a tile has twice as many parts, so a group has half as many tiles; with 16 it has a
    quarter, because the change of layout in ``_fold`` needs shared memory too.
    """
    return {"SLOTS": 4, "GROUP": {8: 8, 16: 4}.get(row_stride, 16), "num_warps": 4, "maxnreg": 128}
