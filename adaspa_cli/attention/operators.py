"""The operators as torch sees them inside ``torch.compile``: opaque, with shapes known beforehand, no graph breaks.

Outside of it :mod:`adaspa_cli.attention.api` calls them directly. Backend and kernel are chosen when the
compiled code runs, so that what cannot run says so as it does without compilation. Forward only.

Shapes: as in :mod:`adaspa_cli.attention.api`.
"""

import torch
from torch import Tensor

from adaspa_cli.attention import checked
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.layout import ceil_div


@torch.library.custom_op("adaspa::block_sparse_attention", mutates_args=())
def block_sparse_operator(
    q: Tensor, k: Tensor, v: Tensor, counts: Tensor, indices: Tensor,
    key_blocks: int, block_q: int, block_k: int, scale: float, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output [B, H, Lq, D], laid out as [B, Lq, H, D], and LSE [B, H, Lq], on the lists of a :class:`BlockMask`."""
    mask = BlockMask(counts, indices, key_blocks, (block_q, block_k))
    out, lse = checked.sparse(q, k, v, mask, scale, backend)
    return out.transpose(1, 2).contiguous().transpose(1, 2), lse.to(_sum_dtype(q)).contiguous()


@block_sparse_operator.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, counts: Tensor, indices: Tensor,
    key_blocks: int, block_q: int, block_k: int, scale: float, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, heads, tokens, head_dim = q.shape
    out = q.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)
    return out, q.new_empty(batch, heads, tokens, dtype=_sum_dtype(q))


@torch.library.custom_op("adaspa::block_sums", mutates_args=())
def block_sums_operator(
    q: Tensor, k: Tensor, lse: Tensor, block_q: int, block_k: int, scale: float, row_stride: int, backend: str
) -> Tensor:
    """Block sums W [B, H, Nq, Nk]."""
    sums = checked.sums(q, k, lse, (block_q, block_k), scale, row_stride, backend)
    return sums.to(_sum_dtype(q)).contiguous()


@block_sums_operator.register_fake
def _(
    q: Tensor, k: Tensor, lse: Tensor, block_q: int, block_k: int, scale: float, row_stride: int, backend: str
) -> Tensor:
    rows, columns = ceil_div(q.shape[2], block_q), ceil_div(k.shape[2], block_k)
    return q.new_empty(q.shape[0], q.shape[1], rows, columns, dtype=_sum_dtype(q))


def _sum_dtype(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)
