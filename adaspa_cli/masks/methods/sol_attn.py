"""The rule of Sol-Attn: blocks whose pooled score stands out from its row, and a summary of each other block.

At every call after warm-up each query block and each key block is pooled to its mean. A row keeps the video blocks
whose product q̄ k̄ᵀ exceeds the mean of the row by τ standard deviations, and always the largest. It searches nothing
and computes no attention weights; left-out blocks contribute through the pooled remainder. τ is the γ-quantile of the
normal distribution, which keeps 1 - γ of the blocks if the scores are normal; the report has the density achieved.

Shapes: H heads, R query blocks and C key blocks without text, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor

from adaspa_cli.attention.compensated import Compensation
from adaspa_cli.attention.remainder import block_means
from adaspa_cli.masks.estimating import Estimating
from adaspa_cli.masks.packing import full_mask, pack_blocks
from adaspa_cli.masks.policy import Call, FoundMask
from adaspa_cli.masks.schedule import sparsity_at


@dataclass(frozen=True)
class SolAttn(Estimating):
    """Sol-Attn's rule; its settings are those of every method that estimates."""

    @property
    def compensation(self) -> Compensation:
        return Compensation(pooled=True)

    def estimate(self, call: Call, q: Tensor, k: Tensor, v: Tensor, scale: float) -> FoundMask:  # noqa: ARG002
        """Choose the blocks of each row; the recall is not known."""
        sparsity = sparsity_at(self.sparsity, call.step)
        video = call.layout.video_blocks(self.block)
        if sparsity == 0 or not video:
            return FoundMask(full_mask(call.layout, q.shape[1], self.block_size, q.device), None)
        queries, keys = (block_means(x, self.block)[0, :, video.start : video.stop] for x in (q, k))
        kept = outstanding(queries @ keys.mT, NormalDist().inv_cdf(sparsity))
        return FoundMask(pack_blocks(kept, call.layout, self.block_size), None)


def outstanding(scores: Tensor, tau: float) -> Tensor:
    """Bool of the shape of ``scores`` [H, R, C]: above the row's mean by ``tau`` deviations, or its largest."""
    middle = scores.mean(-1, keepdim=True)
    deviation = (scores - middle).square().mean(-1, keepdim=True).sqrt()
    return (scores > middle + tau * deviation) | (scores == scores.amax(-1, keepdim=True))
