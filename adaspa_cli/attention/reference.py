"""The readable definition: dense matrices, any precision. Slow and memory-hungry; kernels are tested against it.

Shapes: q, k, v [B, H, L, D]; lse [B, H, Lq]; block sums W [B, H, Nq, Nk].
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.layout import ceil_div


def scores(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    """Return q k^T * scale, [B, H, Lq, Lk], in float32 or better; the scale is 1/sqrt(D) unless given."""
    q, k = _at_least_float32(q), _at_least_float32(k)
    return (q @ k.transpose(-1, -2)) * (scale if scale is not None else 1 / math.sqrt(q.shape[-1]))


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Attention over kept blocks: output [B, H, Lq, D] and LSE [B, H, Lq] (-inf and zeros for an empty row)."""
    block_q, block_k = mask.block_size
    kept = mask.to_bool().repeat_interleave(block_q, -2)[..., : q.shape[-2], :]
    kept = kept.repeat_interleave(block_k, -1)[..., : k.shape[-2]]
    logits = scores(q, k, scale).masked_fill(~kept, -torch.inf)
    lse = torch.logsumexp(logits, -1)
    weights = torch.exp(logits - torch.where(lse == -torch.inf, 0, lse)[..., None])
    return (weights @ _at_least_float32(v)).to(q.dtype), lse


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def block_sums(
    q: Tensor, k: Tensor, lse: Tensor, block_size: tuple[int, int], scale: float | None, row_stride: int = 1
) -> Tensor:
    """W[p, q] = sum of exp(q k^T * scale - LSE) over block (p, q): AdaSpa, precise online search.

    With a row stride N, rows 0, N, 2N, .. of each query block stand for all of its rows.
    """
    block_q, block_k = block_size
    # A row without keys, of LSE -inf, weighs nothing.
    weights = torch.exp(scores(q, k, scale) - torch.where(lse == -torch.inf, torch.inf, lse)[..., None])
    if row_stride > 1:
        row = torch.arange(q.shape[-2], device=q.device)
        real = (q.shape[-2] - row // block_q * block_q).clamp(max=block_q).to(weights.dtype)
        worth = real / -(-real // row_stride) * (row % block_q % row_stride == 0)
        weights = weights * worth[:, None]
    rows, columns = ceil_div(q.shape[-2], block_q), ceil_div(k.shape[-2], block_k)
    padding = (0, columns * block_k - k.shape[-2], 0, rows * block_q - q.shape[-2])
    weights = F.pad(weights, padding)
    blocks = weights.reshape(*weights.shape[:-2], rows, block_q, columns, block_k)
    return blocks.sum((-1, -3))
