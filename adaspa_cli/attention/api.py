"""The operators: validate, choose a backend, call it.

Shapes: B batch, H heads, Lq and Lk query and key tokens (any number: the last block may be ragged), D head
dimension, Nq and Nk query and key blocks. Tensors may be strided views, such as ``x.transpose(1, 2)`` of
[B, L, H, D]; they are not copied. Inside ``torch.compile`` the two sparse operators are single opaque nodes, which
check their arguments when they run.
"""

import math

import torch
from torch import Tensor

from adaspa_cli.attention.backends import Backend, BlockSize, resolve
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.layout import ceil_div
from adaspa_cli.attention.operators import block_sparse_operator, block_sums_operator
from adaspa_cli.errors import BackendError

ROW_STRIDES = (1, 2, 4, 8, 16)


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention over the kept blocks of ``mask`` alone.

    Args:
        q, k, v: [B, H, Lq, D], [B, H, Lk, D], [B, H, Lk, D]; bf16 or fp16 on a GPU, float32 also on the CPU.
        mask: counts [H, Nq] (shared by the batch) or [B, H, Nq].
        scale: positive factor of q k^T, 1/sqrt(D) unless given.
        return_lse: also return the log-sum-exp of each row over its kept keys.
        backend: one of ``BACKENDS``.

    Returns:
        Output [B, H, Lq, D]; with ``return_lse`` also float32 [B, H, Lq]. A row without kept blocks gives zeros
        and an LSE of -inf.

    Raises:
        ValueError: shapes, types or devices disagree.
        BackendError: the backend cannot run here, or has no kernel for this head dimension or block size.
    """
    if torch.compiler.is_compiling():
        out, lse = block_sparse_operator(
            q, k, v, mask.counts, mask.indices, mask.key_blocks, *mask.block_size, _scale(q, scale), backend
        )
        return (out, lse) if return_lse else out
    chosen = _prepare(q, k, mask.block_size, backend)
    _check_qkv(q, k, v)
    _check_mask(q, k, mask)
    out, lse = chosen.sparse(q, k, v, mask, _scale(q, scale))
    return (out, lse) if return_lse else out


def block_sums(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    block_size: int | BlockSize,
    *,
    scale: float | None = None,
    row_stride: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Exact block sums W of the attention weights (AdaSpa, precise online search, second pass).

    W[p, q] is the sum of exp(q k^T * scale - LSE) over block (p, q), float32 [B, H, Nq, Nk]. With the LSE of the
    same q and k each query row sums to one; with an older one (LSE-cached search) the mass is only close to it.

    Args:
        q, k: [B, H, Lq, D], [B, H, Lk, D].
        lse: natural log-sum-exp of each row, float32 [B, H, Lq].
        block_size: tokens of a block, one number or (query, key).
        row_stride: N, one of ``ROW_STRIDES``: weigh rows 0, N, 2N, .. of each query block, an Nth of the work. Their
            sum, times the rows of the block over those weighed, estimates W.

    Raises:
        ValueError: shapes, types or devices disagree.
        BackendError: the backend cannot run here, or has no kernel for this head dimension or block size.
    """
    size = _block_size(block_size)
    if torch.compiler.is_compiling():
        sums: Tensor = block_sums_operator(q, k, lse, *size, _scale(q, scale), row_stride, backend)
        return sums
    chosen = _prepare(q, k, size, backend)
    _check_row_stride(row_stride, size)
    if lse.shape != q.shape[:3] or lse.device != q.device:
        raise ValueError(f"lse must be {tuple(q.shape[:3])} on {q.device}, got {tuple(lse.shape)} on {lse.device}")
    return chosen.sums(q, k, lse, size, _scale(q, scale), row_stride)


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Full attention by the fastest dense path of the backend: output [B, H, Lq, D], LSE float32 [B, H, Lq]."""
    _check_qkv(q, k, v)
    return resolve(backend, q.device).dense(q, k, v, _scale(q, scale))


def attention_with_block_sums(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_size: int | BlockSize,
    *,
    scale: float | None = None,
    row_stride: int = 1,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused online search (AdaSpa): dense output, its LSE and the exact block sums W of one call.

    Shapes, ``row_stride`` and errors as in :func:`dense_attention` and :func:`block_sums`.
    """
    size = _block_size(block_size)
    chosen = _prepare(q, k, size, backend)
    _check_row_stride(row_stride, size)
    _check_qkv(q, k, v)
    return chosen.search(q, k, v, size, _scale(q, scale), row_stride)


