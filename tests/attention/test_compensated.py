"""Sparse attention with remainder and repair together, against dense attention."""

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout, block_sparse_attention, dense_attention, resolve
from adaspa_cli.attention.compensated import Compensation, Estimate, compensated_attention

BLOCK, SCALE = 16, 0.3
LAYOUTS = {
    "text last": TokenLayout(4, 8, 12, 9, "last"),
    "text first": TokenLayout(3, 8, 9, 20, "first"),
    "one block": TokenLayout(1, 3, 4, 0, "last"),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
EVERYTHING = Compensation(pooled=True, probes=32, ridge=3.0)


def tensors(layout: TokenLayout, seed: int = 0) -> tuple[Tensor, ...]:
    """Keys and values that are alike within a block to a degree, as those of a video are."""
    random = torch.Generator().manual_seed(seed)
    blocks = layout.blocks(BLOCK)
    shared = torch.randn(2, 1, 3, blocks, 1, 8, generator=random).expand(-1, -1, -1, -1, BLOCK, -1).flatten(3, 4)
    k, v = shared[:, :, :, : layout.tokens] + torch.randn(2, 1, 3, layout.tokens, 8, generator=random)
    return torch.randn(1, 3, layout.tokens, 8, generator=random), k, v


def random_mask(layout: TokenLayout, density: float = 0.4) -> BlockMask:
    blocks, text = layout.blocks(BLOCK), layout.text_blocks(BLOCK)
    kept = torch.rand(3, blocks, blocks, generator=torch.Generator().manual_seed(1)) < density
    kept[:, text.start : text.stop] = True
    kept[:, :, text.start : text.stop] = True
    return BlockMask.from_bool(kept, (BLOCK, BLOCK))


def attend(layout: TokenLayout, compensation: Compensation, mask: BlockMask, seed: int = 0, name: str = "reference"):  # type: ignore[no-untyped-def]
    q, k, v = tensors(layout, seed)
    backend = resolve(name, q.device)
    return compensated_attention(q, k, v, mask, layout, SCALE, backend=backend, compensation=compensation)


@layouts
def test_without_compensation_it_is_the_sparse_operator(layout: TokenLayout) -> None:
    mask = random_mask(layout)
    out, lse, estimate = attend(layout, Compensation(), mask)
    truth = block_sparse_attention(*tensors(layout), mask, scale=SCALE, return_lse=True, backend="reference")
    assert torch.equal(out, truth[0])
    assert torch.equal(lse, truth[1])
    assert estimate == Estimate()


@layouts
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_with_all_blocks_kept_it_is_dense(layout: TokenLayout, name: str) -> None:
    blocks = layout.blocks(BLOCK)
    mask = BlockMask.full(3, blocks, blocks, (BLOCK, BLOCK))
    out, lse, estimate = attend(layout, EVERYTHING, mask, name=name)
    dense, dense_lse = dense_attention(*tensors(layout), scale=SCALE, backend=name)
    torch.testing.assert_close((out, lse), (dense, dense_lse))
    assert estimate.pooled is not None
    assert not estimate.pooled.any()


@layouts
def test_with_probes_on_every_row_it_is_dense(layout: TokenLayout) -> None:
    out, _, _ = attend(layout, Compensation(pooled=True, probes=layout.video_tokens), random_mask(layout))
    torch.testing.assert_close(out, dense_attention(*tensors(layout), scale=SCALE, backend="reference")[0])


@pytest.mark.parametrize("seed", range(3))
def test_each_piece_comes_nearer_to_dense(seed: int) -> None:
    layout = LAYOUTS["text last"]
    mask = random_mask(layout)
    dense, dense_lse = dense_attention(*tensors(layout, seed), scale=SCALE, backend="reference")
    errors, misses = [], []
    for compensation in (Compensation(), Compensation(pooled=True)):
        out, lse, _ = attend(layout, compensation, mask, seed)
        errors.append(float((out - dense).norm() / dense.norm()))
        misses.append(float((lse - dense_lse).abs().max()))
    assert errors[1] < 0.8 * errors[0]
    assert misses[1] < 0.5 * misses[0]  # the LSE is nearly that of all keys


def test_the_estimate_is_near_the_error() -> None:
    layout = LAYOUTS["text last"]
    mask = random_mask(layout)
    out, _, estimate = attend(layout, EVERYTHING, mask)
    dense = dense_attention(*tensors(layout), scale=SCALE, backend="reference")[0]
    video = slice(0, layout.video_tokens)
    truth = (out - dense)[:, :, video].norm(dim=(2, 3)) / dense[:, :, video].norm(dim=(2, 3))
    assert estimate.after is not None
    assert estimate.pooled is not None
    torch.testing.assert_close(estimate.after, truth, rtol=0.4, atol=0)
    assert bool(((estimate.pooled > 0.2) & (estimate.pooled < 0.8)).all())


@pytest.mark.parametrize("layout", [TokenLayout(3, 8, 20, 70, "last"), TokenLayout(3, 8, 20, 70, "first")], ids=str)
@pytest.mark.parametrize("probes", [0, 24])
def test_the_kernels_give_what_pytorch_gives(layout: TokenLayout, probes: int, device: torch.device) -> None:
    """Summaries in the sparse pass, and a repair in one pass: output, LSE, and what is known of the error."""
    adaspa_kernels = pytest.importorskip("adaspa_kernels", reason="triton is not installed")
    if reason := adaspa_kernels.unavailable(device):
        pytest.skip(reason)
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 3, layout.tokens, 64, generator=random).half().to(device) for _ in range(3))
    blocks, text = layout.blocks(64), layout.text_blocks(64)
    kept = torch.rand(3, blocks, blocks, generator=random) < 0.4
    kept[:, text.start : text.stop] = True
    kept[:, :, text.start : text.stop] = True
    mask = BlockMask.from_bool(kept, (64, 64)).to(device)
    results = []
    for name in ("triton", "reference"):
        backend = resolve(name, device)
        results.append(
            compensated_attention(
                q, k, v, mask, layout, SCALE, backend=backend, compensation=Compensation(pooled=True, probes=probes)
            )
        )
    (out, lse, estimate), (truth, true_lse, true_estimate) = results
    torch.testing.assert_close((out, lse), (truth, true_lse), rtol=4e-3, atol=4e-3)
    torch.testing.assert_close(estimate.pooled, true_estimate.pooled, rtol=1e-3, atol=1e-3)
    assert estimate.work == true_estimate.work
