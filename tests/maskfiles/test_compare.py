"""Overlap and mutual recall of two mask files."""

import dataclasses
from pathlib import Path

import pytest
import torch

from adaspa_cli.errors import MaskFileError
from adaspa_cli.maskfiles.compare import compare, iou
from adaspa_cli.masks.text import video_part
from tests.mask_files import BLOCK, LAYOUT, block_sums, small_file


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
