"""The copying warp of a team: it takes rows, tells the team's warpgroups which, and fills the ring.

A role of the kernel in ``hopper_block_sparse.py``, which defines rows, tiles, summaries and the ring.

Record. Before a row's queries are full, the warp describes the row in shared memory (``_tell``); the warpgroups
read it (``told``) after their wait for the queries. The record is rewritten once they have released the queries.
The next row is taken, and looked up, before the last tiles of this one.

Rounds. Teams that read the same keys at one time find them in the L2 cache. Left to themselves they drift apart until a
third of the reads misses it; that costs power, and power is what limits these kernels (docs/kernel-notes.md). So a row
waits until as many rows are copied as the rounds before it hold; a round has one row for each team. A row much longer
than what follows in the schedule, such as one of text, counts as copied once it is taken. Where the keys and values of
a head fit into the cache, no team waits. No team waits for one that has not begun, so that a grid which is not resident
as a whole cannot hang.

Shapes: D head dimension.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from adaspa_kernels.hopper import BLOCK, TILE, load_box, next_slot

# Words of the record. A count of -1 ends a team's work.
COUNT, LAST, ROW, BATCH, HEAD, QUERY_BLOCK, POOLED_TILES = (gl.constexpr(place) for place in range(7))
RECORD_WORDS = gl.constexpr(7)

_TAKEN_BEFORE = gl.constexpr(4)  # tiles before the end of a row, the next one is taken


@gluon.jit
def _tell(record, TEAM: gl.constexpr, WORD: gl.constexpr, value):
    """Write a word of the team's record."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    record.index(TEAM * RECORD_WORDS + WORD).store(gl.full([1], value, gl.int32, layout))


