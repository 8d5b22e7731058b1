"""Patterns and area means against brute force on the whole matrix."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout, attention_with_block_sums
from adaspa_cli.masks.recall import mask_recall
from adaspa_cli.masks.selection import select
from adaspa_cli.visual import patterns
from adaspa_cli.visual.patterns import block_pattern, line_patterns, measure, summary_pattern, video_share
from adaspa_cli.visual.weights import HeadWeights, area_means, cell_size, mass
from tests.token_orders import sequence_order

DENSITIES = [0.02, 0.2, 0.55]
BLOCK = (8, 8)


@pytest.fixture(params=[("first", "raster"), ("last", "raster"), ("first", "hilbert"), ("last", "hilbert")])
def layout(request: pytest.FixtureRequest) -> TokenLayout:
    return TokenLayout(3, 5, 7, 11, *request.param)


@pytest.fixture
def qkv(layout: TokenLayout) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, layout.tokens, 16, generator=generator) for _ in range(3))
    return 3 * q, k, v


@pytest.fixture
def head(layout: TokenLayout, qkv: tuple[Tensor, Tensor, Tensor]) -> HeadWeights:
    """With so few weights at once that even this small matrix comes in several pieces."""
    q, k, v = qkv
    _, lse, _ = attention_with_block_sums(q, k, v, BLOCK, backend="reference")
    return dataclasses.replace(HeadWeights.of_head(q, k, lse, layout, 1), at_once=1000)


@pytest.fixture
def whole(layout: TokenLayout, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """All weights among video tokens, in double precision."""
    q, k, _ = (x.double() for x in qkv)
    return of_video(torch.softmax(q[0, 1] @ k[0, 1].T / 4, dim=-1), layout)


def of_video(x: Tensor, layout: TokenLayout) -> Tensor:
    """The part [N, N] among video tokens, frame by frame and row by row, of x [L, L] in the order of a layout."""
    if layout.order == "hilbert":
        order = sequence_order(layout)
        x = order.undo(order.undo(x, 0), 1)
    video = slice(layout.video_start, layout.video_start + layout.video_tokens)
    return x[video, video]


def kept_of(head: HeadWeights, pattern: patterns.Pattern) -> Tensor:
    return torch.cat([pattern.keep(start, rows) for start, rows in head.rows()])


def test_the_rows_are_those_of_the_whole(head: HeadWeights, whole: Tensor) -> None:
    pieces = list(head.rows(4))
    assert len(pieces) > 5
    assert all(len(rows) % 4 == 0 for _, rows in pieces[:-1])
    torch.testing.assert_close(torch.cat([rows for _, rows in pieces]).double(), whole, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("density", DENSITIES)
def test_the_oracle_keeps_the_heaviest_weights(head: HeadWeights, whole: Tensor, density: float) -> None:
    found = line_patterns(head, measure(head), density)["oracle"]
    count = round(density * whole.numel())
    best = float(whole.flatten().topk(count).values.sum() / whole.sum())
    # Inside the last bin, weights differ by one part in 128 at most.
    assert found.recall == pytest.approx(best, rel=2e-3)


def brute_columns(whole: Tensor, density: float) -> Tensor:
    flags = torch.zeros_like(whole, dtype=torch.bool)
    flags[:, whole.sum(0).topk(int(density * len(whole) + 1e-9)).indices] = True
    return flags


def brute_diagonals(whole: Tensor, density: float) -> Tensor:
    length, budget = len(whole), density * whole.numel()
    means = {d: float(whole.diagonal(d).mean()) for d in range(-length + 1, length)}
    flags, spent = torch.zeros_like(whole, dtype=torch.bool), 0
    for d in sorted(means, key=lambda d: -means[d]):
        spent += length - abs(d)
        if spent > budget:
            break
        flags |= torch.ones_like(flags).triu(d).tril(d)
    return flags


@pytest.mark.parametrize("density", DENSITIES)
def test_lines_are_those_that_brute_force_finds(head: HeadWeights, whole: Tensor, density: float) -> None:
    columns = torch.zeros_like(whole, dtype=torch.bool)
    columns[:, whole.sum(0).topk(round(density / 2 * len(whole))).indices] = True
    expected = {
        "column": brute_columns(whole, density),
        "diagonal": brute_diagonals(whole, density),
        "diagonal+column": columns | brute_diagonals(whole.masked_fill(columns, 0), density / 2),
    }
    found = line_patterns(head, measure(head), density)
    for name, flags in expected.items():
        kept = kept_of(head, found[name])
        assert torch.equal(kept > 0, flags), name
        assert found[name].recall == pytest.approx(float(whole[flags].sum() / whole.sum()), rel=1e-5), name


def test_blocks_are_those_of_the_mask(
    head: HeadWeights, whole: Tensor, layout: TokenLayout, qkv: tuple[Tensor, Tensor, Tensor]
) -> None:
    _, _, sums = attention_with_block_sums(*qkv, BLOCK, backend="reference")
    mask = select(sums[0], layout, BLOCK, 0.7, head_adaptive=False)
    flags = mask.mask.to_bool()
    found = block_pattern(head, measure(head), flags[1], layout, BLOCK)
    tokens = flags[1].repeat_interleave(8, 0).repeat_interleave(8, 1)[: layout.tokens, : layout.tokens]
    expected = of_video(tokens, layout)
    assert torch.equal(kept_of(head, found) > 0, expected)
    assert found.recall == pytest.approx(float(whole[expected].sum() / whole.sum()), rel=1e-5)
    assert video_share(flags[1], layout, BLOCK) == pytest.approx(float(expected.double().mean()))
    torch.testing.assert_close(mask_recall(flags, sums[0]), mask.recall)


def test_summaries_spread_their_weight_over_their_blocks(
    head: HeadWeights, whole: Tensor, layout: TokenLayout, qkv: tuple[Tensor, Tensor, Tensor]
) -> None:
    q, k, _ = (x.double()[0, 1] for x in qkv)
    _, _, sums = attention_with_block_sums(*qkv, BLOCK, backend="reference")
    kept = select(sums[0], layout, BLOCK, 0.7, head_adaptive=False).mask.to_bool()[1]
    blocks = torch.arange(layout.tokens) // 8
    means = torch.stack([k[blocks == block].mean(0) for block in range(len(kept))])
    weights = (q @ means.T / 4).exp()[:, blocks] / (q @ k.T / 4).exp().sum(-1, keepdim=True)
    expected = torch.where(of_video(kept[blocks][:, blocks], layout), whole, of_video(weights, layout))
    masses = measure(head)
    found = summary_pattern(head, masses, kept, means.float(), layout, BLOCK)
    torch.testing.assert_close(kept_of(head, found).double(), expected, atol=1e-6, rtol=1e-4)
    assert found.recall == pytest.approx(float(expected.sum() / whole.sum()), rel=1e-5)
    assert block_pattern(head, masses, kept, layout, BLOCK).recall < found.recall < 1


@pytest.mark.parametrize("pixels", [1, 4, 10, 33, 105, 500])
def test_pictures_are_exact_means_of_areas(head: HeadWeights, whole: Tensor, pixels: int) -> None:
    cell = cell_size(head.tokens, pixels)
    found = line_patterns(head, measure(head), 0.2)
    pictures = area_means(head, {"all": lambda _start, rows: rows} | {n: p.keep for n, p in found.items()}, cell)
    picture = pictures["all"]
    assert len(picture) == math.ceil(head.tokens / cell) <= pixels
    for i in range(len(picture)):
        for j in range(len(picture)):
            area = whole[i * cell : (i + 1) * cell, j * cell : (j + 1) * cell]
            assert float(picture[i, j]) == pytest.approx(float(area.mean()), rel=1e-4, abs=1e-9)
    # What a picture shows is what its recall says.
    for name, pattern in found.items():
        shown = mass(pictures[name], head.tokens, cell) / mass(picture, head.tokens, cell)
        assert shown == pytest.approx(pattern.recall, rel=1e-5), name


def test_long_sequences_come_in_pieces_of_bounded_size() -> None:
    tokens = 118_784
    head = HeadWeights(torch.zeros(tokens, 1), torch.zeros(tokens, 1), torch.zeros(tokens), 1.0)
    cell = cell_size(tokens, 256)
    _, rows = next(head.rows(cell))
    assert rows.shape[0] % cell == 0
    assert rows.shape == (cell, tokens)
    assert next(head.rows())[1].numel() <= 1 << 20
