"""From block sums to a mask, against a choice made block by block in plain Python."""

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.config.kept_blocks import kept_blocks
from adaspa_cli.masks.selection import adapt_counts, select

BLOCK = 16
# 160 video tokens are exactly ten blocks; 164 beside 20 of text leave one block with both.
LAYOUTS = {
    "text last": TokenLayout(8, 4, 5, 32, "last"),
    "text first": TokenLayout(8, 4, 5, 32, "first"),
    "straddling, text last": TokenLayout(2, 41, 2, 20, "last"),
    "straddling, text first": TokenLayout(2, 41, 2, 20, "first"),
    "no text": TokenLayout(8, 4, 5, 0, "last"),
}


def block_sums(layout: TokenLayout, heads: int = 6, seed: int = 0) -> Tensor:
    """W [H, Nq, Nk] without ties, each row block with the mass of its queries, more concentrated from head to head."""
    blocks = layout.blocks(BLOCK)
    noise = torch.randn(heads, blocks, blocks, generator=torch.Generator().manual_seed(seed))
    sharpness = torch.linspace(0.2, 6, heads)[:, None, None]
    return torch.softmax(noise * sharpness, dim=-1) * BLOCK


def brute_force(W: Tensor, layout: TokenLayout, keep: list[int]) -> Tensor:
    """bool [H, Nq, Nk]: method, section 4, one block at a time."""
    is_text = text_flags(layout)
    video = [block for block, text in enumerate(is_text) if not text]
    dense = torch.zeros_like(W, dtype=torch.bool)
    for head in range(W.shape[0]):
        for row in range(W.shape[1]):
            heaviest = sorted(video, key=lambda column: -float(W[head, row, column]))[: keep[head]]
            for column in range(W.shape[2]):
                dense[head, row, column] = is_text[row] or is_text[column] or column in heaviest
    return dense


def text_flags(layout: TokenLayout) -> list[bool]:
    video, text = [False] * layout.video_tokens, [True] * layout.text_tokens
    tokens = text + video if layout.text_position == "first" else video + text
    return [any(tokens[start : start + BLOCK]) for start in range(0, len(tokens), BLOCK)]


def recalls(W: Tensor, dense: Tensor) -> list[float]:
    return [float(W[head][dense[head]].double().sum() / W[head].double().sum()) for head in range(W.shape[0])]


def brute_force_head_adaptive(W: Tensor, layout: TokenLayout, sparsity: float) -> list[int]:
    """Kept video blocks per head: method, section 5."""
    heads, video = W.shape[0], text_flags(layout).count(False)

    def keep(gamma: float) -> int:
        return max(1, round((1 - gamma) * video))

    recall = recalls(W, brute_force(W, layout, [keep(sparsity)] * heads))
    n = min(sum(value > 0.8 for value in recall), heads // 2)
    best_first = sorted(range(heads), key=lambda head: -recall[head])
    counts = [keep(sparsity)] * heads
    for head in best_first[:n]:
        counts[head] = keep((1 + sparsity) / 2)
    for head in best_first[heads - n :]:
        counts[head] = keep(max(0.0, (3 * sparsity - 1) / 2))
    return counts


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.55, 0.8, 0.99])
def test_rows_keep_their_heaviest_video_blocks_and_all_text(layout: TokenLayout, sparsity: float) -> None:
    W = block_sums(layout)
    keep = max(1, round((1 - sparsity) * text_flags(layout).count(False)))
    found = select(W, layout, (BLOCK, BLOCK), sparsity, head_adaptive=False)
    assert torch.equal(found.mask.to_bool(), brute_force(W, layout, [keep] * W.shape[0]))
    assert found.mask.block_size == (BLOCK, BLOCK)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("heads", [1, 2, 5, 8])
def test_head_adaptive_counts(layout: TokenLayout, sparsity: float, heads: int) -> None:
    W = block_sums(layout, heads)
    expected = brute_force(W, layout, brute_force_head_adaptive(W, layout, sparsity))
    assert torch.equal(select(W, layout, (BLOCK, BLOCK), sparsity, head_adaptive=True).mask.to_bool(), expected)