def _check_row_stride(row_stride: int, block_size: BlockSize) -> None:
    if row_stride not in ROW_STRIDES or block_size[0] % row_stride:
        raise ValueError(
            f"row_stride must be one of {ROW_STRIDES} and divide the {block_size[0]} rows of a query block, "
            f"got {row_stride}"
        )


def _block_size(block_size: int | BlockSize) -> BlockSize:
    return (block_size, block_size) if isinstance(block_size, int) else block_size


def _scale(q: Tensor, scale: float | None) -> float:
    if scale is None:
        return 1 / math.sqrt(q.shape[-1])
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    return scale


def _prepare(q: Tensor, k: Tensor, block_size: BlockSize, backend: str) -> Backend:
    """Check q against k, and both against what the backend has kernels for."""
    if q.dim() != 4 or k.dim() != 4 or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k must be [B, H, L, D] and agree in B, H, D: {tuple(q.shape)}, {tuple(k.shape)}")
    if q.dtype != k.dtype or q.device != k.device:
        raise ValueError(f"q and k disagree: {q.dtype} on {q.device}, {k.dtype} on {k.device}")
    chosen = resolve(backend, q.device)
    check_kernel(chosen, q.shape[3], block_size, None if q.device.type == "cpu" else q.dtype)
    return chosen


def check_kernel(backend: Backend, head_dim: int, block_size: BlockSize, dtype: torch.dtype | None = None) -> None:
    """Raise BackendError unless ``backend`` has a kernel for this head dimension, block size and dtype."""
    if dtype is not None and backend.dtypes and dtype not in backend.dtypes:
        raise BackendError(
            f"backend '{backend.name}' has no kernel for {dtype}", hint="use --dtype bfloat16, or --method full"
        )
    if backend.head_dims and head_dim not in backend.head_dims:
        allowed = ", ".join(map(str, backend.head_dims))
        raise BackendError(f"backend '{backend.name}' has kernels for head dims {allowed}, not {head_dim}")
    if min(block_size) < 1 or (backend.block_sizes and block_size not in backend.block_sizes):
        allowed = ", ".join(f"{a}x{b}" for a, b in backend.block_sizes or ()) or "1 or more"
        raise BackendError(
            f"block size {block_size[0]}x{block_size[1]} has no kernel in backend '{backend.name}'",
            hint=f"allowed there: {allowed}",
        )


def _check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    if v.shape != k.shape or v.dtype != k.dtype or v.device != k.device:
        raise ValueError(
            f"v must match k: {tuple(v.shape)} {v.dtype} on {v.device}, {tuple(k.shape)} {k.dtype} on {k.device}"
        )
    if q.dim() != 4 or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q does not fit k: {tuple(q.shape)}, {tuple(k.shape)}")
    if q.dtype != k.dtype or q.device != k.device:
        raise ValueError(f"q does not fit k: {q.dtype} on {q.device}, {k.dtype} on {k.device}")


def _check_mask(q: Tensor, k: Tensor, mask: BlockMask) -> None:
    block_q, block_k = mask.block_size
    expected = (q.shape[1], ceil_div(q.shape[2], block_q))
    if tuple(mask.counts.shape[-2:]) != expected or mask.key_blocks != ceil_div(k.shape[2], block_k):
        raise ValueError(
            f"mask of {mask.heads} heads, {mask.query_blocks} x {mask.key_blocks} blocks does not fit "
            f"q {tuple(q.shape)} and k {tuple(k.shape)} at {block_q}x{block_k}"
        )
    if mask.counts.dim() == 3 and mask.counts.shape[0] not in (1, q.shape[0]):
        raise ValueError(f"mask has batch {mask.counts.shape[0]}, q has {q.shape[0]}")
    if mask.device != q.device:
        raise ValueError(f"mask is on {mask.device}, q on {q.device}")
