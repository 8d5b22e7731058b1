"""Sparse VideoGen: two static masks, and each head takes the one that fits it (arXiv 2502.01776, section 4).

- The *spatial* mask is a band round the diagonal in frame-major order, so own and neighbouring frames, and the first
  frame. The *temporal* mask is a band in position-major order [h*w, f]: the same and neighbouring positions in all
  frames. The tokens of temporal heads are permuted to that order, attended, and permuted back (section 4.2); text
  stays where it is.
- *Classification* (section 4.1), at every step after warm-up, in every layer: a few query rows, drawn at random,
  attend fully and with both masks; the head takes the mask of the smaller squared error.

*Band width.* Every row keeps k = round((1-γ) * Nv) of Nv video key blocks, as AdaSpa's rows do. The temporal band is
k blocks wide. The spatial one is k - s wide, beside the s blocks that hold the first frame's tokens; of these at most
half of k are kept, from the first on, for short videos. At the borders the band is moved inwards, not cut, so that all
rows keep k: the density of the video blocks is k / Nv, exactly.

Shapes: H heads, L tokens, D head dimension, Nv video key blocks, n sampled rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout
from adaspa_cli.attention.layout import ceil_div
from adaspa_cli.config.kept_blocks import kept_blocks
from adaspa_cli.masks.estimating import Estimating
from adaspa_cli.masks.order import HeadOrder
from adaspa_cli.masks.packing import pack_lists
from adaspa_cli.masks.policy import Call, FoundMask
from adaspa_cli.masks.rows import head_groups, row_weights
from adaspa_cli.masks.schedule import sparsity_at


@dataclass(frozen=True)
class SparseVideoGen(Estimating):
    """The method's settings.

    Attributes:
        sampled_rows: query rows that a head is classified by.
        seed: with step and layer it decides which rows those are.
    """

    sampled_rows: int = 64
    seed: int = 0

    def estimate(self, call: Call, q: Tensor, k: Tensor, v: Tensor, scale: float) -> FoundMask:
        """Classify the heads; the recall is not known."""
        layout, device = call.layout, q.device
        sparsity = sparsity_at(self.sparsity, call.step)
        spatial, temporal = (band(layout, self.block_size, sparsity, device, first_frame=s) for s in (True, False))
        stay = torch.arange(layout.tokens, device=device)
        forward, backward = position_major(layout, device)
        rows = self.sample(call).to(device, non_blocking=True)
        candidates = kept_tokens(spatial, rows, stay), kept_tokens(temporal, rows, backward)
        moved = temporal_heads(q[0], k[0], v[0], rows, scale, *candidates)
        # Both masks keep the same number of blocks in each row.
        indices = torch.where(moved[:, None, None], temporal.indices, spatial.indices)
        counts = spatial.counts.repeat(q.shape[1], 1)
        mask = BlockMask(counts, indices, spatial.key_blocks, self.block_size)
        return FoundMask(mask, None, HeadOrder(moved, forward, backward))

    def sample(self, call: Call) -> Tensor:
        """Places [n] of the query rows, video tokens, redrawn for each step and layer; on the CPU, to be the same on
        all devices."""
        # The generator reads 32 bits of its seed: no place for step and layer above them.
        random = torch.Generator("cpu").manual_seed(((self.seed * 1009 + call.step) * 1009 + call.layer) % 2**32)
        drawn = torch.randint(call.layout.video_tokens, (self.sampled_rows,), generator=random, device="cpu")
        return drawn + call.layout.video_start


def band(
    layout: TokenLayout, block_size: tuple[int, int], sparsity: float, device: torch.device, *, first_frame: bool
) -> BlockMask:
    """The mask of one head: a band round the diagonal, with the first frame or without it, and all text."""
    rows, columns = layout.video_blocks(block_size[0]), layout.video_blocks(block_size[1])
    kept = kept_blocks(sparsity, len(columns))
    end_of_first = layout.video_start + layout.height * layout.width
    sink = min(max(0, ceil_div(end_of_first, block_size[1]) - columns.start), kept // 2) if first_frame else 0
    width = kept - sink
    middle = torch.arange(rows.start, rows.stop, device=device) * block_size[0] + block_size[0] // 2
    start = (middle // block_size[1] - columns.start - width // 2).clamp(sink, len(columns) - width)
    places = torch.cat(
        [
            torch.arange(sink, device=device).expand(len(rows), -1),
            start[:, None] + torch.arange(width, device=device),
        ],
        dim=-1,
    )
    counts = torch.full((1,), kept, device=device)
    return pack_lists(places[None] + columns.start, counts, layout, block_size)


def position_major(layout: TokenLayout, device: torch.device) -> tuple[Tensor, Tensor]:
    """The order that brings video tokens from [f, h*w] to [h*w, f], and its inverse: int64 [L] each."""
    positions = layout.height * layout.width
    video = slice(layout.video_start, layout.video_start + layout.video_tokens)
    forward, backward = (torch.arange(layout.tokens, device=device) for _ in range(2))
    forward[video] = forward[video].view(layout.frames, positions).T.flatten()
    backward[video] = backward[video].view(positions, layout.frames).T.flatten()
    return forward, backward


def kept_tokens(mask: BlockMask, rows: Tensor, place: Tensor) -> Tensor:
    """bool [n, L]: the keys that ``rows`` [n] keep under a mask of one head whose tokens stand at ``place`` [L]."""
    block_q, block_k = mask.block_size
    return mask.to_bool()[0, place[rows] // block_q][:, place // block_k]


def temporal_heads(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, scale: float, spatial: Tensor, temporal: Tensor
) -> Tensor:
    """bool [H]: is the temporal mask closer to full attention on ``rows``? q, k, v [H, L, D], masks bool [n, L]."""
    closer = []
    for group in head_groups(q.shape[0], len(rows) * q.shape[1]):
        values = v[group]
        weights = row_weights(q[group], k[group], rows, scale)
        full = _weigh(weights, values)
        errors = (_squared_error(weights, kept, values, full) for kept in (temporal, spatial))
        closer.append(torch.lt(*errors))
    return torch.cat(closer)


def _squared_error(weights: Tensor, kept: Tensor, v: Tensor, full: Tensor) -> Tensor:
    """[h]: of attention with the ``kept`` [n, L] of ``weights`` [h, n, L] alone against ``full`` [h, n, D]."""
    masked = weights * kept
    mass = masked.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (_weigh(masked / mass, v) - full).square().sum((-1, -2))


def _weigh(weights: Tensor, v: Tensor) -> Tensor:
    """Weights [h, n, L] times v [h, L, D], float32 [h, n, D]."""
    return (weights.to(v.dtype) @ v).float()
