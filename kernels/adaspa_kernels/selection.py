"""From block sums to index lists: each query row keeps its heaviest video blocks, and all blocks with text.

Maths. A row keeps the k heaviest of its video blocks; of equal ones those of the lowest index (AdaSpa, arXiv
2502.21079, row-wise selection with text sink). Nothing is sorted: weights are not negative, so their bits, read as
integers, are in the same order (the *keys*), and bisection of the keys finds a threshold t with

    #(key > t) <= k <= #(key >= t).

What is above t is kept, and of what equals t the first k - #(key > t): the *ties*. Bisection ends as soon as exactly
k keys reach the middle, after at most 31 halvings in any case. NaN counts as the heaviest weight.

Two kernels, because how many blocks a head keeps depends on the recall of all heads: :func:`weigh_rows` finds
thresholds, and the mass that they keep, for every candidate k; :func:`pack_rows` writes the lists of the one chosen.

Memory. W is float32 [B, H, Nq, Nk] of any strides but the last, which is 1; it is read once by each kernel. One program
holds one query row in registers, ``KEYS_PER_THREAD`` keys a thread.

Shapes: B batch, H heads, Nq and Nk query and key blocks, C candidates, K width of the lists, N = Nk padded to a power
of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaspa_kernels.launch import run, selection_unavailable

KEYS_PER_THREAD = 64

_NAN_KEY = tl.constexpr(0x7FC00000)


@dataclass(frozen=True)
class WeighedRows:
    """What :func:`weigh_rows` found for each candidate; text rows have no threshold and no ties.

    Attributes:
        candidates: numbers of video blocks that a row may keep, as they were given.
        total: mass of each row, float32 [B, H, Nq].
        kept: mass of its kept blocks, text included, float32 [C, B, H, Nq].
        threshold: key that separates kept from left-out blocks, int32 [C, B, H, Nq].
        ties: how many of the blocks at the threshold are kept, int32 [C, B, H, Nq].
    """

    candidates: tuple[int, ...]
    total: Tensor
    kept: Tensor
    threshold: Tensor
    ties: Tensor


@triton.jit
def _row_of_program(sums_ptr, stride_b, stride_h, stride_q):
    return (
        sums_ptr
        + tl.program_id(2).to(tl.int64) * stride_b
        + tl.program_id(1).to(tl.int64) * stride_h
        + tl.program_id(0).to(tl.int64) * stride_q
    )


@triton.jit
def load_row(p_row, key_blocks, first_video, end_video, N: tl.constexpr):
    """Weights of a row, [N], their keys (-1 where there is no video block), and where video stands."""
    columns = tl.arange(0, N)
    b_weight = tl.load(p_row + columns, mask=columns < key_blocks, other=0.0)
    video = (columns >= first_video) & (columns < end_video)
    b_key = tl.maximum(b_weight.to(tl.int32, bitcast=True), 0)
    b_key = tl.where(b_weight != b_weight, _NAN_KEY, b_key)
    return b_weight, tl.where(video, b_key, -1), video


@triton.jit
def _find_threshold(b_key, kept, low, high):
    """Bisect [low, high] for a key t with #(key > t) <= kept <= #(key >= t); ``low`` is reached by enough keys."""
    while low < high:
        middle = low + ((high - low + 1) >> 1)
        reached = tl.sum((b_key >= middle).to(tl.int32), 0)
        low = tl.where(reached >= kept, middle, low)
        high = tl.where(reached > kept, high, tl.where(reached == kept, middle, middle - 1))
    return low


@triton.jit
def _store_candidate(kept_ptr, threshold_ptr, ties_ptr, offset, b_key, threshold, kept, text_mass):
    above = b_key > threshold
    ties = kept - tl.sum(above.to(tl.int32), 0)
    # A key that is not negative is its weight.
    mass = text_mass + tl.sum(tl.where(above, b_key.to(tl.float32, bitcast=True), 0.0), 0)
    # An infinite threshold without ties would give 0 * inf.
    mass += tl.where(ties > 0, ties * threshold.to(tl.float32, bitcast=True), 0.0)
    tl.store(kept_ptr + offset, mass)
    tl.store(threshold_ptr + offset, threshold)
    tl.store(ties_ptr + offset, ties)


