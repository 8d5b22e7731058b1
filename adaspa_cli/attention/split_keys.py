"""Dense attention from few queries to many keys on a GPU: keys are split among programs, and the parts merged.

A kernel has a program for each block of 128 queries and each head. Probes are one such block, which leaves most of the
GPU idle while a few programs read all keys. Here each part of the keys has a copy of the queries, whose block lists
name that part, in one call of the sparse kernel; the parts are merged through their LSE.

Shapes: B batch, H heads, Lq and Lk tokens, D head dimension, P parts, Nq query blocks, K key blocks of a part.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from adaspa_cli.attention.block_mask import index_dtype
from adaspa_cli.attention.layout import ceil_div

BLOCK = 128
LEAST_BLOCKS = 8  # key blocks of a part: fewer are not worth the merge
PROGRAMS = 2  # for each multiprocessor, so that the last ones do not run alone


def parts_of(q: Tensor, k: Tensor) -> int:
    """Into how many parts the keys are to be split: 1 where the queries alone fill the GPU, or keys are few."""
    programs = q.shape[0] * q.shape[1] * ceil_div(q.shape[2], BLOCK)
    wanted = PROGRAMS * torch.cuda.get_device_properties(q.device).multi_processor_count
    return max(1, min(wanted // programs, ceil_div(k.shape[2], BLOCK) // LEAST_BLOCKS))


def split_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, parts: int) -> tuple[Tensor, Tensor]:
    """Attend with the keys in ``parts`` parts.

    Args:
        q: [B, H, Lq, D].
        k, v: [B, H, Lk, D].
        scale: factor of q k^T.
        parts: at least 1, at most the blocks of 128 keys.

    Returns:
        Output [B, H, Lq, D] in q's dtype and natural LSE float32 [B, H, Lq].
    """
    import adaspa_kernels

    batch, heads, tokens, head_dim = q.shape
    query_blocks, key_blocks = (ceil_div(x.shape[2], BLOCK) for x in (q, k))
    counts, indices = _lists(q.device, heads, query_blocks, key_blocks, parts)
    parts = counts.shape[-1] // query_blocks
    copies = F.pad(q, (0, 0, 0, query_blocks * BLOCK - tokens)).repeat(1, 1, parts, 1)
    out, lse = adaspa_kernels.block_sparse_attention(
        copies, k, v, counts, indices, key_blocks=key_blocks, block_size=(BLOCK, BLOCK), scale=scale
    )
    out = out.reshape(batch, heads, parts, -1, head_dim)[:, :, :, :tokens]  # [B, H, P, Lq, D]
    lse = lse.reshape(batch, heads, parts, -1)[..., :tokens]  # [B, H, P, Lq]
    total = lse.logsumexp(2)
    weights = (lse - total[:, :, None]).exp()
    return (out * weights[..., None]).sum(2).to(q.dtype), total


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def _lists(device: torch.device, heads: int, query_blocks: int, key_blocks: int, parts: int) -> tuple[Tensor, Tensor]:
    """Counts [H, P * Nq] and indices [H, P * Nq, K]: the same at every call, so that their schedule is kept too."""
    width = ceil_div(key_blocks, parts)
    first = torch.arange(0, key_blocks, width, device=device)  # [P], of parts that are not empty
    counts = (key_blocks - first).clamp(max=width).int()
    blocks = (first[:, None] + torch.arange(width, device=device)).clamp(max=key_blocks - 1).to(index_dtype(key_blocks))
    counts, blocks = (x.repeat_interleave(query_blocks, 0) for x in (counts, blocks))
    return counts.repeat(heads, 1), blocks.repeat(heads, 1, 1)
