"""Block-sparse attention, forward: softmax attention of each query block over its own list of key blocks.

Maths. For query block i with kept key blocks J(i), in FlashAttention-2's online form (arXiv 2307.08691): over the
blocks j of J(i), S = Q_i K_j^T * scale * log2(e); m' = max(m, rowmax S); P = 2^(S - m'); a = 2^(m - m');
l = a l + rowsum P; O = a O + P V_j. At the end O / l, and LSE = ln(2) (m + log2 l). An empty list gives zeros and
-inf. The lists come from AdaSpa's search (arXiv 2502.21079, sections 3 and 4).

With summaries (``summaries.py``) a row that is not full continues, in the same softmax, with one mean key and value of
each video block that is not in its list.

Memory. q, k, v are [B, H, L, D] views of any strides but the last, which is 1; out is [B, L, H, D] in memory, because
models flatten it that way. Lists are packed: ``counts`` [*, H, Nq] and ascending ``indices`` [*, H, Nq, K]. A count
equal to ``key_blocks`` means all blocks, and that row's list is not read.

One program computes one query block. Query blocks are the fastest axis of the grid: neighbours of one head share
most of their key blocks, which then come from L2.

Shapes: B batch, H heads, Lq and Lk tokens, D head dimension, Nq and Nk blocks, BQ and BK tokens of a block.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaspa_kernels.common import LOG2_E, load_rows
from adaspa_kernels.launch import (
    check_device,
    check_lists,
    check_tensors,
    choose_path,
    run,
    tile_source,
    tuned,
    uses_tma,
)
from adaspa_kernels.summaries import SUMMARIES_PER_TILE, Summaries

INT16_BLOCKS = 32_768
_LN_2 = tl.constexpr(1 / LOG2_E)


@triton.jit
def _attend_block(
    b_out, b_max, b_sum, b_q, k_source, v_source, batch, head, block, key_tokens, scale_log2,
    stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl,
    BLOCK_K: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Fold key block ``block`` into output, row maximum and row sum."""
    start = block * BLOCK_K
    # [BK, D]
    b_k = load_rows(k_source, batch, head, start, key_tokens, stride_kb, stride_kh, stride_kl, BLOCK_K, D, TMA, MASKED)
    # [BQ, BK]
    b_s = tl.dot(b_q, tl.trans(b_k))
    if MASKED:
        b_s = tl.where(start + tl.arange(0, BLOCK_K)[None, :] < key_tokens, b_s, -float("inf"))
    # [BK, D]
    b_v = load_rows(v_source, batch, head, start, key_tokens, stride_vb, stride_vh, stride_vl, BLOCK_K, D, TMA, MASKED)
    return _fold(b_out, b_max, b_sum, b_s, b_v, scale_log2)


