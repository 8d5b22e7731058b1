"""Exact sums of attention weights over blocks: the second pass of AdaSpa's precise online search.

Maths. With the log-sum-exp of each row known, no softmax state is needed (arXiv 2502.21079, fused and LSE-cached
online search): W[p, q] = sum of 2^((Q_p K_q^T) * scale * log2(e) - LSE * log2(e)) over block (p, q). Rows whose LSE is
-inf get no weight.

With a row stride N only the rows 0, N, 2N, .. of each query block are read, and their sum is scaled to all of its
rows: W[p, q] = (rows of p) / (rows read of p) * sum. These rows are a strided view of q, in which a query block has
BQ / N rows; so an Nth of the work is done by the same kernel.

Memory. q and k are [B, H, L, D] views of any strides but the last, which is 1; lse is float32 [B, H, Lq]; W is
written as contiguous float32 [B, H, Nq, Nk], each element once by one program: deterministic, without atomics.

One program moves a tile of 128 query rows over all keys, 128 keys at a time: tiles of one size for all block sizes,
because a matrix instruction of 128 keys and one reduction for several blocks cost less than one each.

Shapes: B batch, H heads, Lq and Lk tokens, D head dimension, Nq and Nk blocks, TQ query rows and TK keys of a tile,
BQ query rows that are read and BK keys of a block, GQ = TQ / BQ and GK = TK / BK blocks of a tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaspa_kernels.common import LOG2_E, load_rows
from adaspa_kernels.launch import (
    ROW_STRIDES,
    check_device,
    check_tensors,
    choose_path,
    run,
    tile_source,
    tuned,
    uses_tma,
)

TILE_Q, TILE_K = 128, 128


@triton.jit
def _sum_tile(
    b_q, b_lse, b_worth, k_source, p_sums, stored, batch, head, tile, key_tokens, key_blocks, scale_log2,
    stride_kb, stride_kh, stride_kl,
    TQ: tl.constexpr, TK: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, D: tl.constexpr,
    TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Write the sums of the blocks that key tile ``tile`` has in common with the query tile."""
    GQ: tl.constexpr = TQ // BLOCK_Q
    GK: tl.constexpr = TK // BLOCK_K
    start = tile * TK
    # [TK, D]
    b_k = load_rows(k_source, batch, head, start, key_tokens, stride_kb, stride_kh, stride_kl, TK, D, TMA, MASKED)
    # [TQ, TK]
    b_p = tl.exp2(tl.dot(b_q, tl.trans(b_k)) * scale_log2 - b_lse[:, None])
    if MASKED:
        b_p = tl.where(start + tl.arange(0, TK)[None, :] < key_tokens, b_p, 0.0)
    # [GQ, GK]: keys first, which one thread holds side by side
    b_sums = tl.sum(tl.sum(b_p.reshape(GQ, BLOCK_Q, GK, BLOCK_K), 3), 1)
    if b_worth is not None:
        b_sums *= b_worth
    blocks_k = tile * GK + tl.arange(0, GK)
    if MASKED:
        tl.store(p_sums + blocks_k[None, :], b_sums, mask=stored & (blocks_k < key_blocks)[None, :])
    else:
        tl.store(p_sums + blocks_k[None, :], b_sums, mask=stored)


