"""Block-sparse attention with compensation for left-out blocks: pooled remainder, then probe repair.

Each is optional. Without both it is the sparse operator itself.

Shapes: B batch, H heads, L tokens, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adaspa_cli.attention.backends import Backend
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.layout import TokenLayout
from adaspa_cli.attention.remainder import merge, pool, remainder, share
from adaspa_cli.attention.repair import repair


@dataclass(frozen=True)
class Compensation:
    """How the blocks that a mask leaves out are compensated.

    Attributes:
        pooled: attend to a summary of each of them (:mod:`adaspa_cli.attention.remainder`).
        probes: rows that are attended densely, and repair the others (:mod:`adaspa_cli.attention.repair`); 0 for none.
        ridge: λ of the repair.
    """

    pooled: bool = False
    probes: int = 0
    ridge: float = 10.0


NO_COMPENSATION = Compensation()


@dataclass(frozen=True)
class Estimate:
    """A call's estimate of its error; float32 [B, H], on the device, None where it was not measured.

    Attributes:
        work: what making up for left-out blocks cost, as a share of dense attention: summaries and probes over tokens.
        pooled: share of the attention weights that the summaries represent, mean over the video's rows.
        before: distance of the probes from dense attention, relative to its norm, with the remainder if there is one.
        after: the same after the repair, each probe seen by a fit without it.
    """

    work: float = 0.0
    pooled: Tensor | None = None
    before: Tensor | None = None
    after: Tensor | None = None


def compensated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    layout: TokenLayout,
    scale: float,
    *,
    backend: Backend,
    compensation: Compensation,
) -> tuple[Tensor, Tensor, Estimate]:
    """Attend sparsely, and compensate for left-out blocks.

    Args:
        q, k, v: [B, H, L, D].
        mask: counts [H, Nq] or [B, H, Nq].
        layout: of the sequence, which the mask was made for.
        scale: factor of q k^T.
        backend: runs the operators.
        compensation: what makes up for what is left out.

    Returns:
        Output [B, H, L, D]; LSE [B, H, L], which with the remainder is an estimate of that of all keys, and without
        it that of the kept keys alone; and what is known of the error.
    """
    pooled, work = None, min(compensation.probes, layout.video_tokens) / layout.tokens
    if compensation.pooled:
        work += len(layout.video_blocks(mask.block_size[1])) / layout.tokens
        out, lse, shares = _with_remainder(q, k, v, mask, layout, scale, backend)
        video = slice(layout.video_start, layout.video_start + layout.video_tokens)
        pooled = shares[:, :, video].mean(-1)
    else:
        out, lse = backend.sparse(q, k, v, mask, scale)
    if not compensation.probes:
        return out, lse, Estimate(work, pooled)
    done = repair(
        q, k, v, out, mask, layout,
        probes=compensation.probes, ridge=compensation.ridge, scale=scale, dense=backend.dense, affine=backend.affine,
    )  # fmt: skip
    return done.out, lse, Estimate(work, pooled, done.before, done.after)


def _with_remainder(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, layout: TokenLayout, scale: float, backend: Backend
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, LSE, and the share [B, H, L] of the summaries in each row's weights."""
    block = mask.block_size[1]
    if backend.pooled:
        out, lse, kept_lse = backend.pooled(q, k, v, mask, layout.video_blocks(block), scale)
        return out, lse, (1 - (kept_lse - lse).exp()).nan_to_num(0.0)
    out, lse = backend.sparse(q, k, v, mask, scale)
    rest, rest_lse = remainder(q, pool(k, v, layout, block), mask, scale)
    return *merge(out, lse, rest, rest_lse), share(lse, rest_lse)
