"""Frame regions: each pair of frames gets its columns or its diagonals, against a search in plain Python."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.masks import Call, FoundMask
from adaspa_cli.masks.methods.frame_region import FrameRegion, frame_borders

BLOCK = 16
LAYOUTS = {
    "whole blocks, text last": TokenLayout(4, 8, 16, 20, "last"),  # 8 blocks a frame
    "whole blocks, text first": TokenLayout(4, 8, 16, 32, "first"),
    "straddling, text last": TokenLayout(5, 9, 9, 20, "last"),  # 5.06 blocks a frame
    "straddling, text first": TokenLayout(5, 7, 13, 20, "first"),
    "ragged, no text": TokenLayout(3, 9, 9, 0, "last"),
    "one frame": TokenLayout(1, 12, 12, 5, "last"),
    "half blocks": TokenLayout(7, 2, 4, 5, "last"),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def search(W: Tensor, layout: TokenLayout, sparsity: float) -> FoundMask:
    return FrameRegion(sparsity, (0,), BLOCK).search(Call(0, 0, "cond", 0, layout), W)


def block_sums(layout: TokenLayout, heads: int = 3) -> Tensor:
    blocks = layout.blocks(BLOCK)
    noise = torch.randn(heads, blocks, blocks, generator=torch.Generator().manual_seed(0))
    return torch.softmax(2 * noise, dim=-1) * BLOCK


def frames_of_blocks(layout: TokenLayout) -> list[list[int]]:
    """The video blocks of each frame by their middle token; frames without any are left out."""
    frames: list[list[int]] = [[] for _ in range(layout.frames)]
    for block in layout.video_blocks(BLOCK):
        middle = block * BLOCK + BLOCK // 2 - layout.video_start
        frames[min(layout.frames - 1, middle // (layout.height * layout.width))].append(block)
    return [frame for frame in frames if frame]


def brute_force(W: Tensor, layout: TokenLayout, sparsity: float) -> Tensor:
    """bool [H, Nq, Nk]: one region at a time."""
    video, frames = layout.video_blocks(BLOCK), frames_of_blocks(layout)
    k = max(1, round((1 - sparsity) * len(video)))
    kept = torch.ones_like(W, dtype=torch.bool)
    kept[:, video.start : video.stop, video.start : video.stop] = False
    for head in range(W.shape[0]):
        for rows in frames:
            before = 0
            for keys in frames:
                lines = k * (before + len(keys)) // len(video) - k * before // len(video)
                before += len(keys)
                patterns = [
                    [[(row, column) for row in rows] for column in keys],
                    [[(row, keys[(r + d) % len(keys)]) for r, row in enumerate(rows)] for d in range(len(keys))],
                ]
                best = []
                for pattern in patterns:
                    mass = {i: sum(float(W[head, row, column]) for row, column in x) for i, x in enumerate(pattern)}
                    chosen = sorted(mass, key=lambda i, mass=mass: -mass[i])[:lines]  # type: ignore[misc]
                    best.append((sum(mass[i] for i in chosen), [pattern[i] for i in chosen]))
                columns, diagonals = best
                for line in (diagonals if diagonals[0] > columns[0] else columns)[1]:
                    for row, column in line:
                        kept[head, row, column] = True
    return kept


@layouts
@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.8, 0.95])
def test_each_region_keeps_its_heaviest_columns_or_diagonals(layout: TokenLayout, sparsity: float) -> None:
    W = block_sums(layout)
    assert torch.equal(search(W, layout, sparsity).mask.to_bool(), brute_force(W, layout, sparsity))


@layouts
def test_the_recall_is_the_kept_mass(layout: TokenLayout) -> None:
    W = block_sums(layout)
    found = search(W, layout, 0.7)
    assert found.recall is not None
    kept = (W * found.mask.to_bool()).sum((-1, -2)) / W.sum((-1, -2))
    # Sums of some thousand float32 terms.
    assert found.recall.tolist() == pytest.approx(kept.tolist(), rel=1e-5)


@layouts
def test_blocks_belong_to_the_frame_of_their_middle(layout: TokenLayout) -> None:
    start = layout.video_blocks(BLOCK).start
    firsts = [frame[0] - start for frame in frames_of_blocks(layout)]
    assert frame_borders(layout, BLOCK) == [*firsts, len(layout.video_blocks(BLOCK))]


def test_columns_and_diagonals_are_found_where_they_were_planted() -> None:
    """Four frames of 8 blocks. Each region holds two of 8 lines: columns in some regions, diagonals in the others."""
    layout = TokenLayout(4, 8, 16, 0, "last")
    W = torch.full((2, 32, 32), 0.01)
    planted = torch.zeros_like(W, dtype=torch.bool)
    for head in range(2):
        for i in range(4):
            for j in range(4):
                for r in range(8):
                    lines = ((i + 2 * j) % 8, (i + 2 * j + 3) % 8)
                    for line in lines:
                        column = line if (i + j + head) % 2 else (r + line) % 8
                        planted[head, 8 * i + r, 8 * j + column] = True
    W[planted] = 1.0
    found = search(W, layout, 0.75)
    assert torch.equal(found.mask.to_bool(), planted)
    assert found.recall is not None
    assert found.recall.tolist() == pytest.approx([float(planted[0].sum() / W[0].sum())] * 2)


def test_all_regions_have_the_same_sparsity() -> None:
    """33 frames of 5.06 blocks: no region is more than a block a row from the others' share."""
    layout = TokenLayout(33, 9, 9, 20, "last")
    borders = frame_borders(layout, BLOCK)
    kept = search(block_sums(layout, 1), layout, 0.4).mask.to_bool()[0]
    for start, stop in pairwise(borders):
        per_row = kept[: borders[-1], start:stop].sum(-1)
        assert ((per_row - 0.6 * (stop - start)).abs() < 1 + 0.5 * (stop - start) / borders[-1]).all()


def test_a_search_leaves_the_block_sums_as_they_were() -> None:
    layout = LAYOUTS["straddling, text first"]
    W = block_sums(layout)
    before = W.clone()
    search(W, layout, 0.8)
    assert torch.equal(W, before)
