"""Scores and budgets against a choice that is made block by block in plain Python."""

import math

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.remainder import block_means
from adaspa_cli.config.kept_blocks import kept_blocks
from adaspa_cli.masks.budget import select_by_score
from adaspa_cli.masks.output_error import output_error
from adaspa_cli.masks.selection import select

BLOCK = 16
LAYOUTS = {
    "text last": TokenLayout(8, 8, 5, 32, "last"),
    "text first": TokenLayout(8, 8, 5, 32, "first"),
    "straddling, text last": TokenLayout(2, 81, 2, 20, "last"),
    "no text": TokenLayout(8, 8, 5, 0, "last"),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def random_sums(layout: TokenLayout, heads: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """W [H, Nq, Nk] and scores of another order."""
    blocks = layout.blocks(BLOCK)
    noise = torch.randn(2, heads, blocks, blocks, generator=torch.Generator().manual_seed(seed))
    sums, other = torch.softmax(noise * torch.linspace(0.5, 5, heads)[:, None, None], -1) * BLOCK
    return sums, sums * other


def recalls(W: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept, W, 0).double().sum((-1, -2)) / W.double().sum((-1, -2))


def brute_force_layer(scores: Tensor, layout: TokenLayout, base: int) -> Tensor:
    """Bool [H, Nq, Nk]: first each row's least, then the largest scores of the layer until the budget is spent."""
    rows = list(layout.video_blocks(BLOCK))
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[:, list(layout.text_blocks(BLOCK))] = True
    kept[:, :, list(layout.text_blocks(BLOCK))] = True
    least, most = math.ceil(base / 4), min(4 * base, len(rows))
    places, spent = [], 0
    for head in range(len(scores)):
        for row in rows:
            ordered = sorted(rows, key=lambda column: -float(scores[head, row, column]))
            for column in ordered[:least]:
                kept[head, row, column] = True
                spent += 1
            places += [(float(scores[head, row, column]), head, row, column) for column in ordered[least:most]]
    for _, head, row, column in sorted(places, reverse=True)[: base * len(rows) * len(scores) - spent]:
        kept[head, row, column] = True
    return kept


@layouts
@pytest.mark.parametrize("sparsity", [0.05, 0.5, 0.8, 0.95])
def test_a_budget_over_the_layer(layout: TokenLayout, sparsity: float) -> None:
    sums, scores = random_sums(layout)
    found = select_by_score(sums, scores, layout, (BLOCK, BLOCK), sparsity, "layer")
    base = kept_blocks(sparsity, len(layout.video_blocks(BLOCK)))
    expected = brute_force_layer(scores, layout, base)
    assert torch.equal(found.mask.to_bool(), expected)
    assert found.recall is not None
    torch.testing.assert_close(found.recall.double(), recalls(sums, expected), rtol=1e-5, atol=1e-6)


@layouts
@pytest.mark.parametrize("budget", ["row", "head-adaptive"])
def test_by_mass_the_budgets_of_a_row_are_those_of_adaspa(layout: TokenLayout, budget: str) -> None:
    sums, _ = random_sums(layout)
    found = select_by_score(sums, sums, layout, (BLOCK, BLOCK), 0.6, budget)
    truth = select(sums, layout, (BLOCK, BLOCK), 0.6, head_adaptive=budget == "head-adaptive")
    assert torch.equal(found.mask.to_bool(), truth.mask.to_bool())
    torch.testing.assert_close(found.recall, truth.recall)


@layouts
def test_the_recall_is_of_the_mass_whatever_the_score(layout: TokenLayout) -> None:
    sums, scores = random_sums(layout)
    found = select_by_score(sums, scores, layout, (BLOCK, BLOCK), 0.7, "row")
    kept = found.mask.to_bool()
    rows = layout.video_blocks(BLOCK)
    video = kept[:, rows.start : rows.stop, rows.start : rows.stop]
    assert bool((video.sum(-1) == kept_blocks(0.7, len(rows))).all())
    inside = scores[:, rows.start : rows.stop, rows.start : rows.stop]
    assert bool((inside.masked_fill(~video, 9e9).amin(-1) > inside.masked_fill(video, -1).amax(-1)).all())
    assert found.recall is not None
    torch.testing.assert_close(found.recall.double(), recalls(sums, kept), rtol=1e-5, atol=1e-6)


def test_of_equal_scores_the_first_are_kept_until_the_budget_is_spent() -> None:
    layout = LAYOUTS["no text"]
    blocks = layout.blocks(BLOCK)
    same = torch.ones(2, blocks, blocks)
    found = select_by_score(same, same, layout, (BLOCK, BLOCK), 0.8, "layer")
    base = kept_blocks(0.8, blocks)
    assert int(found.mask.counts.sum()) == base * blocks * 2
    zeros = torch.zeros(2, blocks, blocks)
    found = select_by_score(same, zeros, layout, (BLOCK, BLOCK), 0.8, "layer")
    assert int(found.mask.counts.sum()) == base * blocks * 2


def test_scores_that_are_no_numbers_are_the_heaviest() -> None:
    layout = LAYOUTS["no text"]
    sums, scores = random_sums(layout)
    scores[0, :, 3] = torch.nan
    found = select_by_score(sums, scores, layout, (BLOCK, BLOCK), 0.9, "layer")
    assert bool(found.mask.to_bool()[0, :, 3].all())


def test_no_list_is_longer_than_four_times_the_base() -> None:
    layout = LAYOUTS["text last"]
    sums, scores = random_sums(layout)
    scores[0, 0] += 100
    found = select_by_score(sums, scores, layout, (BLOCK, BLOCK), 0.9, "layer")
    base, text = kept_blocks(0.9, 20), 2
    assert found.mask.indices.shape[-1] == 4 * base + text
    assert int(found.mask.counts[0, 0]) == 4 * base + text


@pytest.mark.parametrize("budget", ["row", "head-adaptive", "layer"])
def test_without_sparsity_everything_is_kept(budget: str) -> None:
    layout = LAYOUTS["text first"]
    sums, scores = random_sums(layout)
    found = select_by_score(sums, scores, layout, (BLOCK, BLOCK), 0.0, budget)
    assert bool(found.mask.to_bool().all())


def test_an_unknown_budget_is_refused() -> None:
    sums, scores = random_sums(LAYOUTS["no text"])
    with pytest.raises(ValueError, match="head-adaptive"):
        select_by_score(sums, scores, LAYOUTS["no text"], (BLOCK, BLOCK), 0.5, "heads")


@pytest.mark.parametrize("tokens", [64, 75])
def test_the_output_error_of_a_block(tokens: int) -> None:
    random = torch.Generator().manual_seed(tokens)
    v = torch.randn(1, 2, tokens, 6, generator=random) + 3
    means = block_means(v, BLOCK)[0]
    blocks = means.shape[1]
    sums = torch.rand(2, blocks, blocks, generator=random)
    scores = output_error(sums, means)
    for head in range(2):
        for row in range(blocks):
            weights = sums[head, row].double()
            blocks_of_v = [v[0, head, j * BLOCK : (j + 1) * BLOCK].double().mean(0) for j in range(blocks)]
            output = sum(w * mean for w, mean in zip(weights, blocks_of_v, strict=True)) / weights.sum()
            expected = [float(w * (mean - output).norm()) for w, mean in zip(weights, blocks_of_v, strict=True)]
            torch.testing.assert_close(scores[head, row], torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_a_row_without_mass_has_no_score() -> None:
    scores = output_error(torch.zeros(1, 3, 3), torch.randn(1, 3, 6))
    assert torch.equal(scores, torch.zeros(1, 3, 3))
