"""Frame regions: columns or diagonals in each pair of frames, whichever hold more (arXiv 2502.21079, table A).

The video part of the weights falls into f x f regions, one for each pair of query and key frame. Inside a region
weights stand in columns or on diagonals, which break at its border (AdaSpa, observation "hierarchical"); so each
region is searched for itself, head by head.

The search is AdaSpa's, at the same steps, from the same exact block sums W. A block belongs to the frame of its middle
token. In the region of query frame i and key frame j, of C key blocks, a *column* is one key block for all rows of i,
and a *diagonal* the key block (r + d) mod C for row r of i: it wraps around at the border of the region, so that all
lines cost each row one block. Both patterns take the c heaviest lines, and the region takes the pattern of the larger
sum. All regions have the same sparsity: c is C's share of the k = round((1-γ) * Nv) blocks that a row keeps, rounded
so that the shares of a row add up to k. A frame shorter than half a block may hold no middle token, and joins another.

Shapes: W [H, Nq, Nk] block sums, H heads, Nv video blocks, f frames, C blocks of a key frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.config.kept_blocks import kept_blocks
from adaspa_cli.config.methods import FrameRegionConfig
from adaspa_cli.masks.packing import full_mask, pack_lists
from adaspa_cli.masks.plan import CallPlan
from adaspa_cli.masks.policy import Call, FoundMask, MaskPolicy
from adaspa_cli.masks.schedule import Sparsity, plan_search, search_keeps_lse, sparsity_at


@dataclass(frozen=True)
class FrameRegion(MaskPolicy):
    """The method's settings.

    Attributes:
        sparsity: γ in [0, 1), share of the video blocks left out.
        search_steps: ascending 0-based denoising steps; everything before the first is dense (warm-up).
        block: tokens of a block, query and key alike.
        lse_cache: searches after the first take their LSE from the first.
        stages: the first step of each transformer after the first.
    """

    sparsity: Sparsity
    search_steps: tuple[int, ...]
    block: int = 64
    lse_cache: bool = True
    stages: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: FrameRegionConfig, steps: int, stages: tuple[int, ...] = ()) -> FrameRegion:
        """The policy of a run with ``steps`` denoising steps; raises as :meth:`SparseConfig.schedule`."""
        schedule = config.schedule(steps, stages)
        return cls(
            config.sparsity_by_step(steps), schedule, config.block_size, lse_cache=config.lse_cache, stages=stages
        )

    @property
    def block_size(self) -> tuple[int, int]:
        return self.block, self.block

    def decide(self, call: Call, last_search: int | None) -> CallPlan:
        return plan_search(call, last_search, self.search_steps, lse_cache=self.lse_cache)

    def keeps_lse(self, step: int) -> bool:
        return search_keeps_lse(step, self.search_steps, lse_cache=self.lse_cache, stages=self.stages)

    def search(self, call: Call, block_sums: Tensor, scores: Tensor | None = None) -> FoundMask:  # noqa: ARG002
        """Search every region; the recall is exact."""
        layout, heads, device = call.layout, block_sums.shape[0], block_sums.device
        video = layout.video_blocks(self.block)
        kept = kept_blocks(sparsity_at(self.sparsity, call.step), len(video))
        if kept == len(video):
            return FoundMask(full_mask(layout, heads, self.block_size, device), block_sums.new_ones(heads))
        borders = frame_borders(layout, self.block)
        place = _Place.of(borders, device)
        sums = block_sums[:, video.start : video.stop, video.start : video.stop]
        columns = _per_frame(sums, borders)
        diagonals = _per_frame(sums.gather(-1, place.on_diagonals().expand(heads, -1, -1)), borders)
        total = block_sums.sum((-1, -2))
        mass = total - sums.sum((-1, -2))  # [H]: every block with text is kept
        lists = []
        for start, stop in pairwise(borders):
            lines = kept * stop // len(video) - kept * start // len(video)
            local, weight = _heaviest(columns[..., start:stop], diagonals[..., start:stop], lines, place)
            lists.append(local + start)
            mass = mass + weight
        counts = torch.full((heads,), kept, device=device)
        mask = pack_lists(torch.cat(lists, -1) + video.start, counts, layout, self.block_size)
        return FoundMask(mask, mass / total)


def frame_borders(layout: TokenLayout, block: int) -> list[int]:
    """First video block of each frame that has one, and the number of video blocks at the end; ascending."""
    video = layout.video_blocks(block)
    tokens = layout.height * layout.width
    # Block b belongs to the frame of token b * block + block // 2.
    firsts = (-(-(layout.video_start + frame * tokens - block // 2) // block) for frame in range(1, layout.frames))
    inner = {first - video.start for first in firsts if video.start < first < video.stop}
    return [0, *sorted(inner), len(video)]


@dataclass(frozen=True)
class _Place:
    """Where the video blocks stand: int64 [Nv] each, the number of a block's frame, the frame's first block and number
    of blocks, and the block's own place in it."""

    frame: Tensor
    first: Tensor
    size: Tensor
    local: Tensor

    @classmethod
    def of(cls, borders: list[int], device: torch.device) -> _Place:
        frames = enumerate(pairwise(borders))
        table = [(frame, a, b - a, block - a) for frame, (a, b) in frames for block in range(a, b)]
        # From the CPU without waiting for the device.
        return cls(*torch.tensor(table, dtype=torch.int64, device="cpu").T.contiguous().to(device, non_blocking=True))

    def on_diagonals(self) -> Tensor:
        """[Nv, Nv]: the key block of each row on the diagonal that a column's place stands for."""
        return self.first + (self.local[:, None] + self.local) % self.size


def _per_frame(x: Tensor, borders: list[int]) -> Tensor:
    """Sum x [H, Nv, Nv] over the rows of each query frame: [H, f, Nv]."""
    return torch.stack([x[:, start:stop].sum(1) for start, stop in pairwise(borders)], dim=1)


def _heaviest(columns: Tensor, diagonals: Tensor, lines: int, place: _Place) -> tuple[Tensor, Tensor]:
    """Choose ``lines`` columns or diagonals in each region of one key frame from their mass [H, f, C].

    Returns:
        Kept key blocks [H, Nv, lines] of each row, counted from the frame's first, and their mass [H].
    """
    by_column, by_diagonal = columns.topk(lines, dim=-1), diagonals.topk(lines, dim=-1)
    column_mass, diagonal_mass = by_column.values.sum(-1), by_diagonal.values.sum(-1)  # [H, f]
    diagonal = (diagonal_mass > column_mass)[..., None]
    chosen = torch.where(diagonal, by_diagonal.indices, by_column.indices)[:, place.frame]  # [H, Nv, lines]
    turned = (chosen + place.local[:, None]) % columns.shape[-1]
    return torch.where(diagonal[:, place.frame], turned, chosen), torch.maximum(column_mass, diagonal_mass).sum(-1)
