"""A ranking serves every sparsity that it reaches with the mask that a selection from the block sums would give."""

import pytest
import torch

from adaspa_cli.attention import TokenLayout
from adaspa_cli.config.kept_blocks import most_needed
from adaspa_cli.maskfiles.ranking import Ranking, choose_counts, rank, ranked_blocks
from adaspa_cli.masks.selection import select
from adaspa_cli.masks.text import video_part, with_text

LAYOUTS = [
    TokenLayout(3, 8, 8, 7, "last"),
    TokenLayout(3, 5, 7, 9, "last"),  # ragged: a block straddles video and text
    TokenLayout(3, 5, 7, 9, "first"),
    TokenLayout(2, 4, 8, 0, "last"),
]
BLOCK, HEADS = 8, 4


def sums(layout: TokenLayout, seed: int = 0, ties: bool = False) -> torch.Tensor:
    blocks = layout.blocks(BLOCK)
    random = torch.Generator().manual_seed(seed)
    spread = torch.tensor([0.5, 4.0, 1.0, 3.0])[:, None, None]  # heads of high and of low recall
    found = (torch.randn(HEADS, blocks, blocks, generator=random) * spread).exp()
    return found.round() if ties else found


def ranking_of(found: torch.Tensor, layout: TokenLayout, keep: int | None = None) -> Ranking:
    video = video_part(found, layout, (BLOCK, BLOCK))
    return rank(video, found.sum((-1, -2)) - video.sum((-1, -2)), keep or video.shape[-1])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("head_adaptive", [True, False])
@pytest.mark.parametrize("ties", [False, True])
def test_every_sparsity_has_the_mask_of_the_selection(layout: TokenLayout, head_adaptive: bool, ties: bool) -> None:
    found = sums(layout, ties=ties)
    ranking = ranking_of(found, layout)
    blocks = len(layout.video_blocks(BLOCK))
    for sparsity in (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.99):
        expected = select(found, layout, (BLOCK, BLOCK), sparsity, head_adaptive=head_adaptive)
        counts = choose_counts(ranking, sparsity, blocks, head_adaptive)
        mask = with_text(ranked_blocks(ranking.order, counts, blocks), layout, (BLOCK, BLOCK))
        assert torch.equal(mask, expected.mask.to_bool()), sparsity
        recall = ranking.recall_by_rank.gather(1, counts[:, None])[:, 0]
        torch.testing.assert_close(recall, expected.recall, rtol=1e-5, atol=1e-6)


def test_a_short_ranking_serves_what_it_reaches_and_no_more() -> None:
    layout = LAYOUTS[0]
    blocks = len(layout.video_blocks(BLOCK))  # 24
    keep = most_needed(0.75, blocks, True)
    assert keep == 9  # 1.5 times a quarter of 24
    found = sums(layout)
    short, whole = ranking_of(found, layout, keep), ranking_of(found, layout)
    for sparsity in (0.75, 0.8, 0.95):
        assert torch.equal(choose_counts(short, sparsity, blocks, True), choose_counts(whole, sparsity, blocks, True))
    with pytest.raises(ValueError, match="needs 11 ranked blocks of a row, not 9"):
        choose_counts(short, 0.7, blocks, True)


def test_a_ranking_is_compact() -> None:
    ranking = ranking_of(sums(LAYOUTS[0]), LAYOUTS[0], 9)
    assert ranking.order.dtype == torch.int16
    assert ranking.order.shape == (HEADS, 24, 9)
    assert ranking.recall_by_rank.shape == (HEADS, 10)
    assert (ranking.recall_by_rank.diff() >= 0).all()
