"""Counts over rows of block sums or scores: how many values exceed some thresholds, and how much a mask keeps.

Both read each row once and write a few numbers, where PyTorch would write a tensor of the size of all rows at every
step. A budget over a layer counts a few times, to find one threshold for all rows.

Memory. Rows are float32 [H, Nq, Nk]; the last stride is 1, the others are any. A *key* is a score's bits as an integer,
as in ``selection.py``. One program holds one row in registers.

Shapes: H heads, Nq and Nk query and key blocks, R of the former without text, T thresholds, K width of the lists.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaspa_kernels.launch import check_lists, run
from adaspa_kernels.selection import check_blocks, launch_options, load_row

CHUNK = 256

_INFINITY_KEY = tl.constexpr(0x7F800000)


@triton.jit
def count_above_kernel(
    scores_ptr, thresholds_ptr, counts_ptr, stride_h, stride_q, key_blocks, first_row, first_video, end_video, tried,
    N: tl.constexpr,
):  # fmt: skip
    """Grid (R, H)."""
    row, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows, heads = tl.num_programs(0), tl.num_programs(1)
    p_row = scores_ptr + head * stride_h + (first_row + row).to(tl.int64) * stride_q
    # [N]
    _, b_key, _ = load_row(p_row, key_blocks, first_video, end_video, N)
    b_key = tl.minimum(b_key, _INFINITY_KEY)
    p_count = counts_ptr + head * rows + row
    for place in tl.range(0, tried):
        threshold = tl.load(thresholds_ptr + place)
        above = tl.sum((b_key > threshold).to(tl.int32), 0)
        tl.store(p_count, above)
        p_count += heads.to(tl.int64) * rows


def count_above(scores: Tensor, rows: range, columns: range, thresholds: Tensor) -> Tensor:
    """Count the video blocks of each row whose key is above each threshold.

    Args:
        scores: float32 [H, Nq, Nk], not negative; the bits of a score, as an integer, are its key. NaN counts as
            infinity.
        rows, columns: the query and key blocks of video, without text; neither is empty.
        thresholds: int32 [T], contiguous, each at least -1.

    Returns:
        int32 [T, H, R].

    Raises:
        ValueError: device, dtype, shape, stride or range is not one of these, or Nk is above ``MAX_SELECTED_BLOCKS``.
    """
    check_blocks(scores[None], rows, columns)
    if thresholds.dim() != 1 or thresholds.dtype != torch.int32 or not thresholds.is_contiguous():
        raise ValueError(f"thresholds must be contiguous int32 [T], got {thresholds.dtype} {tuple(thresholds.shape)}")
    if thresholds.device != scores.device:
        raise ValueError(f"thresholds must be on {scores.device}, got {thresholds.device}")
    heads, _, key_blocks = scores.shape
    counts = torch.empty(len(thresholds), heads, len(rows), dtype=torch.int32, device=scores.device)
    run(
        count_above_kernel, (len(rows), heads),
        scores, thresholds, counts, *scores.stride()[:2], key_blocks, rows.start, columns.start, columns.stop,
        len(thresholds), where=scores, **launch_options(key_blocks),
    )  # fmt: skip
    return counts


@triton.jit
def listed_mass_kernel(
    sums_ptr, counts_ptr, indices_ptr, kept_ptr, total_ptr, stride_h, stride_q, key_blocks, width,
    N: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Grid (Nq, H)."""
    row, head = tl.program_id(0), tl.program_id(1)
    place = head.to(tl.int64) * tl.num_programs(0) + row
    p_row = sums_ptr + head.to(tl.int64) * stride_h + row.to(tl.int64) * stride_q
    columns = tl.arange(0, N)
    # [N]
    b_sums = tl.load(p_row + columns, mask=columns < key_blocks, other=0.0)
    total = tl.sum(b_sums, 0)
    count = tl.load(counts_ptr + place)
    # A full row has no list, and keeps its total.
    # [CHUNK]
    b_kept = tl.zeros([CHUNK], tl.float32)
    for start in tl.range(0, tl.where(count < key_blocks, count, 0), CHUNK):
        slots = start + tl.arange(0, CHUNK)
        inside = slots < count
        # [CHUNK]
        b_list = tl.load(indices_ptr + place * width + slots, mask=inside, other=0).to(tl.int32)
        b_kept += tl.load(p_row + b_list, mask=inside, other=0.0)
    tl.store(kept_ptr + place, tl.where(count < key_blocks, tl.sum(b_kept, 0), total))
    tl.store(total_ptr + place, total)


def listed_mass(block_sums: Tensor, counts: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """What each row keeps of its block sums, and their sum, float32 [H, Nq] each.

    Args:
        block_sums: W, float32 [H, Nq, Nk].
        counts: int32 [H, Nq], contiguous; a row whose count is Nk keeps everything and has no list.
        indices: int16 or int32 [H, Nq, K], contiguous.

    Raises:
        ValueError: device, dtype, shape or stride is not one of these.
    """
    heads, query_blocks, key_blocks = block_sums.shape
    check_blocks(block_sums[None], range(query_blocks), range(key_blocks))
    check_lists(counts, indices, block_sums.device)
    if counts.shape != block_sums.shape[:2] or not counts.is_contiguous() or not indices.is_contiguous():
        raise ValueError(
            f"lists do not fit block sums {tuple(block_sums.shape)}, or are not contiguous: {tuple(counts.shape)} and "
            f"{tuple(indices.shape)} with strides {counts.stride()} and {indices.stride()}"
        )
    kept, total = (torch.empty(counts.shape, dtype=torch.float32, device=counts.device) for _ in range(2))
    run(
        listed_mass_kernel, (query_blocks, heads),
        block_sums, counts, indices, kept, total, *block_sums.stride()[:2], key_blocks, indices.shape[-1],
        CHUNK=CHUNK, where=block_sums, **launch_options(key_blocks),
    )  # fmt: skip
    return kept, total
