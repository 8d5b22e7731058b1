"""What makes up for left-out blocks, against brute force on the whole matrix in double precision."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout, attention_with_block_sums
from adaspa_cli.attention.backends import resolve
from adaspa_cli.attention.compensated import Compensation, compensated_attention
from adaspa_cli.masks.selection import select
from adaspa_cli.masks.text import with_text
from adaspa_cli.visual.compensation import KEPT, REPAIR, SUMMARIES, Compensated, measure_compensation
from adaspa_cli.visual.compensation_figures import compensation_heats

BLOCK = (8, 8)
ALL = Compensation(pooled=True, probes=16, ridge=10.0)
QKV = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(params=["first", "last"])
def layout(request: pytest.FixtureRequest) -> TokenLayout:
    position: Literal["first", "last"] = request.param
    return TokenLayout(3, 5, 7, 11, position, "hilbert")  # the order of tokens does not matter here


@pytest.fixture
def qkv(layout: TokenLayout) -> QKV:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, layout.tokens, 16, generator=generator) for _ in range(3))
    return 2 * q, k, v


def looked_at(qkv: QKV, layout: TokenLayout, mask: BlockMask, compensation: Compensation) -> tuple[Compensated, Tensor]:
    out, lse, _ = attention_with_block_sums(*qkv, BLOCK, backend="reference")
    return measure_compensation(
        qkv, (out, lse), mask, layout, backend=resolve("reference", out.device), compensation=compensation
    )


def sparse_mask(qkv: QKV, layout: TokenLayout) -> BlockMask:
    _, _, sums = attention_with_block_sums(*qkv, BLOCK, backend="reference")
    return select(sums[0], layout, BLOCK, 0.7, head_adaptive=True).mask


def by_brute_force(qkv: QKV, layout: TokenLayout, mask: BlockMask) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights [H, L, L] of kept tokens and of summaries [H, L, Nk], both of the dense sum; values; mean values."""
    q, k, v = (x[0].double() for x in qkv)
    blocks = torch.arange(layout.tokens) // BLOCK[1]
    kept = mask.to_bool()
    logits = q @ k.mT / 4
    total = logits.exp().sum(-1, keepdim=True)
    tokens = kept[:, blocks][..., blocks]
    sizes = torch.bincount(blocks)
    means = [torch.stack([x[:, blocks == block].mean(1) for block in range(len(sizes))], 1) for x in (k, v)]
    summaries = (q @ means[0].mT / 4).exp() * sizes
    return logits.exp() * tokens / total, summaries * ~kept[:, blocks] / total, v, means[1]


def test_mass_and_errors_are_those_that_brute_force_finds(qkv: QKV, layout: TokenLayout) -> None:
    mask = sparse_mask(qkv, layout)
    found, pooled_by_block = looked_at(qkv, layout, mask, ALL)
    exact, summaries, v, means = by_brute_force(qkv, layout, mask)
    video = slice(layout.video_start, layout.video_start + layout.video_tokens)
    assert found.exact == pytest.approx(exact[:, video].sum(-1).mean(-1).tolist(), abs=2e-5)
    assert found.pooled == pytest.approx(summaries[:, video].sum(-1).mean(-1).tolist(), abs=2e-5)
    rows = summaries.sum(-1)
    by_block = [[rows[head, at : at + 8].mean() for at in range(0, layout.tokens, 8)] for head in range(2)]
    torch.testing.assert_close(pooled_by_block, torch.tensor(by_block), atol=1e-5, rtol=1e-4, check_dtype=False)

    dense = torch.softmax((qkv[0] @ qkv[1].mT)[0].double() / 4, -1) @ v
    alone = exact @ v / exact.sum(-1, keepdim=True)
    both = (exact @ v + summaries @ means) / (exact.sum(-1) + summaries.sum(-1))[..., None]
    for stage, out in ((KEPT, alone), (SUMMARIES, both)):
        errors = (out - dense)[:, video].norm(dim=(1, 2)) / dense[:, video].norm(dim=(1, 2))
        assert found.errors[stage] == pytest.approx(errors.tolist(), abs=2e-5), stage
    scale, backend = 0.25, resolve("reference", qkv[0].device)
    out, _, estimate = compensated_attention(*qkv, mask, layout, scale, backend=backend, compensation=ALL)
    errors = (out[0].double() - dense)[:, video].norm(dim=(1, 2)) / dense[:, video].norm(dim=(1, 2))
    assert found.errors[REPAIR] == pytest.approx(errors.tolist(), abs=2e-5)
    assert estimate.before is not None
    assert estimate.after is not None
    assert found.before == pytest.approx(estimate.before[0].tolist(), abs=2e-6)
    assert found.after == pytest.approx(estimate.after[0].tolist(), abs=2e-6)


def test_a_summary_stands_for_no_more_than_its_block_holds(qkv: QKV, layout: TokenLayout) -> None:
    found, _ = looked_at(qkv, layout, sparse_mask(qkv, layout), ALL)
    for exact, pooled, unseen in zip(found.exact, found.pooled, found.unseen, strict=True):
        assert min(exact, pooled, unseen) > 0
        assert exact + pooled + unseen == pytest.approx(1, abs=2e-6)


def test_a_mask_that_keeps_everything_is_exact(qkv: QKV, layout: TokenLayout) -> None:
    blocks = len(layout.video_blocks(8))
    full = with_text(torch.ones(2, blocks, blocks, dtype=torch.bool), layout, BLOCK)
    found, pooled = looked_at(qkv, layout, BlockMask.from_bool(full, BLOCK), ALL)
    assert found.exact == pytest.approx([1, 1], abs=1e-5)
    assert found.pooled == [0, 0]
    assert not pooled.any()
    assert all(error < 1e-5 for errors in found.errors.values() for error in errors)


@pytest.mark.parametrize(
    ("compensation", "stages"),
    [
        (Compensation(pooled=True), [KEPT, SUMMARIES]),
        (Compensation(probes=8), [KEPT, REPAIR]),
        (ALL, [KEPT, SUMMARIES, REPAIR]),
    ],
)
def test_stages_are_those_of_the_method(
    qkv: QKV, layout: TokenLayout, compensation: Compensation, stages: list[str]
) -> None:
    found, _ = looked_at(qkv, layout, sparse_mask(qkv, layout), compensation)
    assert list(found.errors) == stages
    assert (found.after is not None) == (REPAIR in stages)
    assert any(found.pooled) == compensation.pooled
    titles = [heat.name for heat in compensation_heats({(layer, step): found for layer in (0, 1) for step in (2, 3)})]
    summaries = ["Seen through summaries"] if compensation.pooled else []
    assert titles == ["Kept exactly", *summaries, *(f"Error, {stage}" for stage in stages)]


def test_maps_are_means_over_steps() -> None:
    def compensated(exact: float) -> Compensated:
        return Compensated([exact, 0.5], [0.1, 0.1], {KEPT: [exact, 1.0]}, None, None)

    kept, error = compensation_heats({(4, 0): compensated(0.25), (4, 2): compensated(0.75)})
    assert (kept.title, kept.rows) == ("Kept exactly, mean of steps 0 to 2", [(4, [0.5, 0.5])])
    assert error.rows == [(4, [0.5, 1.0])]
