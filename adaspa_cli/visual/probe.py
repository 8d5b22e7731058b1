"""Probe of a running model: dense attention that records at chosen steps what a mask would keep of its weights.

Shapes: H heads, Nq and Nk query and key blocks, P cells along a side of a picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout, attention_with_block_sums, block_sums, dense_attention
from adaspa_cli.attention.backends import resolve
from adaspa_cli.attention.compensated import NO_COMPENSATION
from adaspa_cli.attention.layout import same_video_blocks
from adaspa_cli.attention.mask_conversion import unpack_words
from adaspa_cli.attention.remainder import block_means
from adaspa_cli.hooks.clock import StepClock
from adaspa_cli.masks import FoundMask
from adaspa_cli.masks.plan import DENSE, SEARCH
from adaspa_cli.masks.policy import Call, MaskPolicy
from adaspa_cli.masks.recall import mask_recall
from adaspa_cli.masks.schedule import Sparsity, sparsity_at
from adaspa_cli.masks.selection import select
from adaspa_cli.masks.text import pack_video, with_text
from adaspa_cli.models.forward import Row
from adaspa_cli.visual.choice import Choice, check_grid
from adaspa_cli.visual.compensation import Compensated, measure_compensation
from adaspa_cli.visual.patterns import block_pattern, line_patterns, measure, summary_pattern, video_share
from adaspa_cli.visual.weights import HeadWeights, area_means, cell_size

WEIGHTS = "weights"  # the picture of what no pattern has touched
MASK, SEEN = "mask", "mask+summaries"  # those of what a run sees that makes up for left-out blocks


@dataclass(frozen=True)
class MaskRecord:
    """One layer at one step: the mask found there, by head [H].

    Attributes:
        recall, density: of the step's own mask, as a latency report has them.
        reused: recall of the reference step's mask on this step's weights; None before that step.
        lse: mean LSE of the video's rows.
        compensated: what makes up for left-out blocks; None of a method that drops them, and of other videos.
    """

    recall: list[float]
    density: list[float]
    reused: list[float] | None
    lse: list[float]
    compensated: Compensated | None = None


@dataclass(frozen=True)
class HeadPicture:
    """One head of one layer at one step.

    Attributes:
        means: area means [P, P] of the weights and of what each pattern leaves of them.
        share: of the weights that each pattern keeps, among video tokens.
        recall: of each pattern, among video tokens.
        view: uint8 [Nq, Nk]: 0 where the mask leaves a block out, else 1 to 255 by the root of its weight in its row.
        row_recall: share of each query block's weights that the mask keeps [Nq], text included.
        row_pooled: share that summaries of left-out blocks stand for [Nq]; None without summaries.
    """

    means: dict[str, Tensor]
    share: float
    recall: dict[str, float]
    view: Tensor
    row_recall: Tensor
    row_pooled: Tensor | None = None


@dataclass
class AttentionProbe:
    """An :class:`~adaspa_cli.models.attachment.Attend` that looks at the first video of the conditional branch.

    Attributes:
        policy: finds the masks that a run would find.
        sparsity: γ, of the run or of each of its steps.
        detail: whether to draw, or only to record recalls and keep masks.
        earlier: masks of other videos at the reference step, by number and layer.
        records: by (layer, step).
        pictures: by (layer, head, step).
        masks: of the reference step, by layer, on the CPU.
        across: recall [H] of each earlier video's mask at the reference step, by its number and layer.
        layout: of the tokens, once there was a call.
    """

    clock: StepClock
    policy: MaskPolicy
    sparsity: Sparsity
    choice: Choice
    backend: str
    detail: bool = True
    earlier: Mapping[int, Mapping[int, PackedMask]] = field(default_factory=dict)
    on_phase: Callable[[str], None] = lambda _phase: None
    records: dict[tuple[int, int], MaskRecord] = field(default_factory=dict)
    pictures: dict[tuple[int, int, int], HeadPicture] = field(default_factory=dict)
    masks: dict[int, PackedMask] = field(default_factory=dict)
    across: dict[int, dict[int, list[float]]] = field(default_factory=dict)
    layout: TokenLayout | None = None

    @property
    def block_size(self) -> tuple[int, int]:
        return self.policy.block_size

    @property
    def compensated(self) -> dict[tuple[int, int], Compensated]:
        """Compensation for left-out blocks, by (layer, step); empty of a method that drops them."""
        return {at: record.compensated for at, record in self.records.items() if record.compensated is not None}

    def __call__(self, layer: int, row: Row, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend densely: q, k, v [1, H, L, D] to output [1, H, L, D]."""
        probed = (row.branch, row.sample) == ("cond", 0) and self.clock.step in self.choice.steps
        if self.layout is None:
            check_grid(row.layout, self.choice, self.block_size[0])
            self.layout = row.layout
        self.on_phase((SEARCH if probed else DENSE).phase)
        if not probed:
            return dense_attention(q, k, v, backend=self.backend)[0]
        out, lse, sums = attention_with_block_sums(q, k, v, self.block_size, backend=self.backend)
        call = Call(layer, self.clock.step, row.branch, row.sample, row.layout)
        found = self._find(call, q, k, v, lse, sums)
        compensated, pooled, compensation = None, None, self.policy.compensation
        if self.detail and compensation != NO_COMPENSATION:
            backend = resolve(self.backend, q.device)
            compensated, pooled = measure_compensation(
                (q, k, v), (out, lse), found.mask, row.layout, backend=backend, compensation=compensation
            )
        self._record(layer, row.layout, found, lse, sums[0], compensated)
        if self.detail and layer in self.choice.layers:
            self._draw(layer, row.layout, found, q, k, lse, sums[0], pooled)
        return out

    def _find(self, call: Call, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, sums: Tensor) -> FoundMask:
        """The mask of a run, which may be searched from some rows of each block, and its recall over all rows."""
        rows = self.policy.search_rows
        if rows == 1:
            return self.policy.choose(call, sums, v)
        found = self.policy.choose(
            call, block_sums(q, k, lse, self.block_size, row_stride=rows, backend=self.backend), v
        )
        return dataclasses.replace(found, recall=mask_recall(found.mask.to_bool(), sums[0]))

    def _record(
        self,
        layer: int,
        layout: TokenLayout,
        found: FoundMask,
        lse: Tensor,
        sums: Tensor,
        compensated: Compensated | None,
    ) -> None:
        """Keep the figures of a mask, and of the masks that are tried on these weights."""
        step = self.clock.step
        if step == self.choice.reference:
            self.masks[layer] = PackedMask.of(found.mask, layout)
            for number, masks in self.earlier.items():
                recall = masks[layer].recall_on(sums, layout, self.block_size)
                if recall is not None:
                    self.across.setdefault(number, {})[layer] = rounded(recall)
        kept = self.masks.get(layer)
        reused = None if kept is None else kept.recall_on(sums, layout, self.block_size)
        video = slice(layout.video_start, layout.video_start + layout.video_tokens)
        assert found.recall is not None
        self.records[layer, step] = MaskRecord(
            rounded(found.recall),
            rounded(found.mask.density()),
            None if reused is None else rounded(reused),
            rounded(lse[0, :, video].mean(-1)),
            compensated,
        )

    def _draw(
        self,
        layer: int,
        layout: TokenLayout,
        found: FoundMask,
        q: Tensor,
        k: Tensor,
        lse: Tensor,
        sums: Tensor,
        pooled: Tensor | None,
    ) -> None:
        """Weights, patterns and video view of the chosen heads.

        Patterns are compared at one share of the weights, that of blocks with the same budget in every row. Beside them
        stands, with compensation, what the run's own mask and its summaries see.
        """
        kept = found.mask.to_bool()
        sparsity = sparsity_at(self.sparsity, self.clock.step)
        alike = select(sums, layout, self.block_size, sparsity, head_adaptive=False).mask.to_bool()
        for head in self.choice.heads:
            weights = HeadWeights.of_head(q, k, lse, layout, head)
            masses = measure(weights)
            share = video_share(alike[head], layout, self.block_size)
            patterns = line_patterns(weights, masses, share)
            patterns["block"] = block_pattern(weights, masses, alike[head], layout, self.block_size)
            if pooled is not None:
                patterns[MASK] = block_pattern(weights, masses, kept[head], layout, self.block_size)
            if self.policy.compensation.pooled:
                patterns[SEEN] = summary_pattern(
                    weights, masses, kept[head], block_means(k, self.block_size[1])[0, head], layout, self.block_size
                )
            keeps = {WEIGHTS: lambda _start, rows: rows} | {name: p.keep for name, p in patterns.items()}
            means = area_means(weights, keeps, cell_size(weights.tokens, self.choice.pixels))
            self.pictures[layer, head, self.clock.step] = HeadPicture(
                {name: picture.cpu() for name, picture in means.items()},
                share,
                {name: pattern.recall for name, pattern in patterns.items()},
                view_of(sums[head], kept[head], layout.video_blocks(self.block_size[1])).cpu(),
                ((sums[head] * kept[head]).sum(-1) / sums[head].sum(-1)).cpu(),
                None if pooled is None or not self.policy.compensation.pooled else pooled[head].cpu(),
            )


