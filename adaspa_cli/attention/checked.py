"""Checks of the operators' arguments, and the dispatch to a backend.

Shapes: as in :mod:`adaspa_cli.attention.api`.
"""

import math

import torch
from torch import Tensor

from adaspa_cli.attention.backends import Backend, BlockSize, resolve
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.layout import ceil_div
from adaspa_cli.errors import BackendError

ROW_STRIDES = (1, 2, 4, 8, 16)


def sparse(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float | None, backend: str
) -> tuple[Tensor, Tensor]:
    """Output and LSE; see :func:`~adaspa_cli.attention.api.block_sparse_attention`."""
    chosen = prepare(q, k, mask.block_size, backend)
    check_qkv(q, k, v)
    _check_mask(q, k, mask)
    return chosen.sparse(q, k, v, mask, factor(q, scale))


def sums(
    q: Tensor, k: Tensor, lse: Tensor, block_size: BlockSize, scale: float | None, row_stride: int, backend: str
) -> Tensor:
    """W; see :func:`~adaspa_cli.attention.api.block_sums`."""
    chosen = prepare(q, k, block_size, backend)
    check_row_stride(row_stride, block_size)
    if lse.shape != q.shape[:3] or lse.device != q.device:
        raise ValueError(f"lse must be {tuple(q.shape[:3])} on {q.device}, got {tuple(lse.shape)} on {lse.device}")
    return chosen.sums(q, k, lse, block_size, factor(q, scale), row_stride)


def check_row_stride(row_stride: int, block_size: BlockSize) -> None:
    """Raise ValueError for a row stride that the kernels don't support."""
    if row_stride not in ROW_STRIDES or block_size[0] % row_stride:
        raise ValueError(
            f"row_stride must be one of {ROW_STRIDES} and divide the {block_size[0]} rows of a query block, "
            f"got {row_stride}"
        )


def factor(q: Tensor, scale: float | None) -> float:
    """Of q k^T: 1/sqrt(D) unless given."""
    if scale is None:
        return 1 / math.sqrt(q.shape[-1])
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    return scale


def prepare(q: Tensor, k: Tensor, block_size: BlockSize, backend: str) -> Backend:
    """Check q against k, and both against what the backend has kernels for."""
    _check_queries(q, k)
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


def check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError where q, k and v disagree."""
    if v.shape != k.shape or v.dtype != k.dtype or v.device != k.device:
        raise ValueError(
            f"v must match k: {tuple(v.shape)} {v.dtype} on {v.device}, {tuple(k.shape)} {k.dtype} on {k.device}"
        )
    _check_queries(q, k)


def _check_queries(q: Tensor, k: Tensor) -> None:
    """Raise ValueError unless both are [B, H, L, D] and agree in all but L."""
    if q.dim() != 4 or k.dim() != 4 or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        shapes = f"{tuple(q.shape)}, {tuple(k.shape)}"
        raise ValueError(f"q does not fit k: they must be [B, H, L, D] and agree in B, H, D, got {shapes}")
    if q.dtype != k.dtype or q.device != k.device:
        raise ValueError(f"q does not fit k, they disagree: {q.dtype} on {q.device}, {k.dtype} on {k.device}")


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