@gluon.jit
def told(record, TEAM: gl.constexpr, WORD: gl.constexpr):
    """Read a word of the team's record."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    return gl.max(record.index(TEAM * RECORD_WORDS + WORD).load(layout), 0)


@gluon.jit
def _scheduled(lists, entry):
    """What an entry of the schedule says: row, batch, head, query block, count, list, whether it is read, and whether
    others wait for the row."""
    indices_ptr, strides, heads, query_blocks, key_blocks = lists[1:6]
    stride_ib, stride_ih, stride_iq = strides
    row = (entry & 0x7FFFFFFF).to(gl.int32)
    count = ((entry >> 32) & 0x3FFFFFFF).to(gl.int32)
    query_block = row % query_blocks
    head = (row // query_blocks) % heads
    batch = row // (query_blocks * heads)
    p_list = (
        indices_ptr
        + batch.to(gl.int64) * stride_ib + head.to(gl.int64) * stride_ih + query_block.to(gl.int64) * stride_iq
    )  # fmt: skip
    return row, batch, head, query_block, count, p_list, count < key_blocks, (entry >> 62) == 0


@gluon.jit
def _keep_step(progress_ptr, item, teams):
    """Wait until as many rows are copied, or not waited for, as stand before the round of ``item``."""
    enough = (item // teams) * teams
    copied = gl.load(progress_ptr + 1, volatile=True)
    while copied < enough:
        copied = gl.load(progress_ptr + 1, volatile=True)


@gluon.jit
def _tile_rows(p_list, count, listed, key_blocks, tile, tiles, PER_TILE: gl.constexpr):
    """First keys of the two halves of ``tile``; a key past the end for an empty half. Summaries follow one another."""
    past = key_blocks * (TILE // PER_TILE)
    if PER_TILE == 1:
        entry = count - 1 - tile
        there = (tile < tiles) & (entry >= 0)
        block = gl.where(listed, gl.load(p_list + entry, mask=listed & there, other=0).to(gl.int32), entry)
        row = gl.where(there, block * TILE, past)
        row = gl.where(tile >= tiles, (tile - tiles) * TILE, row)
        return row, row + BLOCK
    # All tiles after the first are moved by the entry that it lacks if the count is odd.
    moved = gl.where(tile > 0, count & 1, 0)
    first = count - 1 - 2 * tile + moved
    second = first - 1
    has_first = (tile < tiles) & (first >= 0)
    has_second = (tile < tiles) & (second >= 0) & ((tile > 0) | ((count & 1) == 0))
    first_block = gl.where(listed, gl.load(p_list + first, mask=listed & has_first, other=0).to(gl.int32), first)
    second_block = gl.where(listed, gl.load(p_list + second, mask=listed & has_second, other=0).to(gl.int32), second)
    first_row = gl.where(has_first, first_block * BLOCK, past)
    second_row = gl.where(has_second, second_block * BLOCK, past)
    pooled_row = (tile - tiles) * TILE
    return gl.where(tile >= tiles, pooled_row, first_row), gl.where(tile >= tiles, pooled_row + BLOCK, second_row)


@gluon.jit
def _gather(source, ring, full, slot, batch, head, first_row, second_row, PANELS: gl.constexpr):
    """Copy two times 64 rows of ``source`` to slot ``slot``."""
    barrier = full.index(slot)
    mbarrier.expect(barrier, PANELS * TILE * BLOCK * 2)
    for panel in gl.static_range(PANELS):
        box = (slot * PANELS + panel) * 2
        column = panel * BLOCK
        load_box(source, [batch, head, first_row, column], barrier, ring.index(box))
        load_box(source, [batch, head, second_row, column], barrier, ring.index(box + 1))


@gluon.jit
def _gather_tile(
    source, pooled, ring, full, slot, batch, head, first_row, second_row, is_pooled,
    PANELS: gl.constexpr, SUMMARIES: gl.constexpr,
):  # fmt: skip
    """Copy a tile to slot ``slot``: of ``pooled`` if it is one of summaries, of ``source`` if it is of the list."""
    if SUMMARIES:
        if is_pooled:
            _gather(pooled, ring, full, slot, batch, head, first_row, second_row, PANELS)
        else:
            _gather(source, ring, full, slot, batch, head, first_row, second_row, PANELS)
    else:
        _gather(source, ring, full, slot, batch, head, first_row, second_row, PANELS)


@gluon.jit
def _last_block(p_list, count, listed):
    """The last key block that a row keeps; -1 if it keeps none."""
    return gl.where(listed, gl.load(p_list + (count - 1), mask=listed & (count > 0), other=-1).to(gl.int32), count - 1)


@gluon.jit
def copy_rows(
    sources, memory, lists, teams,
    TEAM: gl.constexpr, READERS: gl.constexpr, SLOTS: gl.constexpr, PANELS: gl.constexpr, IN_STEP: gl.constexpr,
    SUMMARIES: gl.constexpr,
):  # fmt: skip
    """The copying warp of a team: takes query blocks, says which, and copies their queries and listed tiles."""
    q_source, k_source, v_source, pooled_k, pooled_v = sources
    q_boxes, q_full, q_empty, ring, full, empty, words, record = memory
    order_ptr = lists[0]
    key_blocks, items, progress_ptr, words_ptr, word_rows = lists[5:]
    BASE: gl.constexpr = TEAM * SLOTS
    PER_TILE: gl.constexpr = 2 // READERS
    slot = 0
    # Ring and queries start empty: the wait for the phase before the first one returns at once.
    phase = 1
    q_phase = 1
    item = gl.atomic_add(progress_ptr, 1, sem="relaxed")
    entry = gl.load(order_ptr + item, mask=item < items, other=0)
    while item < items:
        row, batch, head, query_block, count, p_list, listed, waited_for = _scheduled(lists, entry)
        if IN_STEP:
            if not waited_for:
                gl.atomic_add(progress_ptr + 1, 1, sem="relaxed")
            _keep_step(progress_ptr, item, teams)
        tiles = gl.maximum((count + PER_TILE - 1) // PER_TILE, 1)
        all_tiles = tiles
        if SUMMARIES:
            row_tiles = (key_blocks + TILE - 1) // TILE
            all_tiles = tiles + gl.where(listed, row_tiles, 0)
            p_words = words_ptr + (row % word_rows).to(gl.int64) * (row_tiles * 4)
        last = _last_block(p_list, count, listed)
        first, second = _tile_rows(p_list, count, listed, key_blocks, 0, tiles, PER_TILE)
        next_first, next_second = _tile_rows(p_list, count, listed, key_blocks, 1, tiles, PER_TILE)
        # The first keys before the queries, whose place is still in use.
        mbarrier.wait(empty.index(BASE + slot), phase)
        _gather(k_source, ring, full, BASE + slot, batch, head, first, second, PANELS)
        slot, phase = next_slot(slot, phase, SLOTS)
        mbarrier.wait(q_empty.index(TEAM), q_phase)
        q_phase = q_phase ^ 1
        _tell(record, TEAM, COUNT, count)
        _tell(record, TEAM, LAST, last)
        _tell(record, TEAM, ROW, row)
        _tell(record, TEAM, BATCH, batch)
        _tell(record, TEAM, HEAD, head)
        _tell(record, TEAM, QUERY_BLOCK, query_block)
        _tell(record, TEAM, POOLED_TILES, all_tiles - tiles)
        mbarrier.expect(q_full.index(TEAM), READERS * PANELS * BLOCK * BLOCK * 2)
        for reader in gl.static_range(READERS):
            for panel in gl.static_range(PANELS):
                load_box(
                    q_source, [batch, head, (query_block * READERS + reader) * BLOCK, panel * BLOCK],
                    q_full.index(TEAM), q_boxes.index((TEAM * READERS + reader) * PANELS + panel),
                )  # fmt: skip
        # The next row is taken, and looked up, before this one ends: otherwise both latencies would be idle time.
        taken_at = gl.maximum(all_tiles - _TAKEN_BEFORE, 1)
        found_at = gl.minimum(taken_at + 2, all_tiles)
        next_item = items + 0
        next_entry = entry + 0
        for tile in range(1, all_tiles + 1):
            # One tile ahead, so that the lists' latency passes while the warp waits for slots.
            after_first, after_second = _tile_rows(p_list, count, listed, key_blocks, tile + 1, tiles, PER_TILE)
            if tile < all_tiles:
                if SUMMARIES:
                    # All lanes hold all of the words, so that the one that says the tile is coming has stored them.
                    four = gl.arange(0, 4, gl.BlockedLayout([4], [32], [1], [0]))
                    b_words = gl.load(p_words + (tile - tiles) * 4 + four, mask=tile >= tiles, other=0)
                mbarrier.wait(empty.index(BASE + slot), phase)
                if SUMMARIES:
                    words.index(BASE + slot).store(b_words)
                _gather_tile(
                    k_source, pooled_k, ring, full, BASE + slot, batch, head, next_first, next_second, tile >= tiles,
                    PANELS, SUMMARIES,
                )  # fmt: skip
                slot, phase = next_slot(slot, phase, SLOTS)
            mbarrier.wait(empty.index(BASE + slot), phase)
            _gather_tile(
                v_source, pooled_v, ring, full, BASE + slot, batch, head, first, second, tile > tiles,
                PANELS, SUMMARIES,
            )  # fmt: skip
            slot, phase = next_slot(slot, phase, SLOTS)
            first = next_first
            second = next_second
            next_first = after_first
            next_second = after_second
            if tile == taken_at:
                next_item = gl.atomic_add(progress_ptr, 1, sem="relaxed")
            if tile == found_at:
                next_entry = gl.load(order_ptr + next_item, mask=next_item < items, other=0)
        if waited_for and IN_STEP:
            gl.atomic_add(progress_ptr + 1, 1, sem="relaxed")
        item = next_item
        entry = next_entry
    mbarrier.wait(q_empty.index(TEAM), q_phase)
    _tell(record, TEAM, COUNT, -1)
    mbarrier.arrive(q_full.index(TEAM), count=1)
