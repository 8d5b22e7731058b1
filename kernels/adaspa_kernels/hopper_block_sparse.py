"""Block-sparse attention for Hopper, written in Gluon: bulk copies, warpgroup products, specialised warps.

Maths, lists and outputs are those of ``block_sparse.py`` (AdaSpa, arXiv 2502.21079; online softmax, arXiv 2307.08691),
for blocks of 64x64.

Not yet run on a GPU: its source is checked by compiling it, and on the CPU against a model of the barriers.

Work. One program computes two neighbouring query blocks, each with its own list. For each of them one warpgroup
multiplies and one warp copies; the two pairs share nothing but the multiprocessor, so that lists of any two lengths
go together: while one warpgroup takes exponentials, the other one keeps the tensor cores busy.

Super tiles. Two listed key blocks are gathered into one slot of shared memory, so that a step is one product with
N = 128 and one rescaling for 128 keys. A list is walked from its end. Its last block comes first, because it alone can
be ragged, and with it, where the count is odd, an empty half: the first step alone pays for masks.

    tile 0: entry n-1, and n-2 if n is even, else nothing;  tile t: the next two.  An empty list is one empty tile.

Memory. q, k, v and out are [B, H, L, D] views that the copy engine takes: last stride 1, the others multiples of
16 bytes. It fills rows past the end, and empty halves, with zeros; so P = 0 meets V = 0 there, never NaN. All boxes
are [64 rows, 64 columns], 128 bytes wide. A slot [128, D] is D / 64 panels of 128 rows of such boxes:

    box index = (slot * D / 64 + panel) * 2 + half

Ring. K and V tiles pass through one ring of ``SLOTS`` slots per pair in the order in which they are used,

    K0  K1 V0  K2 V1  ...  K(T-1) V(T-2)  V(T-1)

Both sides walk it one slot at a time, hence one counter and one parity each; tests/kernels/test_hopper_ring.py plays
all interleavings. Every barrier of the ring expects one arrival of the copy engine (full) or one of each of the 128
threads (empty).

Order of a step: issue S = Q K(i)^T, issue O += P V(i-1), wait for S, softmax, wait for the next tile, wait for O,
rescale. The barrier wait between the softmax and the wait for O keeps the assembler from moving that wait up.

Shapes: B batch, H heads, Lq and Lk tokens, D head dimension, Nq query blocks, T tiles of a list.
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

from adaspa_kernels.hopper import BOX, LOG2_E, boxes, next_slot

RING_BYTES = 3 * 2 * BOX * 128 * 2  # of a pair: three slots of 128 x 128 numbers

BLOCK = gl.constexpr(BOX)
_TILE = gl.constexpr(2 * BOX)
_LN_2 = gl.constexpr(1 / LOG2_E)
_THREADS = gl.constexpr(128)  # of a warpgroup


@gluon.jit
def _tile_blocks(p_list, count, listed, key_blocks, tile, tiles):
    """Key blocks of the two halves of ``tile``; ``key_blocks``, which is past the end, for an empty half."""
    # All tiles after the first are moved by the entry that it lacks if the count is odd.
    moved = gl.where(tile > 0, count & 1, 0)
    first = count - 1 - 2 * tile + moved
    second = first - 1
    has_first = (tile < tiles) & (first >= 0)
    has_second = (tile < tiles) & (second >= 0) & ((tile > 0) | ((count & 1) == 0))
    first_block = gl.where(listed, gl.load(p_list + first, mask=listed & has_first, other=0).to(gl.int32), first)
    second_block = gl.where(listed, gl.load(p_list + second, mask=listed & has_second, other=0).to(gl.int32), second)
    return gl.where(has_first, first_block, key_blocks), gl.where(has_second, second_block, key_blocks)


@gluon.jit
def _gather(source, ring, full, slot, batch, head, first_block, second_block, PANELS: gl.constexpr):
    """Copy two blocks of ``source`` to slot ``slot``."""
    barrier = full.index(slot)
    mbarrier.expect(barrier, PANELS * _TILE * BLOCK * 2)
    for panel in gl.static_range(PANELS):
        box = (slot * PANELS + panel) * 2
        column = panel * BLOCK
        tma.async_copy_global_to_shared(source, [batch, head, first_block * BLOCK, column], barrier, ring.index(box))
        tma.async_copy_global_to_shared(
            source, [batch, head, second_block * BLOCK, column], barrier, ring.index(box + 1)
        )


@gluon.jit
def _copy(
    q_source, k_source, v_source, q_boxes, q_full, ring, full, empty, p_list, count, listed, key_blocks,
    batch, head, query_block, PAIR: gl.constexpr, SLOTS: gl.constexpr, PANELS: gl.constexpr,
):  # fmt: skip
    """The copying warp of a pair: the query block, then all tiles of its list."""
    mbarrier.expect(q_full, PANELS * BLOCK * BLOCK * 2)
    for panel in gl.static_range(PANELS):
        tma.async_copy_global_to_shared(
            q_source, [batch, head, query_block * BLOCK, panel * BLOCK], q_full, q_boxes.index(PAIR * PANELS + panel)
        )

    tiles = gl.maximum((count + 1) // 2, 1)
    first, second = _tile_blocks(p_list, count, listed, key_blocks, 0, tiles)
    # Nothing yet. Not `first` and `second`: Triton 3.6 makes one loop variable of two that begin as the same object.
    last_first, last_second = _tile_blocks(p_list, count, listed, key_blocks, tiles, tiles)
    slot = 0
    # The ring starts empty: the wait for the phase before the first one returns at once.
    phase = 1
    for tile in range(tiles + 1):
        # One tile ahead, so that the lists' latency passes while the warp waits for slots.
        next_first, next_second = _tile_blocks(p_list, count, listed, key_blocks, tile + 1, tiles)
        if tile < tiles:
            mbarrier.wait(empty.index(slot), phase)
            _gather(k_source, ring, full, slot, batch, head, first, second, PANELS)
            slot, phase = next_slot(slot, phase, SLOTS)
        if tile > 0:
            mbarrier.wait(empty.index(slot), phase)
            _gather(v_source, ring, full, slot, batch, head, last_first, last_second, PANELS)
            slot, phase = next_slot(slot, phase, SLOTS)
        last_first = first
        last_second = second
        first = next_first
        second = next_second


@gluon.jit
def _attend(
    out_target, lse_ptr, q_boxes, q_full, ring, full, empty, p_list, count, listed,
    key_tokens, query_tokens, scale_log2, batch, head, heads, query_block,
    PAIR: gl.constexpr, SLOTS: gl.constexpr, D: gl.constexpr, dtype: gl.constexpr,
):  # fmt: skip
    """The multiplying warpgroup of a pair."""
    PANELS: gl.constexpr = D // BLOCK
    rows_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, _TILE, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, out_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, scores_layout)
    out_row_layout: gl.constexpr = gl.SliceLayout(1, out_layout)

    b_q = q_boxes._reinterpret(dtype, [2, BLOCK, D], rows_layout).index(PAIR)
    tiles_ring = ring._reinterpret(dtype, [SLOTS, _TILE, D], rows_layout)
    no_scores = gl.zeros([BLOCK, _TILE], gl.float32, scores_layout)
    b_out = gl.zeros([BLOCK, D], gl.float32, out_layout)
    tiles = gl.maximum((count + 1) // 2, 1)

    # How many keys of the first half are real: the list's last block may be ragged.
    last = gl.maximum(count - 1, 0)
    last_block = gl.where(listed, gl.load(p_list + last, mask=listed & (count > 0), other=0).to(gl.int32), last)
    real = gl.where(count > 0, key_tokens - last_block * BLOCK, 0)
    key = gl.arange(0, _TILE, gl.SliceLayout(0, scores_layout))
    kept = (key < gl.minimum(real, BLOCK)) | ((key >= BLOCK) & (count > 0) & ((count & 1) == 0))

    slot = 0
    phase = 0
    mbarrier.wait(q_full, 0)
    mbarrier.wait(full.index(slot), phase)
    b_s = warpgroup_mma(b_q, tiles_ring.index(slot).permute((1, 0)), no_scores, use_acc=False, is_async=True)
    b_s = warpgroup_mma_wait(0, deps=[b_s])
    async_copy.mbarrier_arrive(empty.index(slot), increment_count=False)
    # [64, 128]
    b_s = gl.where(kept[None, :], b_s, float("-inf"))
    # [64], in units of log2
    b_max = gl.max(b_s, 1) * scale_log2
    # [64, 128]: the subtrahend is finite also where nothing is kept.
    b_p = gl.exp2(b_s * scale_log2 - gl.where(b_max == float("-inf"), 0.0, b_max)[:, None])
    b_sum = gl.sum(b_p, 1)
    b_weights = gl.convert_layout(b_p.to(dtype), weights_layout)
    slot, phase = next_slot(slot, phase, SLOTS)
    mbarrier.wait(full.index(slot), phase)

    for _ in range(1, tiles):
        # Here K(i) is in its slot, P of tile i-1 in registers.
        k_slot = slot
        b_s = warpgroup_mma(b_q, tiles_ring.index(k_slot).permute((1, 0)), no_scores, use_acc=False, is_async=True)
        v_slot, phase = next_slot(slot, phase, SLOTS)
        mbarrier.wait(full.index(v_slot), phase)
        b_out = warpgroup_mma(b_weights, tiles_ring.index(v_slot), b_out, is_async=True)
        b_s = warpgroup_mma_wait(1, deps=[b_s])
        async_copy.mbarrier_arrive(empty.index(k_slot), increment_count=False)
        # [64]
        b_new_max = gl.maximum(b_max, gl.max(b_s, 1) * scale_log2)
        # [64, 128]
        b_p = gl.exp2(b_s * scale_log2 - b_new_max[:, None])
        # [64]
        b_rescale = gl.exp2(b_max - b_new_max)
        b_sum = b_sum * b_rescale + gl.sum(b_p, 1)
        b_max = b_new_max
        # The next tile is K(i+1), or V(i) if this is the last step.
        slot, phase = next_slot(v_slot, phase, SLOTS)
        mbarrier.wait(full.index(slot), phase)
        b_out = warpgroup_mma_wait(0, deps=[b_out])
        async_copy.mbarrier_arrive(empty.index(v_slot), increment_count=False)
        # [64, D]
        b_out = b_out * gl.convert_layout(b_rescale, out_row_layout)[:, None]
        b_weights = gl.convert_layout(b_p.to(dtype), weights_layout)

    b_out = warpgroup_mma(b_weights, tiles_ring.index(slot), b_out, is_async=True)
    b_out = warpgroup_mma_wait(0, deps=[b_out])

    # [64]
    b_divisor = gl.where(b_sum == 0, 1.0, b_sum)
    b_lse = gl.where(b_sum == 0, float("-inf"), (b_max + gl.log2(b_divisor)) * _LN_2)
    rows = query_block * BLOCK + gl.arange(0, BLOCK, row_layout)
    p_lse = lse_ptr + (batch.to(gl.int64) * heads + head) * query_tokens + rows
    gl.store(p_lse, b_lse, mask=rows < query_tokens)
    b_out = b_out / gl.convert_layout(b_divisor, out_row_layout)[:, None]
    # All products that read the queries are done: their place takes the output.
    b_q.store(b_out.to(dtype))
    fence_async_shared()
    for panel in gl.static_range(PANELS):
        tma.async_copy_shared_to_global(
            out_target, [batch, head, query_block * BLOCK, panel * BLOCK], q_boxes.index(PAIR * PANELS + panel)
        )
    tma.store_wait(0)


@gluon.jit
def _row(counts_ptr, indices_ptr, strides, batch, head, query_block, query_blocks, key_blocks):
    """Count, list and kind of one row; a row past the end is empty."""
    real = query_block < query_blocks
    row = gl.minimum(query_block, query_blocks - 1).to(gl.int64)
    head64 = head.to(gl.int64)
    batch64 = batch.to(gl.int64)
    stride_cb, stride_ch, stride_cq, stride_ib, stride_ih, stride_iq = strides
    count = gl.load(counts_ptr + batch64 * stride_cb + head64 * stride_ch + row * stride_cq)
    p_list = indices_ptr + batch64 * stride_ib + head64 * stride_ih + row * stride_iq
    return gl.where(real, count, 0), p_list, count < key_blocks


# Not specialised: a length of 1 would be a constant, and every length that 16 divides a kernel of its own.
@gluon.jit(
    do_not_specialize=["query_tokens", "key_tokens", "query_blocks", "key_blocks", "first_pair"],
)
def hopper_block_sparse_kernel(
    q_source, k_source, v_source, out_target, lse_ptr, counts_ptr, indices_ptr,
    stride_cb, stride_ch, stride_cq, stride_ib, stride_ih, stride_iq,
    query_tokens, key_tokens, query_blocks, key_blocks, first_pair, scale_log2,
    D: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Grid (ceil(Nq / 2), H, B). ``*_source`` and ``out_target`` are descriptors of [1, 1, 64, 64] boxes."""
    PANELS: gl.constexpr = D // BLOCK
    dtype: gl.constexpr = k_source.dtype
    boxes_layout: gl.constexpr = k_source.layout
    pair = (gl.program_id(0) + first_pair) % gl.num_programs(0)
    head = gl.program_id(1)
    batch = gl.program_id(2)
    heads = gl.num_programs(1)
    block_a = 2 * pair
    block_b = block_a + 1

    strides = (stride_cb, stride_ch, stride_cq, stride_ib, stride_ih, stride_iq)
    count_a, list_a, listed_a = _row(counts_ptr, indices_ptr, strides, batch, head, block_a, query_blocks, key_blocks)
    count_b, list_b, listed_b = _row(counts_ptr, indices_ptr, strides, batch, head, block_b, query_blocks, key_blocks)

    q_boxes = gl.allocate_shared_memory(dtype, [2 * PANELS, 1, 1, BLOCK, BLOCK], boxes_layout)
    ring_a = gl.allocate_shared_memory(dtype, [SLOTS * PANELS * 2, 1, 1, BLOCK, BLOCK], boxes_layout)
    ring_b = gl.allocate_shared_memory(dtype, [SLOTS * PANELS * 2, 1, 1, BLOCK, BLOCK], boxes_layout)
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    full_a = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    full_b = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty_a = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty_b = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(q_full.index(i), count=1)
    for i in gl.static_range(SLOTS):
        mbarrier.init(full_a.index(i), count=1)
        mbarrier.init(full_b.index(i), count=1)
        mbarrier.init(empty_a.index(i), count=_THREADS)
        mbarrier.init(empty_b.index(i), count=_THREADS)
    fence_async_shared()

    gl.warp_specialize(
        [
            (
                _attend,
                (
                    out_target, lse_ptr, q_boxes, q_full.index(0), ring_a, full_a, empty_a, list_a, count_a, listed_a,
                    key_tokens, query_tokens, scale_log2, batch, head, heads, block_a, 0, SLOTS, D, dtype,
                ),
            ),
            (
                _attend,
                (
                    out_target, lse_ptr, q_boxes, q_full.index(1), ring_b, full_b, empty_b, list_b, count_b, listed_b,
                    key_tokens, query_tokens, scale_log2, batch, head, heads, block_b, 1, SLOTS, D, dtype,
                ),
            ),
            (
                _copy,
                (
                    q_source, k_source, v_source, q_boxes, q_full.index(0), ring_a, full_a, empty_a, list_a, count_a,
                    listed_a, key_blocks, batch, head, block_a, 0, SLOTS, PANELS,
                ),
            ),
            (
                _copy,
                (
                    q_source, k_source, v_source, q_boxes, q_full.index(1), ring_b, full_b, empty_b, list_b, count_b,
                    listed_b, key_blocks, batch, head, block_b, 1, SLOTS, PANELS,
                ),
            ),
        ],
        [4, 1, 1],
        [240, 24, 24],
    )  # fmt: skip