@triton.jit
def weigh_rows_kernel(
    sums_ptr, total_ptr, kept_ptr, threshold_ptr, ties_ptr, stride_b, stride_h, stride_q,
    key_blocks, first_row, end_row, first_video, end_video, fewest, base, most,
    N: tl.constexpr, ADAPTIVE: tl.constexpr,
):  # fmt: skip
    """Grid (Nq, H, B). Candidates ``fewest``, ``base``, ``most`` with ADAPTIVE, ``base`` alone without."""
    row, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows, heads, batches = tl.num_programs(0), tl.num_programs(1), tl.num_programs(2)
    offset = (batch.to(tl.int64) * heads + head) * rows + row
    per_candidate = batches.to(tl.int64) * heads * rows

    p_row = _row_of_program(sums_ptr, stride_b, stride_h, stride_q)
    b_weight, b_key, video = load_row(p_row, key_blocks, first_video, end_video, N)
    total = tl.sum(b_weight, 0)
    tl.store(total_ptr + offset, total)
    if (row < first_row) | (row >= end_row):
        tl.store(kept_ptr + offset, total)
        if ADAPTIVE:
            tl.store(kept_ptr + per_candidate + offset, total)
            tl.store(kept_ptr + 2 * per_candidate + offset, total)
    else:
        text_mass = tl.sum(tl.where(video, 0.0, b_weight), 0)
        lightest = tl.min(tl.where(video, b_key, _NAN_KEY), 0)
        heaviest = tl.max(b_key, 0)
        threshold = _find_threshold(b_key, base, lightest, heaviest)
        if ADAPTIVE:
            # Fewer blocks need no lower threshold, and more no higher one.
            upper = _find_threshold(b_key, fewest, threshold, heaviest)
            _store_candidate(kept_ptr, threshold_ptr, ties_ptr, offset, b_key, upper, fewest, text_mass)
            lower = _find_threshold(b_key, most, lightest, threshold)
            last = offset + 2 * per_candidate
            _store_candidate(kept_ptr, threshold_ptr, ties_ptr, last, b_key, lower, most, text_mass)
            offset += per_candidate
        _store_candidate(kept_ptr, threshold_ptr, ties_ptr, offset, b_key, threshold, base, text_mass)


@triton.jit
def pack_rows_kernel(
    sums_ptr, chosen_ptr, threshold_ptr, ties_ptr, counts_ptr, indices_ptr, stride_b, stride_h, stride_q,
    key_blocks, first_row, end_row, first_video, end_video, first_candidate, second_candidate, width,
    N: tl.constexpr,
):  # fmt: skip
    """Grid (Nq, H, B). ``indices`` is zero before; text rows leave theirs so."""
    row, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows, heads, batches = tl.num_programs(0), tl.num_programs(1), tl.num_programs(2)
    offset = (batch.to(tl.int64) * heads + head) * rows + row
    per_candidate = batches.to(tl.int64) * heads * rows

    if (row < first_row) | (row >= end_row):
        tl.store(counts_ptr + offset, key_blocks)
    else:
        chosen = tl.load(chosen_ptr + batch * heads + head).to(tl.int32)
        candidate = tl.where(chosen == first_candidate, 0, tl.where(chosen == second_candidate, 1, 2))
        threshold = tl.load(threshold_ptr + candidate * per_candidate + offset)
        ties = tl.load(ties_ptr + candidate * per_candidate + offset)
        p_row = _row_of_program(sums_ptr, stride_b, stride_h, stride_q)
        _, b_key, video = load_row(p_row, key_blocks, first_video, end_video, N)
        columns = tl.arange(0, N)
        above = (b_key > threshold) | ((columns < key_blocks) & ~video)
        equal = b_key == threshold
        # [N]: one scan counts both: blocks above before this one in the lower half, equal ones in the upper half.
        b_flags = above.to(tl.int32) | (equal.to(tl.int32) << 16)
        b_before = tl.cumsum(b_flags, 0) - b_flags
        equal_before = b_before >> 16
        slot = (b_before & 0xFFFF) + tl.minimum(equal_before, ties)
        kept = above | (equal & (equal_before < ties))
        p_list = indices_ptr + offset * width
        tl.store(p_list + slot, columns.to(indices_ptr.dtype.element_ty), mask=kept)
        tl.store(counts_ptr + offset, chosen + key_blocks - (end_video - first_video))


