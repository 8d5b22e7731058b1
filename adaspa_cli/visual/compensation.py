"""Compensation for left-out blocks, compared with dense attention of the same call.

Mass. Of the attention weights of a query row, the kept blocks hold a share exactly; another is what the summaries of
the left-out blocks stand for. The exponential of a mean is no larger than the mean of exponentials, so a summary stands
for no more than its block holds: the rest is seen by neither.

Error. Norm of the difference to the dense output over the norm of the dense output, over all of the video's rows: of
the kept blocks alone, with the summaries, and after the repair. A run cannot know it. What it can know is the error on
its probe rows, which is here beside it.

Shapes: H heads, L tokens, D head dimension, Nq query blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout
from adaspa_cli.attention.backends import Backend
from adaspa_cli.attention.compensated import NO_COMPENSATION, Compensation, compensated_attention
from adaspa_cli.attention.remainder import block_means

KEPT, SUMMARIES, REPAIR = "kept blocks", "with summaries", "repaired"


@dataclass(frozen=True)
class Compensated:
    """One layer at one step, by head [H].

    Attributes:
        exact: share of the attention weights in kept blocks, mean over the video's rows.
        pooled: share that summaries stand for; 0 without them.
        errors: of the output, relative to the dense one, after each stage that there is: ``kept blocks``,
            ``with summaries``, ``repaired``.
        before, after: the error that a run estimates on its probe rows, before the repair and after it; None without.
    """

    exact: list[float]
    pooled: list[float]
    errors: dict[str, list[float]]
    before: list[float] | None
    after: list[float] | None

    @property
    def unseen(self) -> list[float]:
        """Share of the attention weights that neither kept blocks nor summaries stand for."""
        return [round(max(0.0, 1 - exact - pooled), 6) for exact, pooled in zip(self.exact, self.pooled, strict=True)]


def measure_compensation(
    qkv: tuple[Tensor, Tensor, Tensor],
    dense: tuple[Tensor, Tensor],
    mask: BlockMask,
    layout: TokenLayout,
    *,
    backend: Backend,
    compensation: Compensation,
) -> tuple[Compensated, Tensor]:
    """Attend as a run does, one stage after the other.

    Args:
        qkv: q, k, v [1, H, L, D].
        dense: output [1, H, L, D] and LSE [1, H, L] of dense attention.
        mask: counts [H, Nq].
        layout: of the sequence.
        backend: runs the operators.
        compensation: of the run.

    Returns:
        The figures, and the share that summaries stand for by query block, float32 [H, Nq].
    """
    stages = {KEPT: NO_COMPENSATION}
    if compensation.pooled:
        stages[SUMMARIES] = Compensation(pooled=True)
    if compensation.probes:
        stages[REPAIR] = compensation
    out, lse = dense
    video = slice(layout.video_start, layout.video_start + layout.video_tokens)
    errors, masses = {}, []
    for name, stage in stages.items():
        made, seen, estimate = compensated_attention(
            *qkv, mask, layout, qkv[0].shape[-1] ** -0.5, backend=backend, compensation=stage
        )
        errors[name] = _rounded(_distance(made[0, :, video], out[0, :, video]))
        masses.append((seen - lse).exp().clamp_(max=1)[0])  # [H, L]
    pooled = (masses[-1] - masses[0]).clamp_(min=0)
    by_block = block_means(pooled[None, ..., None], mask.block_size[0])[0, ..., 0]
    before, after = (None if x is None else _rounded(x[0]) for x in (estimate.before, estimate.after))
    exact = masses[0][:, video].mean(-1)
    return Compensated(_rounded(exact), _rounded(pooled[:, video].mean(-1)), errors, before, after), by_block


def _distance(made: Tensor, wanted: Tensor) -> Tensor:
    """Norm of the difference of [H, N, D] over the norm of what is wanted: float32 [H]; a head at a time in memory."""
    tiny = torch.finfo(torch.float32).tiny
    pairs = ((x.float(), y.float()) for x, y in zip(made, wanted, strict=True))
    return torch.stack([(x - y).norm() / y.norm().clamp(min=tiny) for x, y in pairs])


def _rounded(values: Tensor) -> list[float]:
    """As reports round them."""
    return [round(value, 6) for value in values.tolist()]
