"""MInference: planted columns, diagonals and blocks are found, and the better pattern wins."""

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.masks import Call, FoundMask
from adaspa_cli.masks.methods.minference import (
    Lines,
    MInference,
    block_mass,
    distance_mass,
    heaviest_blocks,
    heaviest_lines,
    spread_rows,
)
from adaspa_cli.masks.rows import row_weights

BLOCK = 16
LAYOUTS = {
    "text last": TokenLayout(8, 8, 8, 24, "last"),
    "text first": TokenLayout(8, 8, 8, 24, "first"),
    "straddling, text last": TokenLayout(9, 7, 8, 24, "last"),
    "straddling, text first": TokenLayout(9, 7, 8, 24, "first"),
    "ragged, no text": TokenLayout(9, 7, 8, 0, "last"),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def planted(logits: Tensor) -> tuple[Tensor, Tensor]:
    """q and k [1, H, L, L] with q k^T = ``logits`` [H, L, L]."""
    return logits[None], torch.eye(logits.shape[-1]).expand(1, *logits.shape)


def estimate(logits: Tensor, layout: TokenLayout, sparsity: float) -> FoundMask:
    q, k = planted(logits)
    return MInference(sparsity, 0, BLOCK).estimate(Call(0, 0, "cond", 0, layout), q, k, k, 1.0)


def noise(layout: TokenLayout, heads: int = 1) -> Tensor:
    return 0.1 * torch.randn(heads, layout.tokens, layout.tokens, generator=torch.Generator().manual_seed(0))


def video_part(mask: Tensor, layout: TokenLayout) -> Tensor:
    video = layout.video_blocks(BLOCK)
    return mask[..., video.start : video.stop, video.start : video.stop]


def with_columns(layout: TokenLayout, blocks: tuple[int, ...]) -> Tensor:
    """One heavy token in each of some video blocks, whose others are so light that the mean shows nothing."""
    logits = noise(layout)
    for block in blocks:
        token = (layout.video_blocks(BLOCK).start + block) * BLOCK
        logits[..., token : token + BLOCK] -= 1
        logits[..., token + 5] = 9
    return logits


def with_diagonals(layout: TokenLayout, distances: tuple[int, ...]) -> Tensor:
    """Video tokens attend to those some distances ahead and behind."""
    logits = noise(layout)
    start, stop = layout.video_start, layout.video_start + layout.video_tokens
    token = torch.arange(start, stop)
    for distance in distances:
        logits[:, token[distance:], token[:-distance]] = 9
        logits[:, token[:-distance], token[distance:]] = 9
    return logits


def with_blocks(layout: TokenLayout, kept: Tensor) -> Tensor:
    """Heavy video blocks where ``kept`` [Nv, Nv] says so."""
    logits = noise(layout)
    start, (rows, columns) = layout.video_blocks(BLOCK).start, kept.nonzero().T
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        at = [slice((start + place) * BLOCK, (start + place + 1) * BLOCK) for place in (row, column)]
        logits[0, at[0], at[1]] += 5
    return logits


def random_blocks(layout: TokenLayout, per_row: int) -> Tensor:
    """bool [Nv, Nv] with ``per_row`` blocks in each row."""
    blocks = len(layout.video_blocks(BLOCK))
    order = torch.rand(blocks, blocks, generator=torch.Generator().manual_seed(1)).argsort(-1)
    return torch.zeros(blocks, blocks, dtype=torch.bool).scatter_(-1, order[:, :per_row], True)


@layouts
def test_planted_columns_are_found(layout: TokenLayout) -> None:
    columns = (3, 11, 20)
    kept = video_part(estimate(with_columns(layout, columns), layout, 0.8).mask.to_bool(), layout)
    assert kept[0, :, list(columns)].all()


@layouts
@pytest.mark.parametrize("distance", [20, 64, 150])
def test_planted_diagonals_are_found_on_both_sides(layout: TokenLayout, distance: int) -> None:
    """Every weight of them, not only their blocks in the last rows."""
    logits = with_diagonals(layout, (distance,))
    kept = estimate(logits, layout, 0.8).mask.to_bool()[0]
    heavy = (logits[0] == 9).nonzero()
    assert kept[heavy[:, 0] // BLOCK, heavy[:, 1] // BLOCK].all()
    q, k = planted(logits)
    last = torch.arange(layout.video_tokens - 64, layout.video_tokens) + layout.video_start
    lines = heaviest_lines(row_weights(q[0], k[0], last, 1.0), layout, BLOCK, 4)
    assert lines.diagonals[0].nonzero()[:, 0].tolist() == [0, distance // BLOCK]
    assert not lines.columns.any()


@layouts
def test_columns_and_diagonals_share_the_budget(layout: TokenLayout) -> None:
    logits = with_diagonals(layout, (70,)) + with_columns(layout, (4, 9)) - noise(layout)
    kept = estimate(logits, layout, 0.75).mask.to_bool()[0]
    heavy = (logits[0, layout.video_start : layout.video_start + layout.video_tokens] > 7).nonzero()
    assert kept[(heavy[:, 0] + layout.video_start) // BLOCK, heavy[:, 1] // BLOCK].all()


@layouts
def test_planted_blocks_are_found_and_nothing_else(layout: TokenLayout) -> None:
    blocks = len(layout.video_blocks(BLOCK))
    kept = random_blocks(layout, round(0.2 * blocks))
    found = estimate(with_blocks(layout, kept), layout, 0.8)
    assert torch.equal(video_part(found.mask.to_bool(), layout)[0], kept)


def test_each_head_takes_the_pattern_that_suits_it() -> None:
    layout = LAYOUTS["straddling, text first"]
    blocks = len(layout.video_blocks(BLOCK))
    planted_blocks = random_blocks(layout, round(0.2 * blocks))
    kinds = [with_columns(layout, (3, 11)), with_blocks(layout, planted_blocks), with_diagonals(layout, (70,))]
    alone = [estimate(logits, layout, 0.8).mask.to_bool()[0] for logits in kinds]
    together = estimate(torch.cat(kinds), layout, 0.8).mask.to_bool()
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(video_part(together[1], layout), planted_blocks)
    assert not torch.equal(together[0], together[1])


def test_heads_in_groups_give_what_all_at_once_give() -> None:
    """All rows are looked at; where more are asked for than there are, each head is a group of its own."""
    layout = LAYOUTS["straddling, text last"]
    q, k = planted(torch.cat([with_columns(layout, (3, 11)), with_blocks(layout, random_blocks(layout, 6))]))
    whole, single = (
        MInference(0.8, 0, BLOCK, last_queries=rows).estimate(Call(0, 0, "cond", 0, layout), q, k, k, 1.0)
        for rows in (layout.video_tokens, 1 << 17)
    )
    assert torch.equal(single.mask.to_bool(), whole.mask.to_bool())


@layouts
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.97])
def test_lines_compute_up_to_twice_their_budget_and_blocks_exactly_it(layout: TokenLayout, sparsity: float) -> None:
    blocks = len(layout.video_blocks(BLOCK))
    budget = max(1, round((1 - sparsity) * blocks))
    lines = torch.cat([with_columns(layout, (3, 11)), with_diagonals(layout, (24,)), with_diagonals(layout, (8, 200))])
    density = video_part(estimate(lines, layout, sparsity).mask.to_bool(), layout).float().mean((-1, -2))
    assert (density <= 2 * max(budget, 2) / blocks).all()
    found = estimate(with_blocks(layout, random_blocks(layout, budget)), layout, sparsity)
    assert video_part(found.mask.to_bool(), layout).float().mean() == pytest.approx(budget / blocks)


def test_every_block_that_a_line_touches_is_computed() -> None:
    """Against all pairs of tokens of all lines."""
    layout = TokenLayout(8, 4, 8, 0, "last")
    random = torch.Generator().manual_seed(0)
    diagonals, columns = torch.rand(2, 16, generator=random) < 0.2, torch.rand(2, 16, generator=random) < 0.2
    token = torch.arange(layout.tokens)
    for head in range(2):
        pairs = diagonals[head, (token - token[:, None]).abs() // BLOCK] | columns[head, token // BLOCK]
        touched = pairs.view(16, BLOCK, 16, BLOCK).any(-1).any(1)
        assert torch.equal(Lines(columns, diagonals, BLOCK).blocks()[head], touched)


def test_lines_are_judged_by_what_they_cover_and_blocks_by_what_they_hold() -> None:
    layout = LAYOUTS["straddling, text first"]
    blocks, start = len(layout.video_blocks(BLOCK)), layout.video_blocks(BLOCK).start * BLOCK
    random = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 5, layout.tokens, generator=random)
    rows = spread_rows(layout, BLOCK, 5, torch.device("cpu"))
    columns = torch.rand(2, blocks, generator=random) < 0.3
    diagonals = torch.rand(2, -(-layout.video_tokens // BLOCK), generator=random) < 0.3
    kept = torch.rand(2, blocks, blocks, generator=random) < 0.3
    for head in range(2):
        on_lines, in_blocks = 0.0, 0.0
        for i, row in enumerate(rows.tolist()):
            for key in range(start, layout.tokens):
                column = (key - start) // BLOCK
                if columns[head, column] or diagonals[head, abs(row - key) // BLOCK]:
                    on_lines += float(weights[head, i, key])
                if kept[head, (row - start) // BLOCK, column]:
                    in_blocks += float(weights[head, i, key])
        assert float(Lines(columns, diagonals, BLOCK).mass(weights, rows, layout)[head]) == pytest.approx(on_lines)
        assert float(block_mass(weights, kept, rows, layout, BLOCK)[head]) == pytest.approx(in_blocks)


@pytest.mark.parametrize(("tokens", "rows"), [(50, 7), (64, 64), (33, 1), (20, 20)])
def test_the_mass_at_each_distance(tokens: int, rows: int) -> None:
    weights = torch.rand(2, rows, tokens, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, -(-tokens // BLOCK))
    for row in range(rows):
        for key in range(tokens):
            expected[:, abs(tokens - rows + row - key) // BLOCK] += weights[:, row, key]
    torch.testing.assert_close(distance_mass(weights, BLOCK), expected)


def test_only_the_last_video_queries_show_lines() -> None:
    """Text after the video shows none, nor do earlier queries."""
    layout = LAYOUTS["text last"]
    logits = noise(layout)
    logits[:, : layout.video_tokens - 64, 100] = 9
    logits[:, layout.video_tokens :, 200] = 9
    logits[:, layout.video_tokens - 64 : layout.video_tokens, 300] = 9
    q, k = planted(logits)
    last = torch.arange(layout.video_tokens - 64, layout.video_tokens)
    lines = heaviest_lines(row_weights(q[0], k[0], last, 1.0), layout, BLOCK, 3)
    assert lines.columns[0].nonzero()[:, 0].tolist() == [300 // BLOCK]
    assert lines.diagonals[0, 0], "the main diagonal is always kept"


def test_mean_queries_and_keys_decide_about_blocks() -> None:
    layout = LAYOUTS["ragged, no text"]
    random = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, layout.tokens, 8, generator=random) for _ in range(2))
    means = [torch.stack([part.mean(1) for part in x.split(BLOCK, dim=1)], dim=1) for x in (q, k)]
    expected = (means[0] @ means[1].mT).argsort(-1, descending=True)[..., :4].sort(-1).values
    kept = heaviest_blocks(q, k, layout, BLOCK, 4)
    assert torch.equal(kept.nonzero()[:, -1].view(2, -1, 4), expected)
