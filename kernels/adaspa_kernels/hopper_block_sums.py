"""Exact block sums for Hopper, written in Gluon: the second pass of AdaSpa's precise online search.

Maths, inputs and output are those of ``block_sums.py`` (arXiv 2502.21079), for blocks of 64x64:
W[p, q] = sum of 2^(Q_p K_q^T * scale * log2(e) - LSE * log2(e)) over block (p, q).

Work. One program takes three neighbouring query blocks past all keys. Each has a warpgroup of its own; one warp copies
tiles of 128 keys, which all three read. While one warpgroup multiplies, the others take exponentials.

Memory. q and k are [B, H, L, D] views that the copy engine takes; rows past the end are zeros, and weigh nothing: past
the last query by an LSE of +inf, past the last key by the mask of the last tile. The boxes and slots are those of
``hopper_block_sparse.py``.

Ring. One ring of ``SLOTS`` tiles. Every warpgroup reads every tile, so that all walk it in step; a slot is empty when
each of the 384 threads has said so.

Sums. A thread adds what it holds of a block, 64 of the 4,096 weights, and puts the result into shared memory. Every
``GROUP`` tiles the warpgroup adds up the 128 parts of each block: far fewer exchanges than one reduction a tile.

Shapes: B batch, H heads, Lq and Lk tokens, D head dimension, Nq and Nk blocks.
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
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from adaspa_kernels.common import LOG2_E
from adaspa_kernels.hopper import BLOCK, BOX, THREADS, TILE, boxes, next_slot

_WARPGROUPS = gl.constexpr(3)


@gluon.jit
def _copy(
    q_source, k_source, q_boxes, q_full, ring, full, empty, tiles, batch, head, first_block,
    SLOTS: gl.constexpr, PANELS: gl.constexpr,
):  # fmt: skip
    """The copying warp: three query blocks, then all keys."""
    for warpgroup in gl.static_range(_WARPGROUPS):
        barrier = q_full.index(warpgroup)
        mbarrier.expect(barrier, PANELS * BLOCK * BLOCK * 2)
        row = (first_block + warpgroup) * BLOCK
        for panel in gl.static_range(PANELS):
            box = q_boxes.index(warpgroup * PANELS + panel)
            tma.async_copy_global_to_shared(q_source, [batch, head, row, panel * BLOCK], barrier, box)

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
                tma.async_copy_global_to_shared(k_source, [batch, head, row, panel * BLOCK], barrier, box)
        slot, phase = next_slot(slot, phase, SLOTS)


@gluon.jit
def _store_parts(parts, b_p):
    """Add up what each thread holds of the two blocks of a tile, and store it: [64, 128] to [2, 128]."""
    # Rows are (warp, 2, lane / 4), columns (block, 8, lane % 4, 2), as the product leaves them.
    b_parts = b_p.reshape([4, 2, 8, 2, 8, 4, 2])
    b_parts = gl.sum(gl.sum(gl.sum(b_parts, 6), 4), 1)
    parts.store(b_parts.permute([2, 0, 1, 3]).reshape([2, THREADS]))


@gluon.jit
def _fold(parts, p_sums, group, key_blocks, stored, GROUP: gl.constexpr):
    """Add up the parts of the blocks of ``GROUP`` tiles and write their sums."""
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [4, 1], [1, 0])
    # [2 * GROUP, 128]
    b_parts = parts._reinterpret(gl.float32, [2 * GROUP, THREADS], parts.layout).load(layout)
    blocks = group * (2 * GROUP) + gl.arange(0, 2 * GROUP, gl.SliceLayout(1, layout))
    gl.store(p_sums + blocks, gl.sum(b_parts, 1), mask=(blocks < key_blocks) & stored)


@gluon.jit
def _weigh(
    b_q, b_lse, tiles_ring, full, empty, parts, slot, phase, tile, key_tokens, scale_log2,
    SLOTS: gl.constexpr, GROUP: gl.constexpr, MASKED: gl.constexpr,
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
    _store_parts(parts.index(tile % GROUP), b_p)
    slot, phase = next_slot(slot, phase, SLOTS)
    return slot, phase


@gluon.jit
def _sum_blocks(
    lse_ptr, sums_ptr, q_boxes, q_full, ring, full, empty, parts, stride_lb, stride_lh, stride_ll,
    query_tokens, key_tokens, query_blocks, key_blocks, scale_log2, log2_e, batch, head, heads, query_block,
    INDEX: gl.constexpr, SLOTS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, dtype: gl.constexpr,
):  # fmt: skip
    """One multiplying warpgroup: its query block against all keys."""
    rows_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    b_q = q_boxes._reinterpret(dtype, [_WARPGROUPS, BLOCK, D], rows_layout).index(INDEX)
    tiles_ring = ring._reinterpret(dtype, [SLOTS, TILE, D], rows_layout)

    # [64]: +inf makes a row weigh nothing, be it past the end or without keys.
    rows = query_block * BLOCK + gl.arange(0, BLOCK, gl.SliceLayout(1, scores_layout))
    p_lse = lse_ptr + batch.to(gl.int64) * stride_lb + head.to(gl.int64) * stride_lh + rows.to(gl.int64) * stride_ll
    b_lse = gl.load(p_lse, mask=rows < query_tokens, other=float("inf"))
    b_lse = gl.where(b_lse == float("-inf"), float("inf"), b_lse * log2_e)
    p_sums = sums_ptr + ((batch.to(gl.int64) * heads + head) * query_blocks + query_block) * key_blocks
    stored = query_block < query_blocks

    slot = 0
    phase = 0
    mbarrier.wait(q_full, 0)
    whole = key_tokens // TILE
    for tile in range(whole):
        slot, phase = _weigh(
            b_q, b_lse, tiles_ring, full, empty, parts, slot, phase, tile, key_tokens, scale_log2, SLOTS, GROUP, False
        )
        if tile % GROUP == GROUP - 1:
            _fold(parts, p_sums, tile // GROUP, key_blocks, stored, GROUP)
    if whole * TILE < key_tokens:
        slot, phase = _weigh(
            b_q, b_lse, tiles_ring, full, empty, parts, slot, phase, whole, key_tokens, scale_log2, SLOTS, GROUP, True
        )
    # An unfinished group remains unless the last whole tile closed one and nothing came after it.
    tiles = gl.cdiv(key_tokens, TILE)
    if (whole < tiles) | (tiles % GROUP != 0):
        _fold(parts, p_sums, (tiles - 1) // GROUP, key_blocks, stored, GROUP)


# Not specialised: a length of 1 would be a constant, and every length that 16 divides a kernel of its own.
@gluon.jit(do_not_specialize=["query_tokens", "key_tokens", "query_blocks", "key_blocks"])
def hopper_block_sums_kernel(
    q_source, k_source, lse_ptr, sums_ptr, stride_lb, stride_lh, stride_ll,
    query_tokens, key_tokens, query_blocks, key_blocks, scale_log2, log2_e,
    D: gl.constexpr, SLOTS: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """Grid (ceil(Nq / 3), H, B). ``*_source`` are descriptors of [1, 1, 64, 64] boxes."""
    PANELS: gl.constexpr = D // BLOCK
    dtype: gl.constexpr = k_source.dtype
    boxes_layout: gl.constexpr = k_source.layout
    parts_layout: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    first_block = gl.program_id(0) * _WARPGROUPS
    head = gl.program_id(1)
    batch = gl.program_id(2)
    heads = gl.num_programs(1)

    q_boxes = gl.allocate_shared_memory(dtype, [_WARPGROUPS * PANELS, 1, 1, BLOCK, BLOCK], boxes_layout)
    ring = gl.allocate_shared_memory(dtype, [SLOTS * PANELS * 2, 1, 1, BLOCK, BLOCK], boxes_layout)
    parts_a = gl.allocate_shared_memory(gl.float32, [GROUP, 2, THREADS], parts_layout)
    parts_b = gl.allocate_shared_memory(gl.float32, [GROUP, 2, THREADS], parts_layout)
    parts_c = gl.allocate_shared_memory(gl.float32, [GROUP, 2, THREADS], parts_layout)
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
                    stride_lb, stride_lh, stride_ll, query_tokens, key_tokens, query_blocks, key_blocks,
                    scale_log2, log2_e, batch, head, heads, first_block, 0, SLOTS, GROUP, D, dtype,
                ),
            ),
            (
                _sum_blocks,
                (
                    lse_ptr, sums_ptr, q_boxes, q_full.index(1), ring, full, empty, parts_b,
                    stride_lb, stride_lh, stride_ll, query_tokens, key_tokens, query_blocks, key_blocks,
                    scale_log2, log2_e, batch, head, heads, first_block + 1, 1, SLOTS, GROUP, D, dtype,
                ),
            ),
            (
                _sum_blocks,
                (
                    lse_ptr, sums_ptr, q_boxes, q_full.index(2), ring, full, empty, parts_c,
                    stride_lb, stride_lh, stride_ll, query_tokens, key_tokens, query_blocks, key_blocks,
                    scale_log2, log2_e, batch, head, heads, first_block + 2, 2, SLOTS, GROUP, D, dtype,
                ),
            ),
            (
                _copy,
                (
                    q_source, k_source, q_boxes, q_full, ring, full, empty, gl.cdiv(key_tokens, TILE), batch, head,
                    first_block, SLOTS, PANELS,
                ),
            ),
        ],
        [4, 4, 1],
        [160, 160, 32],
    )  # fmt: skip


def launch(q: Tensor, k: Tensor, lse: Tensor, *, scale: float) -> Tensor:
    """Run the kernel on arguments that ``block_sums.block_sums`` has checked: W, float32 [B, H, Nq, Nk]."""
    batch, heads, query_tokens, head_dim = q.shape
    query_blocks, key_blocks = triton.cdiv(query_tokens, BOX), triton.cdiv(k.shape[2], BOX)
    sums = torch.empty(batch, heads, query_blocks, key_blocks, dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        hopper_block_sums_kernel[(triton.cdiv(query_blocks, _WARPGROUPS.value), heads, batch)](
            boxes(q), boxes(k), lse, sums, *lse.stride(),
            query_tokens, k.shape[2], query_blocks, key_blocks, scale * LOG2_E, LOG2_E,
            D=head_dim, **launch_options(),
        )  # fmt: skip
    return sums


def launch_options() -> dict[str, int]:
    """Slots of the ring, tiles of a group, and registers: 128 a thread for 512 threads, handed out as 160 and 32."""
    return {"SLOTS": 4, "GROUP": 16, "num_warps": 4, "maxnreg": 128}