@dataclass(frozen=True)
class PackedMask:
    """A mask put aside without its text: one bit a block, int32 words [H, R, S], and the tokens it was made for."""

    layout: TokenLayout
    words: Tensor

    @classmethod
    def of(cls, mask: BlockMask, layout: TokenLayout) -> PackedMask:
        """Pack a mask, and bring it to the CPU."""
        return cls(layout, pack_video(mask, layout).cpu())

    def recall_on(self, block_sums: Tensor, layout: TokenLayout, block_size: tuple[int, int]) -> Tensor | None:
        """Recall [H] on the block sums W of another video; blocks with text are kept, however long the text is.

        None where the video's blocks do not hold the same tokens, as with a text of another length in front.
        """
        if not same_video_blocks(self.layout, layout, block_size):
            return None
        kept = unpack_words(self.words.to(block_sums.device), len(layout.video_blocks(block_size[1])))
        return mask_recall(with_text(kept, layout, block_size), block_sums)


def view_of(block_sums: Tensor, kept: Tensor, video: range) -> Tensor:
    """What a video view shows of W [Nq, Nk]: uint8, 0 left out, 1 to 255 by the root of the weight in its row.

    The root, because weights differ by orders of magnitude; 255 is the heaviest block of video in the row.
    """
    most = block_sums[:, video.start : video.stop].amax(-1, keepdim=True).clamp(min=1e-30)
    strength = (block_sums / most).clamp(0, 1).sqrt().mul(254).round().add(1)
    return torch.where(kept, strength, 0).to(torch.uint8)


def rounded(values: Tensor) -> list[float]:
    """As reports round them."""
    return [round(value, 6) for value in values.tolist()]


def mean(rows: Sequence[Sequence[float]]) -> float:
    """Mean over rows of equal length."""
    return sum(map(sum, rows)) / sum(map(len, rows))


@dataclass(frozen=True)
class ProbeResult:
    """All that was seen, for the pictures.

    Attributes:
        choice: what was looked at.
        first: the look at the first video.
        videos: (prompt, seed) of each.
        across: of each video, by the number of one before it or its own: recall [H] of that one's masks, by layer.
        frames: uint8 [F, H, W, 3] of the first video; None if it ended in latents.
        facts: model, machine and versions.
    """

    choice: Choice
    first: AttentionProbe
    videos: list[tuple[str, int]]
    across: list[dict[int, dict[int, list[float]]]]
    frames: NDArray[np.uint8] | None
    facts: dict[str, Any]
