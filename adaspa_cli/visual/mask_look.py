"""Looking into a mask file: which blocks are kept, and how much the masks of its steps have in common.

Shapes: H heads, R query and key blocks without text, P cells along a side of a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adaspa_cli.errors import ConfigError
from adaspa_cli.masks.files import MaskFile
from adaspa_cli.masks.files.compare import iou
from adaspa_cli.masks.files.description import Entry, Place
from adaspa_cli.visual.look import rounded, spread
from adaspa_cli.visual.weights import cell_areas, cell_size, cell_sums

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class MaskChoice:
    """What to draw of a mask file.

    Attributes:
        layers, heads: whose kept blocks are drawn; figures by layer and head are of all.
        steps: ascending, of the file's search steps.
        pixels: cells along a side of a picture at most.
    """

    layers: Numbers
    heads: Numbers
    steps: Numbers
    pixels: int

    @classmethod
    def of(
        cls, file: MaskFile, layers: Numbers | None, heads: Numbers | None, steps: Numbers | None, pixels: int
    ) -> MaskChoice:
        """Fill in the first, middle and last layer, the first and middle head, and all steps.

        Raises:
            ConfigError: the file has no such layer, head or step.
        """
        facts = file.description
        for name, chosen, known in (
            ("layer", layers, range(facts.layers)),
            ("head", heads, range(facts.heads)),
            ("search step", steps, facts.search_steps),
        ):
            unknown = [number for number in chosen or () if number not in known]
            if unknown:
                there = f"0 to {known[-1]}" if isinstance(known, range) else ", ".join(map(str, known))
                raise ConfigError(f"{file.path} has no {name} {unknown[0]}; its {name}s are {there}")
        return cls(
            layers or spread(facts.layers),
            heads or tuple(sorted({0, facts.heads // 2})),
            steps or facts.search_steps,
            pixels,
        )

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Each step with the next one."""
        return list(zip(self.steps, self.steps[1:], strict=False))


@dataclass(frozen=True)
class MaskLook:
    """What was seen in a mask file.

    Attributes:
        file, choice: what was looked at.
        shares: of the blocks that a mask keeps, by (layer, branch, step) and head: float64 [P, P].
        overlaps: IoU [H] of the masks of a step and the next, by (branch, the two steps), for all layers.
    """

    file: MaskFile
    choice: MaskChoice
    shares: dict[Place, dict[int, Tensor]] = field(default_factory=dict)
    overlaps: dict[tuple[str, tuple[int, int]], list[tuple[int, list[float]]]] = field(default_factory=dict)

    def entries(self, branch: str, step: int) -> list[Entry]:
        """Density and recall of all layers."""
        return [entry for entry in self.file.description.entries if (entry.branch, entry.step) == (branch, step)]

    def overlap(self, layer: int, head: int, branch: str, step: int) -> tuple[int, float] | None:
        """The step before a chosen one, and the IoU with its mask; None for the first."""
        for pair in self.choice.pairs:
            if pair[1] == step:
                return pair[0], dict(self.overlaps[branch, pair])[layer][head]
        return None


def masks_to_read(file: MaskFile, choice: MaskChoice) -> list[Place]:
    """Those of the chosen layers; with several steps those of all, for the overlaps."""
    return [
        place
        for place in file.description.places()
        if place[2] in choice.steps and (place[0] in choice.layers or choice.pairs)
    ]


def look_into(file: MaskFile, choice: MaskChoice, on_mask: Callable[[Place], None]) -> MaskLook:
    """Read the masks one after the other; two of them are held at a time.

    Args:
        on_mask: called after each.

    Raises:
        MaskFileError: a mask is corrupt.
    """
    seen = MaskLook(file, choice)
    before: tuple[Place, Tensor] | None = None
    for place in masks_to_read(file, choice):
        layer, branch, step = place
        kept = file.video_mask(place)
        if before is not None and before[0][:2] == place[:2]:
            row = (layer, rounded(iou(before[1], kept)))
            seen.overlaps.setdefault((branch, (before[0][2], step)), []).append(row)
        if layer in choice.layers:
            seen.shares[place] = {head: kept_shares(kept[head], choice.pixels) for head in choice.heads}
        before = place, kept
        on_mask(place)
    return seen


def kept_shares(kept: Tensor, pixels: int) -> Tensor:
    """Share of the blocks of each cell that a mask keeps: bool [R, R] to float64 [P, P], P at most ``pixels``.

    A mean over the whole cell, as of weights: exact, and without moiré.
    """
    cell = cell_size(len(kept), pixels)
    return cell_sums(kept.to(torch.float64), cell) / cell_areas(len(kept), cell, kept.device)
