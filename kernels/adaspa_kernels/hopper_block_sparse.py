"""Block-sparse attention for Hopper, written in Gluon: bulk copies, warpgroup products, specialised warps.

Maths, lists and outputs are those of ``block_sparse.py`` (AdaSpa, arXiv 2502.21079; online softmax, arXiv 2307.08691),
for blocks of 64x64 and 128x128.

Work. The grid is persistent. A *team* takes query blocks from the schedule (``schedule.py``), one after another,
until none is left, so uneven lists cause no idle time. One warp takes them, tells the others which, and copies
(``hopper_block_sparse_copy.py``); one warpgroup multiplies for each 64 query rows.

    64x64     two teams of one warpgroup (three at D = 64), each with a list and a ring of its own. They share nothing
              but the multiprocessor, so that lists of any lengths run together: while one team's warpgroup takes
              exponentials, another's keeps the tensor cores busy.
    128x128   one team of two warpgroups, which read the same tiles.

Tiles. A step is one product with N = 128 keys: two listed blocks of 64 keys, gathered into one slot of shared memory,
or one block of 128. A list is walked from its end. Its last block comes first, because it alone can be ragged, and with
it, where blocks of 64 are odd in number, an empty half: the first step alone pays for masks.

    tile 0: entry n-1, and n-2 if n is even, else nothing;  tile t: the next two.  An empty list is one empty tile.

Summaries. Where the launch has them (``summaries.py``), a row that is not full continues, in the same softmax, with
tiles of 128 summaries, all those of its head in order. The copying warp sends four words with each tile: a set bit
makes a logit minus infinity. The logarithm of the tokens of a block is subtracted from the reference, once a row; the
last block has fewer tokens if it is ragged, and then the last tile has its own code. The LSE of only the list is
written in between.

Memory. q, k, v and out are [B, H, L, D] views that the copy engine takes: last stride 1, the others multiples of
16 bytes. It fills rows past the end, and empty halves, with zeros; so P = 0 meets V = 0 there, never NaN. All boxes
are [64 rows, 64 columns], 128 bytes wide. A slot [128, D] is D / 64 panels of 128 rows of such boxes:

    box index = (slot * D / 64 + panel) * 2 + half

Ring. K and V tiles pass through one ring of ``SLOTS`` slots per team in the order in which they are used,

    K0  K1 V0  K2 V1  ...  K(T-1) V(T-2)  V(T-1)

and so on with the next query block, whose first tiles are being copied while the last one is finished. Both sides walk
the ring one slot at a time, hence one counter and one parity each; tests/kernels/test_hopper_ring.py plays all
interleavings. Every barrier of the ring expects one arrival of the copy engine (full) or one of each of the threads
that multiply (empty). So do those of the query block. Its buffer is released once the last scores are computed;
the output is then written through the slot of the last values. Two warpgroups that share their slots cannot do that:
their output goes through the buffer of the queries, before it is released.

Reference. Any number per row may be subtracted before the exponentials, as long as the weights neither overflow nor
vanish. The online softmax takes the largest score so far, which costs a comparison for each score, and a rescaling of
the output whenever it grows. Here (``FIXED``) it is the largest score of the first tile, raised by 32 in log2, and
stays. What falls below 2^-126 is flushed to zero: less than 2^-94 of the row's largest weight. Later scores may exceed
the first tile's by 96 in log2 (66 in natural units; 55 for a hundred thousand of them) before the sum of the weights
passes 2^64, which leaves the output room for values up to 2^63; values below 2^-94 lose digits. A row whose sum ends
out of bounds, or is NaN, is recorded, and a second launch recomputes it by the online softmax; if no row is,
it ends at once. float16, which lacks the range, takes the online softmax from the start.

Order of a step: issue S = Q K(i)^T, issue O += P V(i-1), wait for S, softmax, wait for O, (rescale,) wait for the
next tile. A barrier wait that is over at once stands between the softmax and the wait for O, because the assembler
would move the latter up. It is that of the queries: for another wait for a barrier of the ring Triton would synchronise
the warpgroup once more.

Pitfall. Triton (3.6, 3.7) makes one loop variable of two that begin as the same object: ``a = b`` before a loop that
changes both is compiled wrongly, without a message.

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

from adaspa_kernels.common import LOG2_E
from adaspa_kernels.hopper import BLOCK, BOX, THREADS, TILE, boxes, next_slot, seen_as, store_box
from adaspa_kernels.hopper_block_sparse_copy import (
    BATCH,
    COUNT,
    HEAD,
    LAST,
    POOLED_TILES,
    QUERY_BLOCK,
    RECORD_WORDS,
    ROW,
    copy_rows,
    told,
)
from adaspa_kernels.launch import run
from adaspa_kernels.schedule import kept_schedule
from adaspa_kernels.summaries import Summaries

RING_BYTES = 6 * 2 * BOX * 128 * 2  # of all teams: six slots of 128 x 128 numbers

_LN_2 = gl.constexpr(1 / LOG2_E)
_RAISED = gl.constexpr(32)  # log2, of the reference over the largest score of the first tile
# Of the sum of a row's weights. Below the first the reference was not the first tile's largest score: all of them were
# minus infinity, or so large that 32 is lost in rounding. Beyond the second, scores rose too far.
_LEAST_SUM, _LARGEST_SUM = gl.constexpr(2.0**-33), gl.constexpr(2.0**64)


@gluon.jit
def _parts(b_p):
    """Add up what each thread holds of a row, to four numbers: [64, 128] to [64, 16]. One would be a long chain."""
    # Rows are (warp, 2, lane / 4), columns (4, 4, lane % 4, 2), as the product leaves them.
    b_parts = b_p.reshape([4, 2, 8, 4, 4, 4, 2])
    return gl.sum(gl.sum(b_parts, 6), 4).reshape([BLOCK, 16])


@gluon.jit
def _part(b_parts):
    """Add up the four numbers of :func:`_parts`, [64, 16] to [64, 4]: summaries leave few registers."""
    return gl.sum(b_parts.reshape([BLOCK, 4, 4]), 1)


@gluon.jit
def _write_down(again, b_sum, row, count):
    """Put the row on the list of what is computed again, if a sum of its weights is out of bounds."""
    count_ptr, rows_ptr = again
    inside = (b_sum >= _LEAST_SUM) & (b_sum <= _LARGEST_SUM)
    if gl.max(gl.where(inside, 0, 1), 0) > 0:
        entry = row.to(gl.int64) + (count.to(gl.int64) << 32)
        gl.store(rows_ptr + gl.atomic_add(count_ptr, 1, sem="relaxed"), entry)


@gluon.jit
def _log_sum(b_max, b_sum):
    """The natural log-sum-exp of rows, [64]: minus infinity where nothing was added up."""
    return gl.where(b_sum == 0, float("-inf"), (b_max + gl.log2(gl.where(b_sum == 0, 1.0, b_sum))) * _LN_2)


# Columns of the scores as (word, 4, lane % 4, 2), as the product leaves them: a thread reads each word once.
_BITS_LAYOUT = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 0, 0, 1], [0, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0]],
        [[0, 0, 1, 0], [0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0]], [], [4, 4, 4, 2],
    )
)  # fmt: skip


@gluon.jit
def _load_words(words):
    """Four words of 128 summaries, [4, 1, 4, 1], moved so that a lane finds its bits at the same places as others."""
    words_layout: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, _BITS_LAYOUT)))
    lanes_layout: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(3, _BITS_LAYOUT)))
    b_words = words.load(words_layout)
    return b_words[:, None, None, None] >> (gl.arange(0, 4, lanes_layout) * 2)[None, None, :, None]


@gluon.jit
def _are_closed(b_words):
    """Which of the summaries are out of use, by their bits: bool [128], as columns of the scores."""
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    groups_layout: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, _BITS_LAYOUT)))
    pairs_layout: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, _BITS_LAYOUT)))
    b_groups = gl.arange(0, 4, groups_layout)[None, :, None, None]
    b_places = b_groups * 8 + gl.arange(0, 2, pairs_layout)[None, None, None, :]
    b_bits = (b_words & (1 << b_places)) != 0
    return gl.convert_layout(b_bits.reshape([TILE]), gl.SliceLayout(0, scores_layout))


@gluon.jit
def _step(
    state, b_queries, ragged, memory, slot, phase, q_phase, scale_log2,
    TEAM: gl.constexpr, READERS: gl.constexpr, SLOTS: gl.constexpr, D: gl.constexpr,
    dtype: gl.constexpr, FIXED: gl.constexpr, POOLED: gl.constexpr, RAGGED: gl.constexpr, FEW: gl.constexpr,
):  # fmt: skip
    """Issue the products of one tile's keys and of the values of the one before, and weigh the former.

    Here K(i) is in its slot, P of tile i-1 in registers. A ``POOLED`` tile is one of summaries; with ``RAGGED`` the
    one at ``ragged[0]`` has ``ragged[1]``, an addend of its score, for the tokens that its block lacks.
    """
    b_out, b_weights, b_sum, b_max = state
    tiles_ring, q_full, full, empty, words = memory
    BASE: gl.constexpr = TEAM * SLOTS
    # The logarithm of the tokens that a summary stands for.
    WORTH: gl.constexpr = 5.0 + READERS
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, out_layout, 2)
    out_row_layout: gl.constexpr = gl.SliceLayout(1, out_layout)
    no_scores = gl.zeros([BLOCK, TILE], gl.float32, scores_layout)

    k_slot = slot
    b_k = tiles_ring.index(BASE + k_slot).permute((1, 0))
    b_s = warpgroup_mma(b_queries, b_k, no_scores, use_acc=False, is_async=True)
    if POOLED:
        b_words = _load_words(words.index(BASE + k_slot))
    v_slot, phase = next_slot(slot, phase, SLOTS)
    mbarrier.wait(full.index(BASE + v_slot), phase)
    b_out = warpgroup_mma(b_weights, tiles_ring.index(BASE + v_slot), b_out, is_async=True)
    b_s = warpgroup_mma_wait(1, deps=[b_s])
    async_copy.mbarrier_arrive(empty.index(BASE + k_slot), increment_count=False)
    if RAGGED:
        key = gl.arange(0, TILE, gl.SliceLayout(0, scores_layout))
        b_s = gl.where((key == ragged[0])[None, :], b_s + ragged[1], b_s)
    if POOLED:
        b_s = gl.where(_are_closed(b_words)[None, :], float("-inf"), b_s)
    if FIXED:
        b_reference = b_max
        if POOLED:
            b_reference = b_max - WORTH
        # [64, 128]
        b_p = gl.exp2(b_s * scale_log2 - b_reference[:, None])
        # [64, 4], or [64, 16]
        b_sum = b_sum + (_part(_parts(b_p)) if FEW else _parts(b_p))
    else:
        # [64]
        b_largest = gl.max(b_s, 1) * scale_log2
        if POOLED:
            b_largest = b_largest + WORTH
        b_new_max = gl.maximum(b_max, b_largest)
        # [64]: finite also where all scores so far are minus infinity.
        b_finite = gl.where(b_new_max == float("-inf"), 0.0, b_new_max)
        b_reference = b_finite
        if POOLED:
            b_reference = b_finite - WORTH
        # [64, 128]
        b_p = gl.exp2(b_s * scale_log2 - b_reference[:, None])
        # [64]
        b_rescale = gl.exp2(b_max - b_finite)
        b_sum = b_sum * b_rescale + gl.sum(b_p, 1)
        b_max = b_new_max
    # The queries are there, so this wait is none; it keeps the assembler from moving the next one up.
    mbarrier.wait(q_full.index(TEAM), q_phase)
    b_out = warpgroup_mma_wait(0, deps=[b_out])
    async_copy.mbarrier_arrive(empty.index(BASE + v_slot), increment_count=False)
    if not FIXED:
        # [64, D]
        b_out = b_out * gl.convert_layout(b_rescale, out_row_layout)[:, None]
    b_weights = gl.convert_layout(b_p.to(dtype), weights_layout)
    # The next tile is K(i+1), or V(i) if this is the last step.
    slot, phase = next_slot(v_slot, phase, SLOTS)
    mbarrier.wait(full.index(BASE + slot), phase)
    return b_out, b_weights, b_sum, b_max, slot, phase


@gluon.jit
def _attend(
    targets, memory, sizes,
    TEAM: gl.constexpr, TEAMS: gl.constexpr, READER: gl.constexpr, READERS: gl.constexpr,
    SLOTS: gl.constexpr, D: gl.constexpr, dtype: gl.constexpr, FIXED: gl.constexpr, SUMMARIES: gl.constexpr,
    RAGGED: gl.constexpr,
):  # fmt: skip
    """A multiplying warpgroup of a team: 64 rows of each of its query blocks."""
    out_target, lse_ptr, again = targets
    q_boxes, q_full, q_empty, ring, full, empty, words, record = memory
    key_tokens, scale_log2, kept_offset, ragged = sizes
    PANELS: gl.constexpr = D // BLOCK
    BASE: gl.constexpr = TEAM * SLOTS
    PER_TILE: gl.constexpr = 2 // READERS
    PLACE: gl.constexpr = TEAM * READERS + READER
    rows_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, out_layout, 2)
    queries_layout: gl.constexpr = gl.DotOperandLayout(0, scores_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, scores_layout)
    out_row_layout: gl.constexpr = gl.SliceLayout(1, out_layout)

    b_q = seen_as(q_boxes, dtype, [TEAMS * READERS, BLOCK, D], rows_layout).index(PLACE)
    tiles_ring = seen_as(ring, dtype, [TEAMS * SLOTS, TILE, D], rows_layout)
    # The output of a team of one warpgroup leaves through the slot of its last values.
    slots_start = seen_as(ring, dtype, [TEAMS * SLOTS * 2, BLOCK, D], rows_layout)
    barriers = (tiles_ring, q_full, full, empty, words)
    no_scores = gl.zeros([BLOCK, TILE], gl.float32, scores_layout)
    key = gl.arange(0, TILE, gl.SliceLayout(0, scores_layout))

    slot = 0
    phase = 0
    q_phase = 0
    mbarrier.wait(q_full.index(TEAM), q_phase)
    count = told(record, TEAM, COUNT)
    while count >= 0:
        last = told(record, TEAM, LAST)
        tiles = gl.maximum((count + PER_TILE - 1) // PER_TILE, 1)
        # How many keys of the list's last block are real, and what else the first tile holds.
        real = gl.where(count > 0, gl.minimum(key_tokens - last * (TILE // PER_TILE), TILE // PER_TILE), 0)
        kept = key < real
        if PER_TILE == 2:
            kept = kept | ((key >= BLOCK) & (count > 0) & ((count & 1) == 0))

        mbarrier.wait(full.index(BASE + slot), phase)
        b_k = tiles_ring.index(BASE + slot).permute((1, 0))
        # Where registers are left for them, queries are read from shared memory once.
        b_queries = b_q
        if READERS == 2 and D == 128:
            b_queries = b_q.load(queries_layout)
        b_s = warpgroup_mma(b_queries, b_k, no_scores, use_acc=False, is_async=True)
        b_s = warpgroup_mma_wait(0, deps=[b_s])
        async_copy.mbarrier_arrive(empty.index(BASE + slot), increment_count=False)
        # [64, 128]
        b_s = gl.where(kept[None, :], b_s, float("-inf"))
        # [64], in units of log2
        b_max = gl.max(b_s, 1) * scale_log2
        # [64]: finite also where nothing is kept.
        b_reference = gl.where(b_max == float("-inf"), 0.0, b_max)
        if FIXED:
            b_reference = b_reference + _RAISED
        # [64, 128]
        b_p = gl.exp2(b_s * scale_log2 - b_reference[:, None])
        # [64, 16], or [64]
        b_sum = _parts(b_p) if FIXED else gl.sum(b_p, 1)
        if FIXED and SUMMARIES and TEAMS == 3:
            b_sum = _part(b_sum)
        b_weights = gl.convert_layout(b_p.to(dtype), weights_layout)
        b_out = gl.zeros([BLOCK, D], gl.float32, out_layout)
        slot, phase = next_slot(slot, phase, SLOTS)
        mbarrier.wait(full.index(BASE + slot), phase)

        if FIXED:
            b_max = b_reference
        for _ in range(1, tiles):
            b_out, b_weights, b_sum, b_max, slot, phase = _step(
                (b_out, b_weights, b_sum, b_max), b_queries, None, barriers, slot, phase, q_phase, scale_log2,
                TEAM, READERS, SLOTS, D, dtype, FIXED, False, False, SUMMARIES and TEAMS == 3,
            )  # fmt: skip
        row = told(record, TEAM, ROW)
        # Past the last query there is room for the rest of the block.
        lse_offset = (row.to(gl.int64) * READERS + READER) * BLOCK
        if SUMMARIES:
            if FIXED and TEAMS < 3:
                b_sum = _part(b_sum)
            b_kept = gl.convert_layout(gl.sum(b_sum, 1), row_layout) if FIXED else b_sum
            gl.store(lse_ptr + kept_offset + lse_offset + gl.arange(0, BLOCK, row_layout), _log_sum(b_max, b_kept))
            pooled_tiles = told(record, TEAM, POOLED_TILES)
            whole_tiles = pooled_tiles
            if RAGGED:
                whole_tiles = gl.maximum(pooled_tiles - 1, 0)
            for _ in range(whole_tiles):
                b_out, b_weights, b_sum, b_max, slot, phase = _step(
                    (b_out, b_weights, b_sum, b_max), b_queries, None, barriers, slot, phase, q_phase,
                    scale_log2, TEAM, READERS, SLOTS, D, dtype, FIXED, True, False, True,
                )  # fmt: skip
            if RAGGED:
                for _ in range(whole_tiles, pooled_tiles):
                    b_out, b_weights, b_sum, b_max, slot, phase = _step(
                        (b_out, b_weights, b_sum, b_max), b_queries, ragged, barriers, slot, phase, q_phase,
                        scale_log2, TEAM, READERS, SLOTS, D, dtype, FIXED, True, True, True,
                    )  # fmt: skip

        batch = told(record, TEAM, BATCH)
        head = told(record, TEAM, HEAD)
        first_row = (told(record, TEAM, QUERY_BLOCK) * READERS + READER) * BLOCK
        if READERS == 1:
            # All products that read the queries are done: those of the next row may come.
            async_copy.mbarrier_arrive(q_empty.index(TEAM), increment_count=False)
            q_phase = q_phase ^ 1
        b_out = warpgroup_mma(b_weights, tiles_ring.index(BASE + slot), b_out, is_async=True)
        b_out = warpgroup_mma_wait(0, deps=[b_out])
        if READERS == 2:
            async_copy.mbarrier_arrive(empty.index(BASE + slot), increment_count=False)

        if FIXED:
            # [64]
            b_sum = gl.convert_layout(gl.sum(b_sum, 1), row_layout)
            if SUMMARIES or count > 0:
                _write_down(again, b_sum, row, count)
        b_out = b_out / gl.convert_layout(gl.where(b_sum == 0, 1.0, b_sum), out_row_layout)[:, None]
        if READERS == 1:
            slots_start.index((BASE + slot) * 2).store(b_out.to(dtype))
        else:
            # All products that read the queries are done: their place takes the output.
            b_q.store(b_out.to(dtype))
        fence_async_shared()
        for panel in gl.static_range(PANELS):
            if READERS == 1:
                box = ring.index((BASE + slot) * PANELS * 2 + panel)
            else:
                box = q_boxes.index(PLACE * PANELS + panel)
            store_box(out_target, [batch, head, first_row, panel * BLOCK], box)
        gl.store(lse_ptr + lse_offset + gl.arange(0, BLOCK, row_layout), _log_sum(b_max, b_sum))
        tma.store_wait(0)
        if READERS == 1:
            async_copy.mbarrier_arrive(empty.index(BASE + slot), increment_count=False)
        else:
            async_copy.mbarrier_arrive(q_empty.index(TEAM), increment_count=False)
            q_phase = q_phase ^ 1
        slot, phase = next_slot(slot, phase, SLOTS)
        mbarrier.wait(q_full.index(TEAM), q_phase)
        count = told(record, TEAM, COUNT)


# Not specialised: a length of 1 would be a constant, and every length that 16 divides a kernel of its own. Nor are the
# strides of the lists, which are products of such lengths.
@gluon.jit(
    do_not_specialize=[
        "heads", "key_tokens", "query_blocks", "key_blocks", "items", "word_rows", "kept_offset", "ragged_place",
        "stride_ib", "stride_ih", "stride_iq",
    ]
)  # fmt: skip
def hopper_block_sparse_kernel(
    q_source, k_source, v_source, pooled_k, pooled_v, out_target, lse_ptr, order_ptr, indices_ptr,
    words_ptr, progress_ptr, again_ptr, stride_ib, stride_ih, stride_iq,
    heads, key_tokens, query_blocks, key_blocks, items, word_rows, kept_offset, ragged_place,
    scale_log2, ragged_worth,
    D: gl.constexpr, TEAMS: gl.constexpr, READERS: gl.constexpr, SLOTS: gl.constexpr, IN_STEP: gl.constexpr,
    FIXED: gl.constexpr, AGAIN: gl.constexpr, SUMMARIES: gl.constexpr, RAGGED: gl.constexpr,
):  # fmt: skip
    """Grid (programs). ``*_source``, ``pooled_*`` and ``out_target`` are descriptors of [1, 1, 64, 64] boxes.

    ``order_ptr`` holds the schedule (:mod:`adaspa_kernels.schedule`); ``progress_ptr`` two zeros, which become the
    numbers of rows taken and copied, and a third one, of rows to compute again. These go to
    ``again_ptr``, twice where both warpgroups of a team ask for it: two teams may then compute a row at one time, and
    write the same bytes. ``AGAIN`` is the launch that computes them, with that list as its schedule and two zeros more
    behind the third. Blocks are of 64 * READERS tokens.
    """
    again = (progress_ptr + 2, again_ptr)
    if AGAIN:
        items = gl.load(progress_ptr + 2)
        progress_ptr = progress_ptr + 3
    PANELS: gl.constexpr = D // BLOCK
    dtype: gl.constexpr = k_source.dtype
    boxes_layout: gl.constexpr = k_source.layout
    strides = (stride_ib, stride_ih, stride_iq)
    teams = gl.num_programs(0) * TEAMS

    q_boxes = gl.allocate_shared_memory(dtype, [TEAMS * READERS * PANELS, 1, 1, BLOCK, BLOCK], boxes_layout)
    ring = gl.allocate_shared_memory(dtype, [TEAMS * SLOTS * PANELS * 2, 1, 1, BLOCK, BLOCK], boxes_layout)
    q_full = gl.allocate_shared_memory(gl.int64, [TEAMS, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [TEAMS, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [TEAMS * SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [TEAMS * SLOTS, 1], mbarrier.MBarrierLayout())
    words = gl.allocate_shared_memory(gl.int32, [TEAMS * SLOTS, 4], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    record = gl.allocate_shared_memory(gl.int32, [TEAMS * RECORD_WORDS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    for team in gl.static_range(TEAMS):
        mbarrier.init(q_full.index(team), count=1)
        mbarrier.init(q_empty.index(team), count=READERS * THREADS)
    for slot in gl.static_range(TEAMS * SLOTS):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=READERS * THREADS)
    fence_async_shared()

    # What all roles share.
    memory = (q_boxes, q_full, q_empty, ring, full, empty, words, record)
    lists = (
        order_ptr, indices_ptr, strides, heads, query_blocks, key_blocks, items, progress_ptr, words_ptr, word_rows
    )  # fmt: skip
    sources = (q_source, k_source, v_source, pooled_k, pooled_v)
    targets = (out_target, lse_ptr, again)
    sizes = (key_tokens, scale_log2, kept_offset, (ragged_place, ragged_worth))
    if READERS == 2:
        gl.warp_specialize(
            [
                (_attend, (targets, memory, sizes, 0, 1, 0, 2, SLOTS, D, dtype, FIXED, SUMMARIES, RAGGED)),
                (_attend, (targets, memory, sizes, 0, 1, 1, 2, SLOTS, D, dtype, FIXED, SUMMARIES, RAGGED)),
                (copy_rows, (sources, memory, lists, teams, 0, 2, SLOTS, PANELS, IN_STEP, SUMMARIES)),
            ],
            [4, 1],
            [232, 40],
        )
    elif TEAMS == 2:
        gl.warp_specialize(
            [
                (_attend, (targets, memory, sizes, 0, 2, 0, 1, SLOTS, D, dtype, FIXED, SUMMARIES, RAGGED)),
                (_attend, (targets, memory, sizes, 1, 2, 0, 1, SLOTS, D, dtype, FIXED, SUMMARIES, RAGGED)),
                (copy_rows, (sources, memory, lists, teams, 0, 1, SLOTS, PANELS, IN_STEP, SUMMARIES)),
                (copy_rows, (sources, memory, lists, teams, 1, 1, SLOTS, PANELS, IN_STEP, SUMMARIES)),
            ],
            [4, 1, 1],
            [232, 40, 40],
        )
    else:
        gl.warp_specialize(
            [
                (_attend, (targets, memory, sizes, 0, 3, 0, 1, SLOTS, D, dtype, FIXED, SUMMARIES, RAGGED)),
                (_attend, (targets, memory, sizes, 1, 3, 0, 1, SLOTS, D, dtype, FIXED, SUMMARIES, RAGGED)),
                (_attend, (targets, memory, sizes, 2, 3, 0, 1, SLOTS, D, dtype, FIXED, SUMMARIES, RAGGED)),
                (copy_rows, (sources, memory, lists, teams, 0, 1, SLOTS, PANELS, IN_STEP, SUMMARIES)),
                (copy_rows, (sources, memory, lists, teams, 1, 1, SLOTS, PANELS, IN_STEP, SUMMARIES)),
                (copy_rows, (sources, memory, lists, teams, 2, 1, SLOTS, PANELS, IN_STEP, SUMMARIES)),
            ],
            [4, 4, 1, 1, 1],
            [160, 160, 32, 32, 32],
        )


def launch(
    q: Tensor, k: Tensor, v: Tensor, counts: Tensor, indices: Tensor, strides: tuple[int, ...],
    summaries: Summaries | None, *, key_blocks: int, block_size: tuple[int, int], scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Run the kernel on arguments that ``block_sparse.block_sparse_attention`` has checked.

    Two launches, but for float16: the second computes the rows that left the range of the first one's reference.

    Args:
        strides: of indices [B, H, Nq, ..], 0 for a batch that is shared.

    Returns:
        Output [B, H, Lq, D], whose ``transpose(1, 2)`` is contiguous, and the natural LSE, float32 [B, H, Lq], a view;
        with summaries the LSE of only the kept blocks comes third.
    """
    batch, heads, query_tokens, head_dim = q.shape
    query_blocks = triton.cdiv(query_tokens, block_size[0])
    options = launch_options(block_size[0], head_dim)
    rows = batch * heads * query_blocks
    programs = min(multiprocessors(q.device), triton.cdiv(rows, options["TEAMS"]))
    teams = programs * options["TEAMS"]
    order = kept_schedule(counts, (batch, heads, query_blocks), key_blocks, teams)
    out = torch.empty(batch, query_tokens, heads, head_dim, dtype=q.dtype, device=q.device).transpose(1, 2)
    # With summaries the LSE of the kept blocks comes behind that of all.
    parts = 1 if summaries is None else 2
    lse = torch.empty(parts, batch, heads, query_blocks * block_size[0], dtype=torch.float32, device=q.device)
    # Query blocks taken, copied and to compute again; of those, taken and copied.
    progress = torch.zeros(5, dtype=torch.int32, device=q.device)
    again = torch.empty(rows * options["READERS"], dtype=torch.int64, device=q.device)
    fixed = keeps_reference(q.dtype)
    pooled = (k, v) if summaries is None else (summaries.keys, summaries.values)
    words = progress if summaries is None else summaries.words
    word_rows = words.numel() // words.shape[-1]
    sources = tuple(boxes(x) for x in (q, k, v, *pooled, out))
    shapes = (
        *strides, heads, k.shape[2], query_blocks, key_blocks, rows, word_rows, lse.stride(0),
        (key_blocks - 1) % TILE.value,
        scale * LOG2_E, 0.0 if summaries is None else summaries.ragged_worth(k.shape[2]) / scale,
    )  # fmt: skip
    options |= {"SUMMARIES": summaries is not None, "RAGGED": summaries is not None and summaries.ragged(k.shape[2])}
    run(
        hopper_block_sparse_kernel, (programs,),
        *sources, lse, order, indices, words, progress, again, *shapes,
        D=head_dim, IN_STEP=keeps_step(k), FIXED=fixed, AGAIN=False, where=q, **options,
    )  # fmt: skip
    if fixed:
        run(
            hopper_block_sparse_kernel, (programs,),
            *sources, lse, again, indices, words, progress, again, *shapes,
            D=head_dim, IN_STEP=False, FIXED=False, AGAIN=True, where=q, **options,
        )  # fmt: skip
    return out, *lse[..., :query_tokens]


def keeps_step(k: Tensor) -> bool:
    """Whether the teams keep in step: where keys and values of a head are more than half of the L2 cache holds."""
    cache: int = getattr(torch.cuda.get_device_properties(k.device), "L2_cache_size")  # noqa: B009
    return 2 * k.shape[2] * k.shape[3] * k.element_size() > cache // 2


def keeps_reference(dtype: torch.dtype) -> bool:
    """Whether the reference of the exponentials stays: where weights have the range of float32."""
    return dtype != torch.float16


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU: the persistent grid has a program for each."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch_options(block: int, head_dim: int) -> dict[str, int]:
    """Teams, warpgroups of a team, slots of a team's ring, and registers.

    With two warpgroups 168 registers a thread for 384 threads are handed out as 232 and 40, with three 128 for 512
    threads as 160 and 32.
    """
    readers = block // BOX
    teams = 1 if readers == 2 else 2 if head_dim == 128 else 3
    slots = RING_BYTES // (2 * BOX * head_dim * 2) // teams
    return {
        "TEAMS": teams, "READERS": readers, "SLOTS": slots, "num_warps": 4, "maxnreg": 168 if teams < 3 else 128
    }  # fmt: skip