def launch(
    q: Tensor, k: Tensor, v: Tensor, counts: Tensor, indices: Tensor, strides: tuple[int, ...], *,
    key_blocks: int, scale: float, first_query_block: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the kernel on arguments that ``block_sparse.block_sparse_attention`` has checked.

    Args:
        strides: of counts [B, H, Nq] and indices [B, H, Nq, ..], 0 for a batch that is shared.
        first_query_block: the query block that is computed first.

    Returns:
        Output [B, H, Lq, D], whose ``transpose(1, 2)`` is contiguous, and the natural LSE, float32 [B, H, Lq].
    """
    batch, heads, query_tokens, head_dim = q.shape
    query_blocks = triton.cdiv(query_tokens, BOX)
    out = torch.empty(batch, query_tokens, heads, head_dim, dtype=q.dtype, device=q.device).transpose(1, 2)
    lse = torch.empty(batch, heads, query_tokens, dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        hopper_block_sparse_kernel[(triton.cdiv(query_blocks, 2), heads, batch)](
            boxes(q), boxes(k), boxes(v), boxes(out), lse, counts, indices, *strides,
            query_tokens, k.shape[2], query_blocks, key_blocks, first_query_block // 2, scale * LOG2_E,
            D=head_dim, **launch_options(head_dim),
        )  # fmt: skip
    return out, lse


def launch_options(head_dim: int) -> dict[str, int]:
    """Slots of a pair's ring, and registers: 168 a thread for 384 threads, handed out as 240 and 24."""
    return {"SLOTS": RING_BYTES // (2 * BOX * head_dim * 2), "num_warps": 4, "maxnreg": 168}
