"""Block masks from one form to another: index lists, one bool a block, one bit a block.

Memory. A mask has R rows of Nk key blocks. *Flags* are bool [R, Nk], or *words*, int32 [R, ceil(Nk / 32)]: key block j
is bit j % 32, from the lowest, of word j // 32. Lists are counts, int32 [R], and indices, int16 or int32 [R, K],
ascending, zero past the count; a row whose count is Nk keeps everything and has no list. All of it is contiguous.

One program converts one row, ``CHUNK`` blocks at a time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaspa_kernels.launch import check_device, check_lists, run

CHUNK = 1024
WORD_BITS = 32


@triton.jit
def _load_flags(flags_ptr, row, blocks, key_blocks, WORDS: tl.constexpr):
    """Which of ``blocks`` are kept in ``row``, int32 0 or 1; 0 past the end."""
    inside = blocks < key_blocks
    if WORDS:
        p_row = flags_ptr + row * tl.cdiv(key_blocks, 32)
        # The shift of a negative word drags its sign along: one bit is left of it.
        return (tl.load(p_row + blocks // 32, mask=inside, other=0) >> (blocks % 32)) & 1
    return tl.load(flags_ptr + row * key_blocks + blocks, mask=inside, other=0).to(tl.int32)


@triton.jit
def count_flags_kernel(flags_ptr, counts_ptr, key_blocks, WORDS: tl.constexpr, CHUNK: tl.constexpr):
    """Grid (R,)."""
    row = tl.program_id(0).to(tl.int64)
    # [CHUNK]
    b_counts = tl.zeros([CHUNK], tl.int32)
    for start in tl.range(0, key_blocks, CHUNK):
        b_counts += _load_flags(flags_ptr, row, start + tl.arange(0, CHUNK), key_blocks, WORDS)
    tl.store(counts_ptr + row, tl.sum(b_counts, 0))


@triton.jit
def list_flags_kernel(
    flags_ptr, counts_ptr, indices_ptr, key_blocks, width, WORDS: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """Grid (R,). ``indices`` is zero before."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(counts_ptr + row) < key_blocks:
        listed = 0
        for start in tl.range(0, key_blocks, CHUNK):
            blocks = start + tl.arange(0, CHUNK)
            # [CHUNK]
            b_flags = _load_flags(flags_ptr, row, blocks, key_blocks, WORDS)
            slots = listed + tl.cumsum(b_flags, 0) - b_flags
            p_list = indices_ptr + row * width + slots
            tl.store(p_list, blocks.to(indices_ptr.dtype.element_ty), mask=(b_flags == 1) & (slots < width))
            listed += tl.sum(b_flags, 0)


@triton.jit
def flag_lists_kernel(
    counts_ptr, indices_ptr, flags_ptr, key_blocks, width, WORDS: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """Grid (R,). ``flags`` is zero before. Words are shared by threads, so bits are set atomically."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts_ptr + row)
    listed = tl.where(count < key_blocks, count, 0)  # a full row has no list
    for start in tl.range(0, count, CHUNK):
        slots = start + tl.arange(0, CHUNK)
        inside = slots < count
        # [CHUNK]
        b_list = tl.load(indices_ptr + row * width + slots, mask=slots < listed, other=0).to(tl.int32)
        blocks = tl.where(count < key_blocks, b_list, slots)
        if WORDS:
            p_word = flags_ptr + row * tl.cdiv(key_blocks, 32) + blocks // 32
            tl.atomic_or(p_word, 1 << (blocks % 32), mask=inside, sem="relaxed")
        else:
            tl.store(flags_ptr + row * key_blocks + blocks, 1, mask=inside)


def count_flags(flags: Tensor, key_blocks: int) -> Tensor:
    """Count the kept blocks of each row: int32 [R] of flags, bool [R, Nk] or words.

    Raises:
        ValueError: device, dtype, shape or stride is not one of these.
    """
    _check_flags(flags, key_blocks)
    counts = torch.empty(flags.shape[0], dtype=torch.int32, device=flags.device)
    _launch(count_flags_kernel, flags, _bytes(flags), counts, key_blocks)
    return counts


def list_flags(flags: Tensor, counts: Tensor, key_blocks: int, width: int, index_dtype: torch.dtype) -> Tensor:
    """Write the indices [R, ``width``] of flags whose rows hold ``counts`` blocks.

    A row of more than ``width`` blocks that is not full is cut off: the caller has to exclude it.

    Raises:
        ValueError: device, dtype, shape or stride is not one of these.
    """
    _check_flags(flags, key_blocks)
    indices = torch.zeros(flags.shape[0], width, dtype=index_dtype, device=flags.device)
    _check_lists(counts, indices)
    _launch(list_flags_kernel, flags, _bytes(flags), counts, indices, key_blocks, width)
    return indices


def flag_lists(counts: Tensor, indices: Tensor, key_blocks: int, *, words: bool) -> Tensor:
    """Write the flags of lists: bool [R, Nk], or words with their unused bits zero.

    Raises:
        ValueError: device, dtype, shape or stride is not one of these.
    """
    check_device(counts.device)
    _check_lists(counts, indices)
    shape = (len(counts), triton.cdiv(key_blocks, WORD_BITS) if words else key_blocks)
    flags = torch.zeros(shape, dtype=torch.int32 if words else torch.bool, device=counts.device)
    _launch(flag_lists_kernel, flags, counts, indices, _bytes(flags), key_blocks, indices.shape[1])
    return flags


def _launch(kernel: Any, flags: Tensor, *args: Tensor | int) -> None:
    """One program a row; none for a mask without rows, which a grid cannot be."""
    if flags.shape[0]:
        words = flags.dtype == torch.int32
        run(kernel, (flags.shape[0],), *args, WORDS=words, CHUNK=CHUNK, num_warps=4, where=flags)


def _bytes(flags: Tensor) -> Tensor:
    """Words as they are, bools as bytes of 0 and 1."""
    return flags.view(torch.uint8) if flags.dtype == torch.bool else flags


def _check_flags(flags: Tensor, key_blocks: int) -> None:
    check_device(flags.device)
    widths = {torch.bool: key_blocks, torch.int32: triton.cdiv(key_blocks, WORD_BITS)}
    if flags.dim() != 2 or widths.get(flags.dtype) != flags.shape[1] or not flags.is_contiguous():
        raise ValueError(
            f"flags of {key_blocks} key blocks must be contiguous, bool [R, {key_blocks}] or int32 "
            f"[R, {widths[torch.int32]}], got {flags.dtype} {tuple(flags.shape)} with strides {flags.stride()}"
        )


def _check_lists(counts: Tensor, indices: Tensor) -> None:
    check_lists(counts, indices, counts.device)
    if counts.dim() != 1:
        raise ValueError(f"counts must be [R] and indices [R, K], got {tuple(counts.shape)} and {tuple(indices.shape)}")
    if not counts.is_contiguous() or not indices.is_contiguous():
        raise ValueError(f"counts and indices must be contiguous, got strides {counts.stride()}, {indices.stride()}")