@triton.jit
def block_sums_kernel(
    q_ptr, k_source, lse_ptr, sums_ptr,
    stride_qb, stride_qh, stride_ql, stride_kb, stride_kh, stride_kl, stride_lb, stride_lh, stride_ll,
    weighed_tokens, query_tokens, key_tokens, query_blocks, key_blocks, scale_log2, log2_e,
    TQ: tl.constexpr, TK: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, D: tl.constexpr,
    STRIDE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Grid (query tiles, H, B). ``k_source`` is a tensor descriptor with TMA, a pointer without.

    ``q_ptr`` and ``lse_ptr`` hold every ``STRIDE``-th of ``query_tokens`` rows, ``weighed_tokens`` in all.
    """
    query_tile = tl.program_id(0)
    head = tl.program_id(1)
    batch = tl.program_id(2)
    heads = tl.num_programs(1)
    head64 = head.to(tl.int64)
    batch64 = batch.to(tl.int64)

    # [TQ, D]
    b_q = load_rows(
        q_ptr, batch, head, query_tile * TQ, weighed_tokens, stride_qb, stride_qh, stride_ql, TQ, D, False, True
    )
    # [TQ]: +inf gives a row no weight: it is past the end, or has no keys.
    rows = query_tile * TQ + tl.arange(0, TQ)
    p_lse = lse_ptr + batch64 * stride_lb + head64 * stride_lh + rows.to(tl.int64) * stride_ll
    b_lse = tl.load(p_lse, mask=rows < weighed_tokens, other=float("inf"))
    b_lse = tl.where(b_lse == -float("inf"), float("inf"), b_lse * log2_e)

    # [GQ, 1]
    blocks_q = (query_tile * (TQ // BLOCK_Q) + tl.arange(0, TQ // BLOCK_Q))[:, None]
    stored = blocks_q < query_blocks
    p_sums = sums_ptr + ((batch64 * heads + head64) * query_blocks + blocks_q.to(tl.int64)) * key_blocks

    b_worth = None
    if STRIDE > 1:
        b_real = tl.minimum(tl.maximum(query_tokens - blocks_q * (BLOCK_Q * STRIDE), 1), BLOCK_Q * STRIDE)
        # [GQ, 1]: rows that one weighed row stands for
        b_worth = b_real.to(tl.float32) / tl.cdiv(b_real, STRIDE).to(tl.float32)

    whole = key_tokens // TK
    for tile in tl.range(0, whole):
        _sum_tile(
            b_q, b_lse, b_worth, k_source, p_sums, stored, batch, head, tile, key_tokens, key_blocks, scale_log2,
            stride_kb, stride_kh, stride_kl, TQ, TK, BLOCK_Q, BLOCK_K, D, TMA, False,
        )  # fmt: skip
    for tile in tl.range(whole, tl.cdiv(key_tokens, TK), num_stages=1):
        _sum_tile(
            b_q, b_lse, b_worth, k_source, p_sums, stored, batch, head, tile, key_tokens, key_blocks, scale_log2,
            stride_kb, stride_kh, stride_kl, TQ, TK, BLOCK_Q, BLOCK_K, D, TMA, True,
        )  # fmt: skip


def block_sums(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    block_size: tuple[int, int],
    scale: float,
    row_stride: int = 1,
    path: str = "auto",
) -> Tensor:
    """Sum exp(q k^T * scale - LSE) over each block, or estimate that from every ``row_stride``-th query row of it.

    Args:
        q, k: [B, H, Lq, D], [B, H, Lk, D] in bf16 or fp16 (float32 in the interpreter); any strides but the last,
            which is 1.
        lse: natural log-sum-exp of each row, float32 [B, H, Lq]; -inf gives a row no weight.
        block_size: tokens of a (query, key) block, one of ``BLOCK_SIZES``.
        scale: positive factor of q k^T.
        row_stride: N, one of ``ROW_STRIDES``.
        path: the kernel, one of ``PATHS``.

    Returns:
        W, float32 [B, H, Nq, Nk].

    Raises:
        ValueError: device, dtype, shape or stride is not one of these, or the path cannot run.
    """
    check_device(q.device)
    check_tensors(block_size, scale, q=q, k=k)
    if lse.shape != q.shape[:3] or lse.dtype != torch.float32 or lse.device != q.device:
        raise ValueError(
            f"lse must be float32 {tuple(q.shape[:3])} on {q.device}, "
            f"got {lse.dtype} {tuple(lse.shape)} on {lse.device}"
        )
    if row_stride not in ROW_STRIDES:
        raise ValueError(f"row_stride must be one of {ROW_STRIDES}, got {row_stride}")
    batch, heads, query_tokens, head_dim = q.shape
    q, lse = q[:, :, ::row_stride], lse[:, :, ::row_stride]
    if choose_path(path, "block_sums", block_size, q, k) == "hopper":
        from adaspa_kernels import hopper_block_sums

        return hopper_block_sums.launch(q, k, lse, query_tokens=query_tokens, scale=scale, row_stride=row_stride)
    block_q, block_k = block_size
    query_blocks, key_blocks = triton.cdiv(query_tokens, block_q), triton.cdiv(k.shape[2], block_k)
    sums = torch.empty(batch, heads, query_blocks, key_blocks, dtype=torch.float32, device=q.device)
    tma = uses_tma(k)
    kernel, options = tuned(block_sums_kernel, q.device, k.shape[2])
    run(
        kernel, (triton.cdiv(q.shape[2], TILE_Q), heads, batch),
        q, tile_source(k, TILE_K, tma), lse, sums, *q.stride()[:3], *k.stride()[:3], *lse.stride(),
        q.shape[2], query_tokens, k.shape[2], query_blocks, key_blocks, scale * LOG2_E, LOG2_E,
        TQ=TILE_Q, TK=TILE_K, BLOCK_Q=block_q // row_stride, BLOCK_K=block_k, D=head_dim, STRIDE=row_stride,
        TMA=tma, where=q, **options,
    )  # fmt: skip
    return sums