@triton.jit
def _attend_summaries(
    b_out, b_max, b_sum, b_q, keys_ptr, values_ptr, p_words, first, blocks, whole, worth, last_worth, scale_log2,
    TILE: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Fold summaries ``first`` to ``first + TILE`` of one head into output, row maximum and row sum.

    ``worth`` is what each of the first ``whole`` has for the tokens that it stands for, as an addend of q k^T, and
    ``last_worth`` what the others have.
    """
    summaries = first + tl.arange(0, TILE)
    inside = summaries < blocks
    # [TILE, D]
    offsets = summaries[:, None] * D + tl.arange(0, D)[None, :]
    b_k = tl.load(keys_ptr + offsets, mask=inside[:, None], other=0.0)
    # [BQ, TILE]
    b_s = tl.dot(b_q, tl.trans(b_k)) + tl.where(summaries < whole, worth, last_worth)[None, :]
    b_closed = (tl.load(p_words + summaries // 32) >> (summaries % 32)) & 1
    b_s = tl.where(b_closed[None, :] != 0, -float("inf"), b_s)
    # [TILE, D]
    b_v = tl.load(values_ptr + offsets, mask=inside[:, None], other=0.0)
    return _fold(b_out, b_max, b_sum, b_s, b_v, scale_log2)


@triton.jit
def _fold(b_out, b_max, b_sum, b_s, b_v, scale_log2):
    """One step of the online softmax."""
    # [BQ]
    b_new_max = tl.maximum(b_max, tl.max(b_s, 1) * scale_log2)
    # [BQ]: finite also where all scores so far are minus infinity.
    b_finite = tl.where(b_new_max == -float("inf"), 0.0, b_new_max)
    # [BQ, BK]
    b_p = tl.exp2(b_s * scale_log2 - b_finite[:, None])
    # [BQ]
    b_rescale = tl.exp2(b_max - b_finite)
    b_sum = b_sum * b_rescale + tl.sum(b_p, 1)
    # [BQ, D]
    b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * b_rescale[:, None])
    return b_out, b_new_max, b_sum


@triton.jit
def _log_sum(b_max, b_sum):
    """The natural log-sum-exp of rows, [BQ]: minus infinity where nothing was added up."""
    return tl.where(b_sum == 0, -float("inf"), (b_max + tl.log2(tl.where(b_sum == 0, 1.0, b_sum))) * _LN_2)


@triton.jit
def block_sparse_kernel(
    q_ptr, k_source, v_source, counts_ptr, indices_ptr, keys_ptr, values_ptr, words_ptr, out_ptr, lse_ptr, kept_lse_ptr,
    stride_qb, stride_qh, stride_ql, stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl,
    stride_cb, stride_ch, stride_cq, stride_ib, stride_ih, stride_iq,
    stride_wb, query_tokens, key_tokens, query_blocks, key_blocks, first_query_block, scale_log2, worth, last_worth,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr, RAGGED: tl.constexpr,
    SUMMARIES: tl.constexpr,
):  # fmt: skip
    """Grid (Nq, H, B). ``k_source`` and ``v_source`` are tensor descriptors with TMA, pointers without."""
    query_block = (tl.program_id(0) + first_query_block) % query_blocks
    head = tl.program_id(1)
    batch = tl.program_id(2)
    heads = tl.num_programs(1)
    query_block64 = query_block.to(tl.int64)
    head64 = head.to(tl.int64)
    batch64 = batch.to(tl.int64)

    count = tl.load(counts_ptr + batch64 * stride_cb + head64 * stride_ch + query_block64 * stride_cq)
    p_list = indices_ptr + batch64 * stride_ib + head64 * stride_ih + query_block64 * stride_iq
    listed = count < key_blocks

    # [BQ, D]
    b_q = load_rows(
        q_ptr, batch, head, query_block * BLOCK_Q, query_tokens, stride_qb, stride_qh, stride_ql,
        BLOCK_Q, D, False, True,
    )  # fmt: skip
    b_out = tl.zeros([BLOCK_Q, D], tl.float32)
    # [BQ]
    b_max = tl.full([BLOCK_Q], -float("inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_Q], tl.float32)

    # Lists ascend, so only a row's last block can be the ragged one: it alone pays for masks.
    whole = count
    if RAGGED:
        whole = tl.maximum(count - 1, 0)
    for slot in tl.range(0, whole):
        block = tl.where(listed, tl.load(p_list + slot, mask=listed, other=0).to(tl.int32), slot)
        b_out, b_max, b_sum = _attend_block(
            b_out, b_max, b_sum, b_q, k_source, v_source, batch, head, block, key_tokens, scale_log2,
            stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl, BLOCK_K, D, TMA, False,
        )  # fmt: skip
    if RAGGED:
        for slot in tl.range(whole, count, num_stages=1):
            block = tl.where(listed, tl.load(p_list + slot, mask=listed, other=0).to(tl.int32), slot)
            b_out, b_max, b_sum = _attend_block(
                b_out, b_max, b_sum, b_q, k_source, v_source, batch, head, block, key_tokens, scale_log2,
                stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl, BLOCK_K, D, TMA, True,
            )  # fmt: skip

    rows = query_block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    rows64 = rows.to(tl.int64)
    in_range = rows < query_tokens
    lse_offset = (batch64 * heads + head64) * query_tokens + rows64
    if SUMMARIES:
        tl.store(kept_lse_ptr + lse_offset, _log_sum(b_max, b_sum), mask=in_range)
        row_words = tl.cdiv(key_blocks, 128) * 4
        p_words = words_ptr + batch64 * stride_wb + (head64 * query_blocks + query_block) * row_words
        first_summary = (batch64 * heads + head64) * key_blocks * D
        for first in tl.range(0, tl.where(listed, key_blocks, 0), BLOCK_K):
            b_out, b_max, b_sum = _attend_summaries(
                b_out, b_max, b_sum, b_q, keys_ptr + first_summary, values_ptr + first_summary, p_words, first,
                key_blocks, key_tokens // BLOCK_K, worth, last_worth, scale_log2, BLOCK_K, D,
            )  # fmt: skip

    b_out = b_out / tl.where(b_sum == 0, 1.0, b_sum)[:, None]
    tl.store(lse_ptr + lse_offset, _log_sum(b_max, b_sum), mask=in_range)
    # [BQ, D]
    p_out = out_ptr + ((batch64 * query_tokens + rows64) * heads + head64)[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(p_out, b_out.to(out_ptr.dtype.element_ty), mask=in_range[:, None])


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    counts: Tensor,
    indices: Tensor,
    *,
    key_blocks: int,
    block_size: tuple[int, int],
    scale: float,
    summaries: Summaries | None = None,
    path: str = "auto",
) -> tuple[Tensor, ...]:
    """Softmax attention of each query block over its listed key blocks.

    Args:
        q, k, v: [B, H, Lq, D], [B, H, Lk, D], [B, H, Lk, D] in bf16 or fp16 (float32 in the interpreter); any
            strides but the last, which is 1.
        counts: int32 [H, Nq], [1, H, Nq] or [B, H, Nq], kept key blocks of each row.
        indices: int16 or int32 [.., H, Nq, K], ascending; not read where the count is ``key_blocks``.
        key_blocks: Nk.
        block_size: tokens of a (query, key) block, one of ``BLOCK_SIZES``.
        scale: positive factor of q k^T.
        summaries: of the blocks that rows leave out, made by ``summarise`` from the same k, v and lists; rows see them
            in the place of these blocks. None: rows see what they keep and nothing else.
        path: the kernel, one of ``PATHS``.

    Returns:
        Output [B, H, Lq, D], whose ``transpose(1, 2)`` is contiguous, and the natural LSE, float32 [B, H, Lq]. With
        summaries that is the LSE of both, and that of only the kept blocks comes third.

    Raises:
        ValueError: device, dtype, shape or stride is not one of these, or the path cannot run.
    """
    check_device(q.device)
    check_tensors(block_size, scale, q=q, k=k, v=v)
    _check_lists(q, k, v, counts, indices, key_blocks, block_size)
    batch, heads, query_tokens, head_dim = q.shape
    block_q, block_k = block_size
    query_blocks = triton.cdiv(query_tokens, block_q)
    list_strides = (*_list_strides(counts, 3), *_list_strides(indices, 4)[:3])
    if summaries is not None:
        _check_summaries(summaries, k, counts, key_blocks, block_size)
    if choose_path(path, "block_sparse_attention", block_size, q, k, v) == "hopper":
        from adaspa_kernels import hopper_block_sparse

        return hopper_block_sparse.launch(
            q, k, v, counts, indices, list_strides[3:], summaries,
            key_blocks=key_blocks, block_size=block_size, scale=scale,
        )  # fmt: skip
    out = torch.empty(batch, query_tokens, heads, head_dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, query_tokens, dtype=torch.float32, device=q.device)
    tma = uses_tma(k, v)
    kernel, options = tuned(block_sparse_kernel, q.device, k.shape[2])
    pooled, word_stride, kept_lse = (out, out, counts), 0, lse
    worths = tuple(math.log(n) / scale for n in (block_k, k.shape[2] % block_k or block_k))
    if summaries is not None:
        pooled, word_stride = (summaries.keys, summaries.values, summaries.words), _list_strides(summaries.words, 4)[0]
        kept_lse = torch.empty_like(lse)
    run(
        kernel, (query_blocks, heads, batch),
        q, tile_source(k, block_k, tma), tile_source(v, block_k, tma), counts, indices, *pooled, out, lse, kept_lse,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        *list_strides, word_stride,
        query_tokens, k.shape[2], query_blocks, key_blocks, _first_query_block(query_blocks),
        scale * LOG2_E, *worths,
        BLOCK_Q=block_q, BLOCK_K=block_k, D=head_dim, TMA=tma, RAGGED=k.shape[2] % block_k != 0,
        SUMMARIES=summaries is not None, where=q, **options,
    )  # fmt: skip
    out = out.transpose(1, 2)
    return (out, lse) if summaries is None else (out, lse, kept_lse)


def _first_query_block(query_blocks: int) -> int:
    """Start each head at 7/8 of its rows: text rows stand at either end, are full, and must not run last."""
    return query_blocks - query_blocks // 8


def _list_strides(lists: Tensor, dims: int) -> tuple[int, ...]:
    """Strides of [*, H, Nq, ..] as if it had a batch; 0 for a batch that is absent or shared."""
    strides = lists.stride()
    if lists.dim() < dims:
        return (0, *strides)
    return (0 if lists.shape[0] == 1 else strides[0], *strides[1:])


def _check_lists(
    q: Tensor, k: Tensor, v: Tensor, counts: Tensor, indices: Tensor, key_blocks: int, block_size: tuple[int, int]
) -> None:
    if v.shape != k.shape:
        raise ValueError(f"k and v must have one shape, got {tuple(k.shape)} and {tuple(v.shape)}")
    if indices.dtype == torch.int16 and key_blocks > INT16_BLOCKS:
        raise ValueError(f"indices must be int32 for more than {INT16_BLOCKS} key blocks, got {key_blocks}")
    if key_blocks != triton.cdiv(k.shape[2], block_size[1]):
        raise ValueError(f"key_blocks is {key_blocks}, but {k.shape[2]} keys are not that many of {block_size[1]}")
    heads_and_rows = (q.shape[1], triton.cdiv(q.shape[2], block_size[0]))
    allowed = {heads_and_rows, (1, *heads_and_rows), (q.shape[0], *heads_and_rows)}
    if tuple(counts.shape) not in allowed:
        raise ValueError(
            f"counts must be [*, H, Nq] with H, Nq = {heads_and_rows} and * absent, 1 or {q.shape[0]}, "
            f"got {tuple(counts.shape)}"
        )
    check_lists(counts, indices, q.device)
    if indices.stride(-1) != 1 and indices.shape[-1] > 1:
        raise ValueError(f"the last stride of indices must be 1, got strides {indices.stride()}")


def _check_summaries(
    summaries: Summaries, k: Tensor, counts: Tensor, key_blocks: int, block_size: tuple[int, int]
) -> None:
    shape = (*k.shape[:2], key_blocks, k.shape[3])
    words = (*counts.shape, triton.cdiv(key_blocks, SUMMARIES_PER_TILE) * SUMMARIES_PER_TILE // 32)
    shapes = summaries.keys.shape, summaries.values.shape, summaries.words.shape
    if shapes != (shape, shape, words) or summaries.block != block_size[1]:
        raise ValueError(
            f"summaries {tuple(summaries.keys.shape)} of blocks of {summaries.block}, words "
            f"{tuple(summaries.words.shape)}, are not those of keys {shape}, blocks of {block_size[1]}, words {words}"
        )
    for name, dtype in (("keys", k.dtype), ("values", k.dtype), ("words", torch.int32)):
        x = getattr(summaries, name)
        if x.dtype != dtype or x.device != k.device or not x.is_contiguous():
            raise ValueError(
                f"{name} of summaries must be contiguous {dtype} on {k.device}, "
                f"got {x.dtype} on {x.device} with strides {x.stride()}"
            )
