"""The pooled remainder: each block that a mask leaves out takes part as one summary.

Maths. A key block j of n_j tokens, with mean key k̄_j and mean value v̄_j, stands for its tokens as one key of logit
q k̄_j * scale + log n_j. That is what its tokens add up to if their keys are alike. The softmax over the blocks that a
query row leaves out is merged with the one over the blocks that it keeps, each weighed by its log-sum-exp (LSE):

    out = (exp(lse_a) out_a + exp(lse_b) out_b) / (exp(lse_a) + exp(lse_b)),    lse = log(exp(lse_a) + exp(lse_b)).

Blocks with text have no summary, because every mask keeps them. The cost is that of dense attention over one key in
each block: 1/64 of all FLOPs with blocks of 64.

This is the readable version, and the one that runs on a CPU. Products are in the dtype of q, all else is float32.

Shapes: B batch, H heads, L tokens (Lq of queries), D head dimension, BQ tokens of a query block, Nq and Nk blocks of
the sequence, Nv key blocks without text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.layout import TokenLayout, ceil_div

# Scores of one chunk: within a CPU's cache, and 0.5 GB of them on a GPU, where launches cost more than memory.
_CHUNK_SCORES = {"cpu": 1 << 20}
_CHUNK_SCORES_ELSEWHERE = 1 << 27
_CPU_TOKENS = 1024  # of a piece that is merged at once


@dataclass(frozen=True)
class BlockSummaries:
    """One key and one value for each key block without text.

    Attributes:
        keys, values: means over the block's tokens, float32 [B, H, Nv, D].
        log_tokens: logarithm of the number of its tokens, float32 [Nv].
        first: number of the first of these blocks in the sequence.
    """

    keys: Tensor
    values: Tensor
    log_tokens: Tensor
    first: int


def pool(k: Tensor, v: Tensor, layout: TokenLayout, block: int) -> BlockSummaries:
    """Summarise the key blocks that hold no text, of k and v [B, H, L, D]; ``block`` is the tokens of a block.

    A ragged last block is the mean of the tokens that it has.
    """
    blocks = layout.video_blocks(block)
    tokens = slice(min(blocks.start * block, layout.tokens), min(blocks.stop * block, layout.tokens))
    sizes = torch.full((len(blocks),), block, dtype=torch.float32, device=k.device)
    if ragged := (tokens.stop - tokens.start) % block:
        sizes[-1:] = ragged  # a slice: an index would wait for the device
    keys, values = (block_means(x[:, :, tokens], block) for x in (k, v))
    return BlockSummaries(keys, values, sizes.log(), blocks.start)


def block_means(x: Tensor, block: int) -> Tensor:
    """Means of x [B, H, L, D] over blocks of ``block`` tokens, float32 [B, H, ceil(L / block), D]."""
    whole, ragged = x.shape[2] // block, x.shape[2] % block
    head = x[:, :, : whole * block].view(*x.shape[:2], whole, block, x.shape[3]).mean(3, dtype=torch.float32)
    if not ragged:
        return head
    return torch.cat([head, x[:, :, whole * block :].mean(2, keepdim=True, dtype=torch.float32)], dim=2)


@torch.no_grad()
def remainder(q: Tensor, summaries: BlockSummaries, mask: BlockMask, scale: float) -> tuple[Tensor, Tensor]:
    """Attention over the summaries of the blocks that ``mask`` leaves out.

    Args:
        q: [B, H, Lq, D].
        summaries: of the keys and values of the same sequence.
        mask: counts [H, Nq] or [B, H, Nq]; its key blocks are those of the summaries.
        scale: factor of q k^T.

    Returns:
        Output [B, H, Lq, D] in q's dtype and LSE float32 [B, H, Lq]; a row that leaves nothing out has zeros and -inf.
    """
    batch, heads, tokens, head_dim = q.shape
    blocks = summaries.keys.shape[2]
    out = q.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)  # as models flatten it
    lse = torch.full((batch, heads, tokens), -torch.inf, dtype=torch.float32, device=q.device)
    if not blocks:
        return out.zero_(), lse
    kept = mask.to_bool()[..., summaries.first : summaries.first + blocks]
    bias = torch.where(kept, -torch.inf, summaries.log_tokens).expand(batch, heads, -1, -1)  # [B, H, Nq, Nv]
    keys = (summaries.keys * scale).to(q.dtype).mT
    values = summaries.values.to(q.dtype)
    for rows, part in _chunks(q.device, batch * heads, tokens, blocks, mask.block_size[0]):
        logits = (q[:, :, part] @ keys).float().view(batch, heads, rows.stop - rows.start, -1, blocks)
        logits += bias[:, :, rows, None]
        largest = logits.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)  # -inf - -inf is not 0
        weights = logits.sub_(largest).exp_()
        total = weights.sum(-1, keepdim=True)
        lse[:, :, part] = (largest + total.log()).flatten(2)
        weights = weights.div_(total.clamp(min=1)).flatten(2, 3)  # the heaviest of a row weighs 1
        out[:, :, part] = weights.to(q.dtype) @ values
    return out, lse


def _chunks(device: torch.device, heads: int, tokens: int, blocks: int, block_q: int) -> Iterator[tuple[slice, slice]]:
    """Query blocks and their tokens, so few that their scores are held at once; a ragged block comes alone."""
    scores = _CHUNK_SCORES.get(device.type, _CHUNK_SCORES_ELSEWHERE)
    whole = tokens // block_q
    step = max(1, scores // (heads * blocks * block_q))
    for start in range(0, whole, step):
        stop = min(start + step, whole)
        yield slice(start, stop), slice(start * block_q, stop * block_q)
    if whole < ceil_div(tokens, block_q):
        yield slice(whole, whole + 1), slice(whole * block_q, tokens)


def share(lse_a: Tensor, lse_b: Tensor) -> Tensor:
    """Share of ``b`` in the mass of two parts of a row with these LSE; 0 where there is neither."""
    return torch.sigmoid(lse_b - lse_a).nan_to_num(0.0)


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two parts of the keys from that over each: outputs [B, H, L, D], LSE [B, H, L].

    Exact where one part is empty, with an LSE of -inf. The output has the dtype and the memory layout of ``out_a``.
    """
    wide = torch.promote_types(out_a.dtype, torch.float32)
    weight = share(lse_a, lse_b)[..., None].to(wide)
    out = torch.empty_like(out_a)
    for part in _pieces(out.device, out.shape[2]):
        out[:, :, part] = torch.lerp(out_a[:, :, part].to(wide), out_b[:, :, part].to(wide), weight[:, :, part])
    return out, torch.logaddexp(lse_a, lse_b)


def _pieces(device: torch.device, tokens: int) -> Iterator[slice]:
    """Small pieces on a CPU: their float32 copies stay in the cache, and fresh memory costs more than arithmetic."""
    step = _CPU_TOKENS if device.type == "cpu" else max(1, tokens)
    return (slice(start, start + step) for start in range(0, tokens, step))
