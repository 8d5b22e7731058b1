"""Budgets by kernel against those by sorting, on a GPU where there is one, or in the interpreter: the same lists."""

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.masks import FoundMask, budget
from adaspa_cli.masks.budget import select_by_score

pytest.importorskip("triton", reason="triton is not installed")

import adaspa_kernels

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SIZE = (64, 16)
LAYOUTS = {
    "text last": TokenLayout(6, 16, 4, 40, "last"),
    "text first": TokenLayout(6, 16, 4, 40, "first"),
    "no text": TokenLayout(6, 16, 4, 0, "last"),
}


def both(sums: Tensor, scores: Tensor, layout: TokenLayout, sparsity: float, kind: str) -> FoundMask:
    """Select in both ways and compare; returns what the kernels found."""
    found = []
    for kernels in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(budget, "kernels_take", lambda _, way=kernels: way)
            found.append(select_by_score(sums, scores, layout, SIZE, sparsity, kind))
    truth, mine = found
    assert torch.equal(mine.mask.counts, truth.mask.counts)
    assert torch.equal(mine.mask.indices, truth.mask.indices)
    assert mine.mask.indices.dtype == truth.mask.indices.dtype
    torch.testing.assert_close(mine.recall, truth.recall, rtol=1e-5, atol=0)
    return mine


def random_scores(layout: TokenLayout, device: torch.device, heads: int = 2) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    shape = (heads, layout.blocks(SIZE[0]), layout.blocks(SIZE[1]))
    sums = torch.softmax(torch.randn(shape, generator=random) * torch.linspace(0.5, 4, heads)[:, None, None], -1)
    return sums.to(device), (sums * torch.rand(shape, generator=random)).to(device)


@pytest.mark.parametrize("kind", ["row", "layer"])
@pytest.mark.parametrize(
    ("text", "sparsity"),
    [("text last", 0.3), ("text last", 0.8), ("text last", 0.9), ("text first", 0.8), ("no text", 0.8)],
)
def test_the_same_lists(text: str, sparsity: float, kind: str, device: torch.device) -> None:
    layout = LAYOUTS[text]
    found = both(*random_scores(layout, device), layout, sparsity, kind)
    assert (len(found.mask.counts[:, layout.video_blocks(64).start :].unique()) > 2) == (kind == "layer")


@pytest.mark.parametrize("kind", ["row", "layer"])
def test_ties(kind: str, device: torch.device) -> None:
    """Scores of a few values: ties in rows, at their bounds and across rows, and zeros."""
    layout = LAYOUTS["text last"]
    sums, scores = random_scores(layout, device)
    for levels in (1, 2, 5):
        both(sums, (scores * levels / scores.max()).round(), layout, 0.8, kind)


def test_scores_that_stand_out_meet_the_bounds(device: torch.device) -> None:
    layout = LAYOUTS["no text"]
    sums, scores = random_scores(layout, device)
    scores[0, 0] *= 1e6
    scores[1, 1] *= 1e-6
    found = both(sums, scores, layout, 0.8, "layer")
    assert int(found.mask.counts[0, 0]) == 4 * 5
    assert int(found.mask.counts[1, 1]) == 2


def test_a_level_takes_eight_looks_at_the_scores_and_one_more(device: torch.device) -> None:
    """Each look is a pass over all scores: 31 halvings were most of a search's cost."""
    layout = LAYOUTS["text last"]
    sums, scores = random_scores(layout, device)
    looks = []
    count = adaspa_kernels.count_above
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaspa_kernels, "count_above", lambda *args: looks.append(len(args[-1])) or count(*args))
        both(sums, scores, layout, 0.8, "layer")
    assert looks == [15] * 8 + [2]


def test_scores_that_are_no_numbers(device: torch.device) -> None:
    layout = LAYOUTS["no text"]
    sums, scores = random_scores(layout, device)
    scores[0, :, 3] = torch.nan
    scores[1, 4, 5] = torch.inf
    both(sums, scores, layout, 0.9, "layer")
