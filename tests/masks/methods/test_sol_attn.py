"""The rule of Sol-Attn against one that is written out row by row."""

from statistics import NormalDist, fmean, pstdev

import pytest
import torch

from adaspa_cli.attention import TokenLayout
from adaspa_cli.masks.methods.sol_attn import SolAttn, outstanding
from adaspa_cli.masks.plan import DENSE, ESTIMATE
from adaspa_cli.masks.policy import Call

BLOCK = 16
LAYOUTS = [TokenLayout(8, 8, 5, 32, "last"), TokenLayout(8, 8, 5, 20, "first"), TokenLayout(3, 7, 9, 0, "last")]


def call(layout: TokenLayout, step: int = 3) -> Call:
    return Call(0, step, "cond", 0, layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_against_one_row_at_a_time(layout: TokenLayout, sparsity: float) -> None:
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, layout.tokens, 8, generator=random) for _ in range(3))
    found = SolAttn(sparsity, 2, BLOCK).estimate(call(layout), q, k, v, 1.0)
    kept, video = found.mask.to_bool(), layout.video_blocks(BLOCK)
    assert found.recall is None
    tau = NormalDist().inv_cdf(sparsity)
    for head in range(2):
        means = [[x[0, head, j * BLOCK : (j + 1) * BLOCK].mean(0) for j in range(layout.blocks(BLOCK))] for x in (q, k)]
        for row in range(layout.blocks(BLOCK)):
            scores = [float(means[0][row] @ means[1][column]) for column in video]
            limit = fmean(scores) + tau * pstdev(scores)
            for column in range(layout.blocks(BLOCK)):
                text = row not in video or column not in video
                score = text or scores[column - video.start]
                assert bool(kept[head, row, column]) == (text or score > limit or score == max(scores))


def test_about_the_asked_share_is_kept() -> None:
    kept = outstanding(torch.randn(4, 100, 500, generator=torch.Generator().manual_seed(1)), NormalDist().inv_cdf(0.9))
    assert float(kept.float().mean()) == pytest.approx(0.1, abs=0.01)


def test_of_equal_scores_something_is_kept() -> None:
    assert bool(outstanding(torch.ones(1, 2, 5), 1.0).any(-1).all())


def test_it_is_dense_before_it_estimates_and_pools_the_rest() -> None:
    policy = SolAttn(0.8, 2)
    assert policy.plan(range(4)) == [DENSE, DENSE, ESTIMATE, ESTIMATE]
    assert policy.compensation.pooled


def test_without_sparsity_everything_is_kept() -> None:
    q = torch.randn(1, 2, LAYOUTS[0].tokens, 8)
    assert bool(SolAttn(0.0, 0, BLOCK).estimate(call(LAYOUTS[0]), q, q, q, 1.0).mask.to_bool().all())