def weigh_rows(block_sums: Tensor, rows: range, columns: range, candidates: tuple[int, ...]) -> WeighedRows:
    """Find what each query row keeps, for one number of video blocks or for three.

    Args:
        block_sums: W, float32 [B, H, Nq, Nk], not negative; any strides but the last, which is 1.
        rows, columns: the query and key blocks of video, without text; neither is empty.
        candidates: one number of video blocks that a row may keep, or three that do not descend; from 1 to all.

    Returns:
        Masses, thresholds and ties of each candidate.

    Raises:
        ValueError: device, dtype, shape, stride or range is not one of these, or Nk is above
            ``MAX_SELECTED_BLOCKS``.
    """
    check_blocks(block_sums, rows, columns)
    in_order = (1, *candidates, len(columns))
    if len(candidates) not in (1, 3) or any(a > b for a, b in pairwise(in_order)):
        raise ValueError(f"candidates must be 1 or 3 numbers that ascend from 1 to {len(columns)}, got {candidates}")
    batch, heads, query_blocks, key_blocks = block_sums.shape
    total = torch.empty(batch, heads, query_blocks, dtype=torch.float32, device=block_sums.device)
    kept = torch.empty(len(candidates), *total.shape, dtype=torch.float32, device=total.device)
    threshold = torch.empty(kept.shape, dtype=torch.int32, device=total.device)
    ties = torch.empty(kept.shape, dtype=torch.int32, device=total.device)
    run(
        weigh_rows_kernel, (query_blocks, heads, batch),
        block_sums, total, kept, threshold, ties, *block_sums.stride()[:3],
        key_blocks, rows.start, rows.stop, columns.start, columns.stop,
        candidates[0], candidates[len(candidates) // 2], candidates[-1],
        ADAPTIVE=len(candidates) == 3, where=block_sums, **launch_options(key_blocks),
    )  # fmt: skip
    return WeighedRows(candidates, total, kept, threshold, ties)


def pack_rows(
    block_sums: Tensor, rows: range, columns: range, weighed: WeighedRows, chosen: Tensor, index_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Write the lists of kept key blocks, ascending, text included.

    Args:
        block_sums, rows, columns: as given to :func:`weigh_rows`.
        weighed: what it returned.
        chosen: integers [B, H], contiguous: the candidate of each head.
        index_dtype: int16 or int32.

    Returns:
        Counts int32 [B, H, Nq] and indices [B, H, Nq, K], zero past the count, K being the largest candidate and all
        text blocks. Rows of text count Nk and have no list.

    Raises:
        ValueError: as :func:`weigh_rows`, or ``chosen`` does not fit.
    """
    check_blocks(block_sums, rows, columns)
    batch, heads, query_blocks, key_blocks = block_sums.shape
    if chosen.shape != (batch, heads) or chosen.is_floating_point() or not chosen.is_contiguous():
        raise ValueError(
            f"chosen must be contiguous integers {(batch, heads)}, got {chosen.dtype} {tuple(chosen.shape)}"
        )
    if chosen.device != block_sums.device:
        raise ValueError(f"chosen must be on {block_sums.device}, got {chosen.device}")
    width = max(weighed.candidates) + key_blocks - len(columns)
    counts = torch.empty(batch, heads, query_blocks, dtype=torch.int32, device=block_sums.device)
    indices = torch.zeros(*counts.shape, width, dtype=index_dtype, device=block_sums.device)
    run(
        pack_rows_kernel, (query_blocks, heads, batch),
        block_sums, chosen, weighed.threshold, weighed.ties, counts, indices, *block_sums.stride()[:3],
        key_blocks, rows.start, rows.stop, columns.start, columns.stop,
        weighed.candidates[0], weighed.candidates[len(weighed.candidates) // 2], width,
        where=block_sums, **launch_options(key_blocks),
    )  # fmt: skip
    return counts, indices


def launch_options(key_blocks: int) -> dict[str, int]:
    """Padded row and warps. Up to 2,048 blocks one warp a row: its sums need no shared memory and no barrier."""
    padded = triton.next_power_of_2(key_blocks)
    return {"N": padded, "num_warps": max(1, padded // (32 * KEYS_PER_THREAD))}


def check_blocks(block_sums: Tensor, rows: range, columns: range) -> None:
    """Raise ValueError unless the kernels take W [B, H, Nq, Nk], and rows and columns are some of its blocks."""
    if reason := selection_unavailable(block_sums):
        raise ValueError(f"the selection kernels cannot run: {reason}")
    if block_sums.dim() != 4:
        raise ValueError(f"block sums must be [B, H, Nq, Nk], got {tuple(block_sums.shape)}")
    query_blocks, key_blocks = block_sums.shape[2:]
    for name, part, whole in (("rows", rows, query_blocks), ("columns", columns, key_blocks)):
        if not 0 <= part.start < part.stop <= whole or part.step != 1:
            raise ValueError(f"{name} must be some of the {whole} blocks, got {part}")
