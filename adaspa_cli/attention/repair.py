"""Probe repair: a few rows that attend densely show how to correct the sparse output of all rows.

Maths. M probe rows are spread evenly over the video tokens. Their sparse outputs o_m, standardised over the probes to
z_m (mean 0, deviation 1 in each channel), are the features, and t_m = dense_m - o_m the targets, of one affine map for
each head, fitted by ridge regression of strength λ:

    W = Zᵀ (Z Zᵀ + λI)⁻¹ (T - t̄),    repaired = o + z W + t̄.

Probe rows take their dense output. A row that keeps every block is exact already and is left alone.

What is left over is estimated on the probes by leaving one out, because a residual on rows that were fitted is too
small. It has a closed form: with G = (Z Zᵀ + λI)⁻¹ the residual of row m in the fit without it is
(λ G (T - t̄))_m / (λ G_mm - 1/M).

The idea of a repair fitted on dense rows is SparsePR's (arXiv 2608.18484); its projection to a low rank is left out,
because it changed nothing here. Nothing waits for the device.

Shapes: B batch, H heads, L tokens, N video tokens, D head dimension, M probes, Nq query blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adaspa_cli.attention.backends import AffineOperator
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.layout import TokenLayout

DenseOperator = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]

# Of a channel that hardly varies over the probes, relative to the root mean square of all deviations of the head:
# divided by its own it would be all noise.
_LEAST_DEVIATION = 1e-2


def _least_deviation(probes: int) -> float:
    """Fewer than eight probes see many a channel hardly vary by chance: half of what is typical has to do for two."""
    return max(_LEAST_DEVIATION, 0.5 ** (probes - 1))


@dataclass(frozen=True)
class Repaired:
    """A repaired output, and how far from dense attention its probes were.

    Attributes:
        out: [B, H, L, D].
        before: norm of dense - sparse over the probes, relative to that of dense, float32 [B, H].
        after: the same of what the repair leaves over, each probe seen by a fit without it.
    """

    out: Tensor
    before: Tensor
    after: Tensor


def probe_rows(layout: TokenLayout, probes: int, device: torch.device | str) -> Tensor:
    """``probes`` tokens spread evenly over the video, ascending int64 [M]; every token if there are fewer."""
    tokens = layout.video_tokens
    count = min(probes, tokens)
    middle = torch.arange(count, device=device) * 2 + 1
    return middle * tokens // (2 * max(1, count)) + layout.video_start


@torch.no_grad()
def repair(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    mask: BlockMask,
    layout: TokenLayout,
    *,
    probes: int,
    ridge: float,
    scale: float,
    dense: DenseOperator,
    affine: AffineOperator | None = None,
) -> Repaired:
    """Repair the sparse output of one call.

    Args:
        q, k, v: [B, H, L, D].
        out: sparse attention's output, with or without a remainder; not changed.
        mask: counts [H, Nq] or [B, H, Nq]: rows that keep every block stay as they are.
        layout: the token sequence.
        probes: M, at least 1.
        ridge: λ, above 0.
        scale: factor of q k^T.
        dense: attends densely from some queries to all keys.
        affine: applies the map to all rows at once; None: PyTorch does.
    """
    rows = probe_rows(layout, probes, q.device)
    exact = dense(q[:, :, rows], k, v, scale)[0]
    there = out[:, :, rows].float()
    target = exact.float() - there
    fit = _Fit.of(there, target, ridge)
    whole = exact.float().norm(dim=(2, 3)).clamp_(min=torch.finfo(torch.float32).tiny)

    video = range(layout.video_start, layout.video_start + layout.video_tokens)
    if affine is None:
        repaired = _apply(fit, out, mask, video)
    else:
        repaired = affine(out, fit.mean, fit.factor, fit.weight, fit.intercept, mask, video)
    full = mask.counts[..., rows // mask.block_size[0], None] == mask.key_blocks
    repaired[:, :, rows] = torch.where(full, out[:, :, rows], exact)
    return Repaired(repaired, target.norm(dim=(2, 3)) / whole, fit.left_out.norm(dim=(2, 3)) / whole)


def _apply(fit: _Fit, out: Tensor, mask: BlockMask, video: range) -> Tensor:
    """Add the correction to the video rows that leave key blocks out."""
    repaired = out.clone()
    for part in _pieces(slice(video.start, video.stop), out.device):
        repaired[:, :, part] += fit.correction(out[:, :, part]).to(out.dtype)
    full = (mask.counts == mask.key_blocks).repeat_interleave(mask.block_size[0], -1, output_size=_padded(mask))
    return torch.where(full[..., : out.shape[2], None], out, repaired, out=repaired)


def _padded(mask: BlockMask) -> int:
    return mask.query_blocks * mask.block_size[0]


def _pieces(rows: slice, device: torch.device) -> list[slice]:
    """Small pieces on a CPU, whose float32 copies stay in the cache."""
    step = 1024 if device.type == "cpu" else max(1, rows.stop - rows.start)
    return [slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step)]


@dataclass(frozen=True)
class _Fit:
    """The affine map of each head; all float32.

    Attributes:
        mean, factor: [B, H, 1, D], features are (o - mean) * factor.
        weight: [B, H, D, D].
        intercept: [B, H, 1, D].
        left_out: [B, H, M, D], each probe's residual in the fit without it.
    """

    mean: Tensor
    factor: Tensor
    weight: Tensor
    intercept: Tensor
    left_out: Tensor

    @classmethod
    def of(cls, x: Tensor, target: Tensor, ridge: float) -> _Fit:
        """Fit ``target`` on ``x``, both [B, H, M, D]; the intercept is not shrunk."""
        probes = x.shape[2]
        mean, intercept = x.mean(2, keepdim=True), target.mean(2, keepdim=True)
        features, centred = x - mean, target - intercept
        deviation = features.square().mean(2, keepdim=True).sqrt_()
        least = deviation.square().mean(-1, keepdim=True).sqrt_().mul_(_least_deviation(probes))
        factor = 1 / deviation.maximum(least).clamp_(min=1e-20)
        features = features * factor
        identity = torch.eye(probes, dtype=x.dtype, device=x.device)
        # In the dual form, [M, M]. The plain cholesky would wait for the device to say whether it worked.
        lower = torch.linalg.cholesky_ex(features @ features.mT + ridge * identity)[0]
        half = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
        inverse = half.mT @ half
        solved = inverse @ centred
        leverage = ridge * inverse.diagonal(dim1=-2, dim2=-1)[..., None] - 1 / probes
        left_out = ridge * solved / leverage.clamp(min=1e-6)
        return cls(mean, factor, features.mT @ solved, intercept, left_out)

    def correction(self, x: Tensor) -> Tensor:
        """What to add to x [B, H, n, D]; the product is in x's dtype, of centred features, so that nothing cancels."""
        features = ((x.float() - self.mean) * self.factor).to(x.dtype)
        return (features @ self.weight.to(x.dtype)).float() + self.intercept
