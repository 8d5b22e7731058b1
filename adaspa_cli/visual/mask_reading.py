"""Reading mask files: which blocks are kept, and how much the masks of steps and of files have in common.

Shapes: H heads, R query and key blocks without text, P cells along a side of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.maskfiles import MaskFile
from adaspa_cli.maskfiles.compare import iou, overlap_of
from adaspa_cli.maskfiles.description import Description, Entry, Place
from adaspa_cli.masks.text import with_text
from adaspa_cli.masks.token_order import token_blocks
from adaspa_cli.visual import view
from adaspa_cli.visual.mask_choice import MaskChoice
from adaspa_cli.visual.probe import rounded
from adaspa_cli.visual.weights import cell_areas, cell_size, cell_sums

Rows = list[tuple[int, list[float]]]
"""A layer and the value of each of its heads."""


@dataclass(frozen=True)
class MaskReading:
    """What was seen in mask files, which are counted from 0.

    Attributes:
        files, choice: what was looked at.
        shares: of the blocks, or pairs of tokens, that a mask keeps, by (file, its place) and head: float64 [P, P].
        looks: the tokens that the query token's mask keeps, by the same: uint8 [frames, height, width], 255 or 0.
        step_overlaps: IoU [H] of the masks of a step and the next, by (file, branch, the two steps), for all layers.
        file_overlaps: IoU [H] with the first file's mask of the same place, by (file, branch, step), for all layers.
    """

    files: tuple[MaskFile, ...]
    choice: MaskChoice
    shares: dict[tuple[int, Place], dict[int, Tensor]] = field(default_factory=dict)
    looks: dict[tuple[int, Place], dict[int, NDArray[np.uint8]]] = field(default_factory=dict)
    step_overlaps: dict[tuple[int, str, tuple[int, int]], Rows] = field(default_factory=dict)
    file_overlaps: dict[tuple[int, str, int], Rows] = field(default_factory=dict)

    def entries(self, number: int, branch: str, step: int) -> list[Entry]:
        """Density and recall of all layers of a file."""
        entries = self.files[number].description.entries
        return [entry for entry in entries if (entry.branch, entry.step) == (branch, step)]

    def overlaps(self, number: int, place: Place, head: int) -> list[tuple[str, float]]:
        """With what a mask was compared, and the IoU: its file's step before, and the first file."""
        layer, branch, step = place
        found = [
            (f"step {pair[0]}", dict(self.step_overlaps[number, branch, pair])[layer][head])
            for pair in self.choice.pairs
            if pair[1] == step
        ]
        if number:
            found.append(("file 1", dict(self.file_overlaps[number, branch, step])[layer][head]))
        return found


def masks_to_read(files: Sequence[MaskFile], choice: MaskChoice) -> list[tuple[int, Place]]:
    """Those of the chosen layers, or of all where there are overlaps; at each place the first file comes first."""
    compared = len(files) > 1 or len(choice.steps) > 1
    return [
        (number, (layer, branch, step))
        for layer in (range(files[0].description.layers) if compared else choice.layers)
        for branch in choice.branches
        for step in choice.steps
        for number in range(len(files))
        if step in files[number].description.steps_of(layer)
    ]


def read_masks(files: Sequence[MaskFile], choice: MaskChoice, on_mask: Callable[[Place], None]) -> MaskReading:
    """Read the masks one after another; one of each file and one more are held at a time.

    Args:
        on_mask: called after each.

    Raises:
        MaskFileError: a mask is corrupt.
    """
    seen = MaskReading(tuple(files), choice)
    with_first = [overlap_of(files[0].description, file.description) for file in files]
    held: dict[int, tuple[Place, Tensor]] = {}  # the last mask of each file; no other name keeps one alive
    for number, place in masks_to_read(files, choice):
        layer, branch, step = place
        kept = files[number].video_mask(place)
        if number:
            row = (layer, rounded(with_first[number](held[0][1], kept)))
            seen.file_overlaps.setdefault((number, branch, step), []).append(row)
        if number in held and held[number][0][:2] == place[:2]:
            row = (layer, rounded(iou(held[number][1], kept)))
            seen.step_overlaps.setdefault((number, branch, (held[number][0][2], step)), []).append(row)
        if layer in choice.layers:
            facts = files[number].description
            masks = {head: kept[head] for head in choice.heads}
            seen.shares[number, place] = {head: _shares(mask, facts, choice) for head, mask in masks.items()}
            seen.looks[number, place] = {head: _look(mask, facts, choice.query) for head, mask in masks.items()}
        held[number] = place, kept
        on_mask(place)
    return seen


def _shares(kept: Tensor, facts: Description, choice: MaskChoice) -> Tensor:
    if choice.by_tokens:
        return token_shares(kept, facts.layout, facts.block_size, choice.pixels)
    return kept_shares(kept, choice.pixels)


def _look(kept: Tensor, facts: Description, query: tuple[int, int, int]) -> NDArray[np.uint8]:
    size = facts.block_size
    row = with_text(kept[None], facts.layout, (size, size))[0, view.query_block(facts.layout, size, query)]
    return view.token_strength(row * torch.tensor(255, dtype=torch.uint8), facts.layout, size)


def token_shares(kept: Tensor, layout: TokenLayout, block_size: int, pixels: int) -> Tensor:
    """Share of the pairs of tokens of each cell that a mask keeps: bool [R, R] to float64 [P, P].

    A cell is an area of tokens frame by frame and row by row, whatever their order in the sequence. Tokens that share
    a block with text are kept, as every mask does.
    """
    full = with_text(kept[None], layout, (block_size, block_size))[0].double()
    cells = torch.arange(layout.video_tokens) // cell_size(layout.video_tokens, pixels)
    tokens = full.new_zeros(int(cells[-1]) + 1, len(full))  # [P, blocks]
    ones = full.new_ones(layout.video_tokens)
    tokens.index_put_((cells, token_blocks(layout, block_size)), ones, accumulate=True)
    sizes = tokens.sum(1)
    return (tokens @ full @ tokens.T) / (sizes[:, None] * sizes)


def kept_shares(kept: Tensor, pixels: int) -> Tensor:
    """Share of the blocks of each cell that a mask keeps: bool [R, R] to float64 [P, P], P at most ``pixels``.

    A mean over the whole cell, as of weights: exact, and without moiré.
    """
    cell = cell_size(len(kept), pixels)
    return cell_sums(kept.to(torch.float64), cell) / cell_areas(len(kept), cell, kept.device)
