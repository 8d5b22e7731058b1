"""Summaries of key blocks: one key and one value for each, which represent its tokens where a mask leaves it out.

Maths. Block j of n_j tokens has the mean key k̄_j and the mean value v̄_j. A query row that leaves it out sees one key
of logit q k̄_j * scale + log n_j in its place. ``block_sparse_attention`` takes these in the same softmax as the blocks
that the row keeps, so that there is nothing to merge, and its log-sum-exp is that of both.

Memory. Keys and values of the summaries are [B, H, Nk, D], contiguous, in the dtype of k. *Words* say which summaries a
query block does not use: bit j % 32 of word j // 32, from the lowest, is set where the row keeps block j, where j is
no block of video, and past the end. A row has four words for each 128 blocks.

Shapes: B batch, H heads, L tokens, D head dimension, Nq and Nk blocks, BK tokens of a key block, R rows, W words a row.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaspa_kernels.launch import BLOCK_SIZES, check_device, check_lists, check_tensors, run

CHUNK = 256
SUMMARIES_PER_TILE = 128
_WORDS_PER_TILE = SUMMARIES_PER_TILE // 32


@dataclass(frozen=True)
class Summaries:
    """What :func:`summarise` gives.

    Attributes:
        keys, values: means of each key block, [B, H, Nk, D].
        words: which summaries a row does not use, int32 [*, H, Nq, W], * as in the mask's counts.
        video: key blocks whose summaries may be used.
        block: tokens of a key block.
    """

    keys: Tensor
    values: Tensor
    words: Tensor
    video: range
    block: int

    def ragged(self, key_tokens: int) -> bool:
        """Whether the last summary may be used and stands for fewer tokens than the others."""
        return key_tokens % self.block != 0 and self.video.stop == self.keys.shape[2]

    def ragged_worth(self, key_tokens: int) -> float:
        """What to add to the logit of the last summary: log(n / BK) for a ragged block of n tokens, else 0."""
        return math.log(key_tokens % self.block / self.block) if self.ragged(key_tokens) else 0.0


@triton.jit
def _block_mean(x_ptr, means_ptr, stride_b, stride_h, stride_l, tokens, BLOCK: tl.constexpr, D: tl.constexpr):
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks, heads = tl.num_programs(0), tl.num_programs(1)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    p_head = x_ptr + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
    # [BK, D]
    p_x = p_head + rows.to(tl.int64)[:, None] * stride_l + tl.arange(0, D)[None, :]
    b_x = tl.load(p_x, mask=rows[:, None] < tokens, other=0.0).to(tl.float32)
    # [D]
    b_mean = tl.sum(b_x, 0) / tl.minimum(tokens - block * BLOCK, BLOCK).to(tl.float32)
    p_mean = means_ptr + ((batch.to(tl.int64) * heads + head) * blocks + block) * D + tl.arange(0, D)
    tl.store(p_mean, b_mean.to(means_ptr.dtype.element_ty))


@triton.jit
def block_means_kernel(
    k_ptr, v_ptr, keys_ptr, values_ptr, stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl, tokens,
    BLOCK: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Grid (Nk, H, B)."""
    _block_mean(k_ptr, keys_ptr, stride_kb, stride_kh, stride_kl, tokens, BLOCK, D)
    _block_mean(v_ptr, values_ptr, stride_vb, stride_vh, stride_vl, tokens, BLOCK, D)


@triton.jit
def closed_words_kernel(
    counts_ptr, indices_ptr, words_ptr, key_blocks, first_video, end_video, width, row_words,
    CHUNK: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Grid (R,). Words are shared by threads, so bits are set atomically."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts_ptr + row)
    p_row = words_ptr + row * row_words
    words = tl.arange(0, WORDS)
    # [WORDS]: the bits from the first block of video on, and those up to the last one.
    b_low = tl.minimum(tl.maximum(first_video - words * 32, 0), 32).to(tl.int64)
    b_high = tl.minimum(tl.maximum(end_video - words * 32, 0), 32).to(tl.int64)
    b_one = tl.full([WORDS], 1, tl.int64)
    b_open = ((b_one << b_high) - 1) & ~((b_one << b_low) - 1)
    tl.store(p_row + words, (~b_open).to(tl.int32), mask=words < row_words)
    tl.debug_barrier()
    # A full row has no list, and leaves nothing out.
    for start in tl.range(0, tl.where(count < key_blocks, count, 0), CHUNK):
        slots = start + tl.arange(0, CHUNK)
        inside = slots < count
        # [CHUNK]
        b_list = tl.load(indices_ptr + row * width + slots, mask=inside, other=0).to(tl.int32)
        tl.atomic_or(p_row + b_list // 32, 1 << (b_list % 32), mask=inside, sem="relaxed")


def summarise(
    k: Tensor, v: Tensor, counts: Tensor, indices: Tensor, *, block_size: tuple[int, int], video: range
) -> Summaries:
    """Summaries of the key blocks of k and v, and which of them each row of a mask leaves to its kept blocks.

    Args:
        k, v: [B, H, L, D] in bf16 or fp16 (float32 in the interpreter); any strides but the last, which is 1.
        counts, indices: the mask, as ``block_sparse_attention`` takes it.
        block_size: tokens of a (query, key) block, one of ``BLOCK_SIZES``.
        video: key blocks without text; the others have no summary.

    Raises:
        ValueError: device, dtype, shape or stride is not one of these.
    """
    check_device(k.device)
    check_tensors(block_size, 1.0, k=k, v=v)
    if v.shape != k.shape:
        raise ValueError(f"k and v must have one shape, got {tuple(k.shape)} and {tuple(v.shape)}")
    check_lists(counts, indices, k.device)
    keys, values = block_means(k, v, block_size[1])
    return Summaries(keys, values, closed_words(counts, indices, keys.shape[2], video), video, block_size[1])


def block_means(k: Tensor, v: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Means of k and v [B, H, L, D] over key blocks, [B, H, Nk, D] each; a ragged block is divided by its tokens."""
    if block not in {size[1] for size in BLOCK_SIZES}:
        raise ValueError(f"block must be that of one of {BLOCK_SIZES}, got {block}")
    batch, heads, tokens, head_dim = k.shape
    shape = (batch, heads, triton.cdiv(tokens, block), head_dim)
    keys, values = (torch.empty(shape, dtype=x.dtype, device=x.device) for x in (k, v))
    run(
        block_means_kernel, (shape[2], heads, batch),
        k, v, keys, values, *k.stride()[:3], *v.stride()[:3], tokens, BLOCK=block, D=head_dim, num_warps=4, where=k,
    )  # fmt: skip
    return keys, values


def closed_words(counts: Tensor, indices: Tensor, key_blocks: int, video: range) -> Tensor:
    """Words of the rows of a mask, int32 [.., W] for counts [..] and indices [.., K]: see the module's docstring.

    Words of full rows are undefined; no kernel reads them.
    """
    if not 0 <= video.start <= video.stop <= key_blocks or video.step != 1:
        raise ValueError(f"video must be some of the {key_blocks} key blocks, got {video}")
    row_words = _WORDS_PER_TILE * triton.cdiv(key_blocks, SUMMARIES_PER_TILE)
    words = torch.empty(*counts.shape, row_words, dtype=torch.int32, device=counts.device)
    lists = indices.contiguous()
    run(
        closed_words_kernel, (counts.numel(),),
        counts.contiguous(), lists, words, key_blocks, video.start, video.stop, lists.shape[-1], row_words,
        CHUNK=CHUNK, WORDS=triton.next_power_of_2(row_words), num_warps=2, where=counts,
    )  # fmt: skip
    return words
