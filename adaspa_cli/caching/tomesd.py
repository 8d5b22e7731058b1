"""Token merging for diffusion (ToMe for SD, arXiv 2303.17604), before dense attention.

Destinations stand on a fixed grid of the video; all other video tokens are sources. Each source is matched with its
most similar destination by the cosine of their keys, averaged over the heads (ToMe, arXiv 2210.09461, bipartite soft
matching), and the best matches are merged: a destination becomes the mean of itself and its sources, and stands in
the softmax as often as it has members (ToMe, proportional attention). After attention each source gets a copy of its
destination's output. Where merged tokens are alike this is exact.

Shapes: H heads, L tokens of a row, D head dimension, M = L less the merged tokens.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.layout import ceil_div

# Similarities that are held at once: all sources against all destinations would take gigabytes.
CHUNK_SIMILARITIES = 1 << 25


@dataclass(frozen=True)
class Merge:
    """Where the tokens of one row go.

    Attributes:
        kept: [M], ascending, the tokens that stay.
        target: [L], for each token the one of the kept that stands for it.
        merged: [L - M], the tokens that do not stay.
        sizes: [M], float32, tokens that each of the kept stands for.
    """

    kept: Tensor
    target: Tensor
    merged: Tensor
    sizes: Tensor

    def merge(self, x: Tensor) -> Tensor:
        """Means of the tokens that belong together: x [1, H, L, D] to [1, H, M, D]."""
        tokens = x[0].transpose(0, 1)  # [L, H, D]
        sums = tokens[self.kept].float()
        sources, places = tokens[self.merged].float(), self.target[self.merged]
        if x.device.type == "cuda":
            # Sorts by place; index_add_ would add in an order that changes from run to run.
            sums.index_put_((places,), sources, accumulate=True)
        else:
            sums.index_add_(0, places, sources)
        return (sums / self.sizes[:, None, None]).to(x.dtype).transpose(0, 1)[None]

    def unmerge(self, x: Tensor) -> Tensor:
        """Copy x [1, H, M, D] back to all tokens: [1, H, L, D]."""
        return x.index_select(2, self.target)


class TokenMerging:
    """Dense attention on merged tokens, and a count of how many were merged.

    Attributes:
        ratio: requested share of the video tokens.
        grid: strides of the destinations in frames, rows and columns.
    """

    def __init__(self, ratio: float, grid: tuple[int, ...]) -> None:
        self.ratio, self.grid = ratio, grid
        self.start()

    def start(self) -> None:
        """Begin a run: forget the counts of the one before."""
        self._merged = self._video_tokens = 0

    @property
    def merged(self) -> float | None:
        """Share of the video tokens of all calls that was merged; None without a call."""
        return self._merged / self._video_tokens if self._video_tokens else None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """Attention of one row: q, k, v [1, H, L, D] to output [1, H, L, D] and density [H].

        The density is the share of the L x L weights that the merged tokens have. No tensor is of that size.
        """
        plan = plan_merge(k, layout, self.ratio, self.grid)
        self._merged += len(plan.merged)
        self._video_tokens += layout.video_tokens
        out = _proportional_attention(plan.merge(q), plan.merge(k), plan.merge(v), plan.sizes, scale)
        density = (len(plan.kept) / layout.tokens) ** 2
        return plan.unmerge(out), torch.full((q.shape[1],), density, dtype=torch.float32, device=q.device)


def plan_merge(k: Tensor, layout: TokenLayout, ratio: float, grid: tuple[int, ...]) -> Merge:
    """Choose ``round(ratio * video tokens)`` sources to merge, at most all there are; text is never merged.

    Args:
        k: keys [1, H, L, D] as they enter attention.
        ratio: share of the video tokens.
        grid: strides of the destinations in frames, rows and columns.
    """
    tokens, start = layout.tokens, layout.text_tokens if layout.text_position == "first" else 0
    sources, destinations = (part + start for part in _split(layout, grid, k.device))
    directions = F.normalize(k[0].mean(0, dtype=torch.float32), dim=-1).to(k.dtype)  # [L, D]
    similarity, match = best_match(directions[sources], directions[destinations])
    best = similarity.topk(min(len(sources), round(ratio * layout.video_tokens))).indices
    merged, into = sources[best], destinations[match[best]]

    position = torch.arange(tokens, device=k.device)
    leaves = torch.zeros_like(position).index_fill_(0, merged, 1)
    kept = leaves.argsort(stable=True)[: tokens - len(merged)]
    place = torch.zeros_like(position).index_copy_(0, kept, position[: len(kept)])
    target = place.index_copy(0, merged, place[into])
    sizes = torch.zeros(len(kept), dtype=torch.float32, device=k.device)
    sizes.index_add_(0, target, torch.ones_like(target, dtype=torch.float32))
    return Merge(kept, target, merged, sizes)


def _split(layout: TokenLayout, grid: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of the video's sources and destinations, frame-major."""
    shape = (layout.frames, layout.height, layout.width)
    on_grid = torch.zeros(shape, dtype=torch.uint8, device=device)
    on_grid[:: grid[0], :: grid[1], :: grid[2]] = 1
    destinations = math.prod(ceil_div(size, stride) for size, stride in zip(shape, grid, strict=True))
    order = on_grid.flatten().argsort(stable=True)  # no waiting for the device, as nonzero() would
    return order[:-destinations], order[-destinations:]


def best_match(sources: Tensor, destinations: Tensor, at_once: int = CHUNK_SIMILARITIES) -> tuple[Tensor, Tensor]:
    """For each source the similarity and the index of its most similar destination; directions [n, D].

    So many similarities ``at_once``, or those of one source.
    """
    chunk = max(1, at_once // len(destinations))
    parts = [(part @ destinations.T).max(-1) for part in torch.split(sources, chunk)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _proportional_attention(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor, scale: float) -> Tensor:
    """Attention in which key j counts ``sizes[j]`` times: log(sizes) is added to its scores.

    On a GPU cuDNN or the memory-efficient kernel, which read one row of it for all queries; another would build it
    for every query.
    """
    bias = sizes.log().to(q.dtype)[None, None, None]
    kernels: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if q.device.type == "cuda":
        from torch.nn.attention import SDPBackend, sdpa_kernel

        kernels = sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION], set_priority=True)
    with kernels:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
