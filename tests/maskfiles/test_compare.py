"""Overlap and mutual recall of two mask files."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.errors import MaskFileError
from adaspa_cli.maskfiles.compare import compare, iou
from adaspa_cli.maskfiles.orders import TokenPairs
from adaspa_cli.masks.text import video_part
from tests.mask_files import BLOCK, LAYOUT, block_sums, description, small_file
from tests.token_orders import sequence_order


def test_a_file_overlaps_with_itself_entirely(tmp_path: Path) -> None:
    file = small_file(tmp_path / "a.safetensors", keeps_sums=True)
    rows = list(compare(file, file))
    assert [(row.layer, row.branch, row.steps) for row in rows] == [
        (layer, branch, (step, step)) for layer in range(2) for branch in ("cond", "uncond") for step in (2, 8)
    ]
    for row in rows:
        assert torch.equal(row.iou, torch.ones(2))
        for mutual in row.mutual:
            assert mutual is not None
            torch.testing.assert_close(mutual, row.recalls[0], rtol=1e-3, atol=1e-3)


def test_overlap_and_mutual_recall_are_those_of_the_masks_and_sums(tmp_path: Path) -> None:
    first = small_file(tmp_path / "a.safetensors", ranked=6)
    second = small_file(tmp_path / "b.safetensors", seed=3, keeps_sums=True)
    for row in compare(first, second):
        place = (row.layer, row.branch, row.steps[0])
        a, b = first.video_mask(place), second.video_mask(place)
        expected = (a & b).sum((-1, -2)) / (a | b).sum((-1, -2))
        torch.testing.assert_close(row.iou, expected)
        assert row.mutual[1] is None, "the first file keeps no sums"
        sums = block_sums(place, seed=3)
        kept = torch.ones_like(sums, dtype=torch.bool)
        video_part(kept, LAYOUT, (BLOCK, BLOCK)).copy_(a)
        recall = (sums * kept).sum((-1, -2)) / sums.sum((-1, -2))
        torch.testing.assert_close(row.mutual[0], recall, rtol=1e-3, atol=1e-3)


def test_iou_of_masks_that_keep_nothing() -> None:
    """They are the same mask, so it is 1 and not 0 / 0."""
    nothing, one = torch.zeros(3, 3, dtype=torch.bool), torch.eye(3, dtype=torch.bool)
    first, second = torch.stack([nothing, nothing, one]), torch.stack([nothing, one, one])
    assert iou(first, second).tolist() == [1, 0, 1]


def token_pairs(kept: Tensor, layout: TokenLayout) -> Tensor:
    """The pairs of tokens in blocks without text that a mask [H, R, C] keeps, by brute force in the model's order."""
    flags = torch.zeros(len(kept), layout.tokens, layout.tokens, dtype=torch.bool)
    blocks = layout.video_blocks(BLOCK)
    part = slice(blocks.start * BLOCK, min(blocks.stop * BLOCK, layout.tokens))
    size = part.stop - part.start
    flags[:, part, part] = kept.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)[:, :size, :size]
    if layout.order == "hilbert":
        order = sequence_order(layout)
        flags = order.undo(order.undo(flags, 1), 2)
    return flags


@pytest.mark.parametrize("position", ["last", "first"])
def test_masks_in_two_orders_are_compared_by_their_pairs_of_tokens(
    tmp_path: Path, position: Literal["first", "last"]
) -> None:
    raster = TokenLayout(3, 5, 7, 5, position)  # 105 tokens of video: a block has both text and video
    hilbert = dataclasses.replace(raster, order="hilbert")
    first = small_file(tmp_path / "a.safetensors", layout=raster, keeps_sums=True)
    second = small_file(tmp_path / "b.safetensors", layout=hilbert, keeps_sums=True)
    blocks = len(raster.video_blocks(BLOCK))
    inside = torch.ones(1, blocks, blocks, dtype=torch.bool)
    known = token_pairs(inside, raster) & token_pairs(inside, hilbert)
    for row in compare(first, second):
        place = (row.layer, row.branch, row.steps[0])
        a, b = (token_pairs(x.video_mask(place), x.description.layout) & known for x in (first, second))
        torch.testing.assert_close(row.iou, (a & b).sum((-1, -2)) / (a | b).sum((-1, -2)))
        assert row.mutual == (None, None), "sums over other blocks say nothing of a mask's"


def test_pairs_of_tokens_of_masks_that_keep_all_or_nothing() -> None:
    raster = description()
    hilbert = description(layout=dataclasses.replace(LAYOUT, order="hilbert"))
    every = torch.ones(2, 12, 12, dtype=torch.bool)
    assert TokenPairs.of(raster, hilbert).iou(every, every).tolist() == [1, 1]
    assert TokenPairs.of(raster, hilbert).iou(~every, ~every).tolist() == [1, 1]
    assert TokenPairs.of(raster, hilbert).iou(~every, every).tolist() == [0, 0]


def test_one_step_with_another(tmp_path: Path) -> None:
    file = small_file(tmp_path / "a.safetensors")
    rows = list(compare(file, file, (2, 8)))
    assert len(rows) == 4
    assert all(row.steps == (2, 8) and (row.iou < 1).all() for row in rows)


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    file = small_file(tmp_path / "a.safetensors")
    turned = dataclasses.replace(LAYOUT, height=LAYOUT.width, width=LAYOUT.height)  # as many blocks, of other tokens
    for name, changed in {
        "layers": {"layers": 1},
        "block_size": {"block_size": 16},
        "height": {"layout": turned},
    }.items():
        other = small_file(tmp_path / f"{name}.safetensors", **changed)
        with pytest.raises(MaskFileError, match=f"different shapes cannot be compared: {name}"):
            compare(file, other)
    other = small_file(tmp_path / "steps.safetensors", search_steps=(3,))
    with pytest.raises(MaskFileError, match="nothing to compare"):
        compare(file, other)
    assert len(list(compare(file, other, (2, 3)))) == 4
    with pytest.raises(MaskFileError, match="nothing to compare"):
        compare(file, other, (2, 8))