@pytest.mark.parametrize("head_adaptive", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_recall_is_the_kept_mass_over_all_mass(layout: TokenLayout, head_adaptive: bool) -> None:
    W = block_sums(layout)
    found = select(W, layout, (BLOCK, BLOCK), 0.7, head_adaptive=head_adaptive)
    # Sums of some hundred float32 terms.
    assert found.recall.tolist() == pytest.approx(recalls(W, found.mask.to_bool()), rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_of_equally_heavy_blocks_the_first_are_kept(layout: TokenLayout) -> None:
    """Few different weights; ``sorted``, as brute force uses it, is stable."""
    W = torch.randint(0, 3, block_sums(layout).shape, generator=torch.Generator().manual_seed(0)).float()
    keep = round(0.5 * text_flags(layout).count(False))
    found = select(W, layout, (BLOCK, BLOCK), 0.5, head_adaptive=False)
    assert torch.equal(found.mask.to_bool(), brute_force(W, layout, [keep] * W.shape[0]))


def test_recall_divides_by_the_mass_that_there_is() -> None:
    """With an older LSE the rows do not sum to one."""
    layout = LAYOUTS["text last"]
    W = block_sums(layout)
    exact = select(W, layout, (BLOCK, BLOCK), 0.7, head_adaptive=True)
    scaled = select(0.37 * W, layout, (BLOCK, BLOCK), 0.7, head_adaptive=True)
    assert torch.equal(exact.mask.to_bool(), scaled.mask.to_bool())
    torch.testing.assert_close(scaled.recall, exact.recall, rtol=1e-5, atol=0)


@pytest.mark.parametrize("head_adaptive", [False, True])
def test_without_sparsity_everything_is_kept(head_adaptive: bool) -> None:
    layout = LAYOUTS["straddling, text last"]
    found = select(block_sums(layout), layout, (BLOCK, BLOCK), 0.0, head_adaptive=head_adaptive)
    assert found.mask.to_bool().all()
    # The recall is a quotient of two float32 sums of the same terms.
    assert found.recall.tolist() == pytest.approx([1.0] * 6, rel=1e-6)


def test_a_row_keeps_at_least_one_video_block() -> None:
    assert kept_blocks(0.999, 10) == 1
    assert kept_blocks(0.0, 10) == 10
    assert kept_blocks(0.8, 10) == 2
    assert kept_blocks(0.8, 0) == 0


@pytest.mark.parametrize("position", ["first", "last"])
def test_fewer_tokens_than_one_block_are_kept(position: str) -> None:
    layout = TokenLayout(1, 2, 3, 4, position)  # type: ignore[arg-type]
    found = select(torch.full((3, 1, 1), 10.0), layout, (BLOCK, BLOCK), 0.8, head_adaptive=True)
    assert found.mask.to_bool().all()
    assert found.recall.tolist() == pytest.approx([1.0] * 3)


def test_a_search_leaves_the_block_sums_as_they_were() -> None:
    layout = LAYOUTS["text last"]
    W = block_sums(layout)
    before = W.clone()
    select(W, layout, (BLOCK, BLOCK), 0.8, head_adaptive=True)
    assert torch.equal(W, before)


def test_query_and_key_blocks_may_differ_in_size() -> None:
    layout = LAYOUTS["straddling, text last"]
    rows, columns = layout.blocks(32), layout.blocks(16)
    W = torch.rand(2, rows, columns, generator=torch.Generator().manual_seed(0))
    dense = select(W, layout, (32, 16), 0.8, head_adaptive=False).mask.to_bool()
    video_rows, video_columns = len(layout.video_blocks(32)), len(layout.video_blocks(16))
    assert dense.shape == (2, rows, columns)
    assert dense[:, video_rows:].all()
    assert dense[:, :, video_columns:].all()
    assert (dense[:, :video_rows, :video_columns].sum(-1) == max(1, round(0.2 * video_columns))).all()


def test_the_lists_ascend() -> None:
    layout = LAYOUTS["text first"]
    mask = select(block_sums(layout), layout, (BLOCK, BLOCK), 0.6, head_adaptive=True).mask
    for counts, lists in zip(mask.counts.flatten(0, 1), mask.indices.flatten(0, 1), strict=True):
        if counts < mask.key_blocks:
            kept = lists[:counts].tolist()
            assert kept == sorted(set(kept))
            assert not lists[counts:].any()


def test_the_lists_are_no_longer_than_the_head_with_the_most_blocks() -> None:
    layout = LAYOUTS["text last"]
    found = select(block_sums(layout), layout, (BLOCK, BLOCK), 0.8, head_adaptive=True)
    assert found.mask.indices.shape[-1] == kept_blocks(0.7, 10) + 2  # and the two text blocks


@pytest.mark.parametrize(
    ("recall", "expected"),
    [
        ([0.9, 0.5, 0.5, 0.4], [2, 5, 5, 9]),  # n = 1
        ([0.9, 0.95, 0.99, 0.85], [9, 2, 2, 9]),  # all above, but n is at most half
        ([0.7, 0.6, 0.5, 0.4], [5, 5, 5, 5]),  # none above
        ([0.8, 0.8, 0.8, 0.8], [5, 5, 5, 5]),  # the threshold itself is not above
        ([0.81, 0.82, 0.1], [5, 2, 9]),  # at most half of three heads is one
        ([0.99], [5]),  # one head has no other to trade with
    ],
)
def test_heads_trade_blocks_by_their_recall(recall: list[float], expected: list[int]) -> None:
    assert adapt_counts(torch.tensor(recall), 2, 5, 9).tolist() == expected


@pytest.mark.parametrize("heads", [1, 2, 3, 24])
@pytest.mark.parametrize("above", [0, 1, 12, 24])
def test_the_mean_stays_and_there_are_at_most_three_counts(heads: int, above: int) -> None:
    recall = torch.linspace(0.1, 0.7, heads)
    recall[torch.randperm(heads, generator=torch.Generator().manual_seed(0))[:above]] += 0.75
    counts = adapt_counts(recall, 10, 20, 30).tolist()
    assert sum(counts) == 20 * heads
    assert set(counts) <= {10, 20, 30}
    assert counts.count(10) == counts.count(30) <= heads // 2
