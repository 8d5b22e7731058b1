"""The public operators.

Shapes: B batch, H heads, Lq and Lk query and key tokens (any number: the last block may be ragged), D head
dimension, Nq and Nk query and key blocks. Tensors may be strided views, such as ``x.transpose(1, 2)`` of
[B, L, H, D]; they are not copied. Inside ``torch.compile`` the two sparse operators are single opaque nodes, which
check their arguments when they run.
"""

import torch
from torch import Tensor

from adaspa_cli.attention import checked
from adaspa_cli.attention.backends import BlockSize, resolve
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.operators import block_sparse_operator, block_sums_operator


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
    """Softmax attention over the kept blocks of ``mask``.

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
        lists = mask.counts, mask.indices, mask.key_blocks, *mask.block_size
        out, lse = block_sparse_operator(q, k, v, *lists, checked.factor(q, scale), backend)
    else:
        out, lse = checked.sparse(q, k, v, mask, scale, backend)
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
        row_stride: N, one of 1, 2, 4, 8, 16: read rows 0, N, 2N, .. of each query block, an Nth of the work. Their
            sum, times the rows of the block over those weighed, estimates W.

    Raises:
        ValueError: shapes, types or devices disagree.
        BackendError: the backend cannot run here, or has no kernel for this head dimension or block size.
    """
    size = _block_size(block_size)
    if torch.compiler.is_compiling():
        sums: Tensor = block_sums_operator(q, k, lse, *size, checked.factor(q, scale), row_stride, backend)
        return sums
    return checked.sums(q, k, lse, size, scale, row_stride, backend)


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Full attention by the fastest dense path of the backend: output [B, H, Lq, D], LSE float32 [B, H, Lq]."""
    checked.check_qkv(q, k, v)
    return resolve(backend, q.device).dense(q, k, v, checked.factor(q, scale))


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
    chosen = checked.prepare(q, k, size, backend)
    checked.check_row_stride(row_stride, size)
    checked.check_qkv(q, k, v)
    return chosen.search(q, k, v, size, checked.factor(q, scale), row_stride)


def _block_size(block_size: int | BlockSize) -> BlockSize:
    return (block_size, block_size) if isinstance(block_size, int) else block_size
