"""The overlap of two mask files, layer by layer.

Masks of tokens in one order are compared block by block. In two orders a block of one file holds other tokens than any
block of the other, so that positions are mapped back, and pairs of tokens are counted
(:mod:`adaspa_cli.maskfiles.orders`).

Shapes: H heads, R query and C key blocks without text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adaspa_cli.maskfiles.description import Description
from adaspa_cli.maskfiles.orders import TokenPairs
from adaspa_cli.maskfiles.pairing import paired
from adaspa_cli.maskfiles.reader import MaskFile
from adaspa_cli.masks.recall import mask_recall


@dataclass(frozen=True)
class Overlap:
    """Two masks of the same layer and branch; all tensors are float32 [H].

    Attributes:
        steps: search step of the first and of the second file.
        iou: blocks that both keep over blocks that either keeps, text left out; in two orders, pairs of tokens.
        recalls: of each mask on the attention that it was searched in.
        mutual: recall of the first mask on the second one's attention, and the other way round; None where the file
            of that attention keeps no block sums, or has the tokens in another order.
    """

    layer: int
    branch: str
    steps: tuple[int, int]
    iou: Tensor
    recalls: tuple[Tensor, Tensor]
    mutual: tuple[Tensor | None, Tensor | None]


def compare(first: MaskFile, second: MaskFile, steps: tuple[int, int] | None = None) -> Iterator[Overlap]:
    """Compare the masks of two files, or with ``steps`` those of one step with those of another.

    Holds the masks and the block sums of one layer of each file.

    Args:
        first, second: may be the same file.
        steps: search step of the first and of the second file; without it, all that both have.

    Raises:
        MaskFileError: the masks have different shapes, or no branch or step in common; or a file is corrupt.
    """
    pairs, branches = paired(first, second, steps)
    a, b = first.description, second.description
    overlap = overlap_of(a, b)
    return (
        _overlap(first, second, layer, branch, pair, overlap)
        for layer in range(a.layers)
        for branch in branches
        for pair in pairs
        if pair[0] in a.steps_of(layer) and pair[1] in b.steps_of(layer)
    )


def overlap_of(first: Description, second: Description) -> Callable[[Tensor, Tensor], Tensor]:
    """What tells the IoU float32 [H] of two masks bool [H, R, C] of these files: their blocks', or in two orders that
    of the pairs of tokens."""
    if first.layout.order == second.layout.order:
        return iou
    return TokenPairs.of(first, second).iou


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Blocks that both masks keep over those that either keeps: bool [H, R, C] twice to float32 [H].

    1 where neither keeps a block: such masks are the same. A head at a time and without ``sum``, which makes integers
    of bools first, eight bytes a block.
    """
    count = torch.count_nonzero
    counts = [(count(a & b), count(a | b)) for a, b in zip(first, second, strict=True)]
    both, either = (torch.stack(found) for found in zip(*counts, strict=True))
    return torch.where(either > 0, both.float() / either, 1.0)


def _overlap(
    first: MaskFile,
    second: MaskFile,
    layer: int,
    branch: str,
    steps: tuple[int, int],
    overlap: Callable[[Tensor, Tensor], Tensor],
) -> Overlap:
    places = [(layer, branch, step) for step in steps]
    masks = [file.video_mask(place) for file, place in zip((first, second), places, strict=True)]
    entries = [file.entry(place) for file, place in zip((first, second), places, strict=True)]
    recalls = [torch.tensor(entry.recall, dtype=torch.float32, device="cpu") for entry in entries]
    mutual: tuple[Tensor | None, Tensor | None] = (None, None)
    if first.description.layout.order == second.description.layout.order:
        mutual = _recall_in(second, places[1], masks[0]), _recall_in(first, places[0], masks[1])
    return Overlap(
        layer,
        branch,
        steps,
        overlap(*masks),
        (recalls[0], recalls[1]),
        mutual,
    )


def _recall_in(file: MaskFile, place: tuple[int, str, int], kept: Tensor) -> Tensor | None:
    """Recall [H] of kept blocks [H, R, C] and all text, in the block sums of a file that keeps them."""
    if not file.description.keeps_sums:
        return None
    sums, text = file.sums(place)
    return mask_recall(kept, sums, text)
