"""Probe repair against a ridge regression that is solved row by row in float64."""

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout, cpu, reference
from adaspa_cli.attention.remainder import merge, pool, remainder
from adaspa_cli.attention.repair import Repaired, probe_rows, repair

BLOCK, SCALE, RIDGE = 16, 0.4, 3.0
LAYOUT = TokenLayout(4, 6, 9, 11, "first")


def tensors(layout: TokenLayout = LAYOUT, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, 3, layout.tokens, 8, generator=random).to(dtype) for _ in range(3))


def random_mask(layout: TokenLayout = LAYOUT, seed: int = 1, density: float = 0.4) -> BlockMask:
    """Text kept as always, and one video row of one head that keeps everything."""
    blocks, text = layout.blocks(BLOCK), layout.text_blocks(BLOCK)
    kept = torch.rand(3, blocks, blocks, generator=torch.Generator().manual_seed(seed)) < density
    kept[1, blocks // 2] = True
    kept[:, text.start : text.stop] = True
    kept[:, :, text.start : text.stop] = True
    kept[:, :, 0] = True
    return BlockMask.from_bool(kept, (BLOCK, BLOCK))


def run(
    probes: int, layout: TokenLayout = LAYOUT, seed: int = 0, ridge: float = RIDGE
) -> tuple[Repaired, Tensor, Tensor]:
    """The repaired output, the sparse one and the dense one."""
    q, k, v = tensors(layout, seed)
    mask = random_mask(layout, seed + 1)
    sparse = cpu.block_sparse_attention(q, k, v, mask, SCALE)[0]
    done = repair(q, k, v, sparse, mask, layout, probes=probes, ridge=ridge, scale=SCALE, dense=cpu.dense_attention)
    return done, sparse, cpu.dense_attention(q, k, v, SCALE)[0]


def ridge_map(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and intercept of one head by the normal equations [D + 1, D + 1]; the intercept is not shrunk."""
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    features = torch.cat([x, ones], 1)
    shrunk = RIDGE * torch.eye(x.shape[1] + 1, dtype=torch.float64)
    shrunk[-1, -1] = 0
    solved = torch.linalg.solve(features.T @ features + shrunk, features.T @ target)
    return solved[:-1], solved[-1]


def test_against_the_normal_equations() -> None:
    done, sparse, dense = run(40)
    rows = probe_rows(LAYOUT, 40, "cpu")
    video = range(LAYOUT.video_start, LAYOUT.tokens)
    full = random_mask().counts == random_mask().key_blocks
    for head in range(3):
        out, truth = sparse[0, head].double(), dense[0, head].double()
        mean, deviation = out[rows].mean(0), out[rows].std(0, correction=0)
        features, target = (out - mean) / deviation, truth - out
        weight, intercept = ridge_map(features[rows], target[rows])
        for token in range(LAYOUT.tokens):
            expected = out[token]
            if token in rows.tolist():
                expected = truth[token]
            elif token in video and not full[head, token // BLOCK]:
                expected = expected + features[token] @ weight + intercept
            torch.testing.assert_close(done.out[0, head, token].double(), expected, atol=1e-5, rtol=1e-5)


def test_the_residual_leaves_each_probe_out_of_its_own_fit() -> None:
    done, sparse, dense = run(12)
    rows = probe_rows(LAYOUT, 12, "cpu")
    for head in range(3):
        out, truth = sparse[0, head, rows].double(), dense[0, head, rows].double()
        features, target = (out - out.mean(0)) / out.std(0, correction=0), truth - out
        left = []
        for probe in range(12):
            others = torch.arange(12) != probe
            weight, intercept = ridge_map(features[others], target[others])
            left.append(target[probe] - features[probe] @ weight - intercept)
        assert float(done.before[0, head]) == pytest.approx(float(target.norm() / truth.norm()), rel=1e-4)
        assert float(done.after[0, head]) == pytest.approx(float(torch.stack(left).norm() / truth.norm()), rel=1e-4)


@pytest.mark.parametrize("probes", [216, 1000])
def test_with_probes_on_every_row_the_result_is_dense(probes: int) -> None:
    done, _, dense = run(probes)
    torch.testing.assert_close(done.out, dense)


def test_with_all_blocks_kept_nothing_changes() -> None:
    q, k, v = tensors()
    blocks = LAYOUT.blocks(BLOCK)
    mask = BlockMask.full(3, blocks, blocks, (BLOCK, BLOCK))
    out = cpu.block_sparse_attention(q, k, v, mask, SCALE)[0]
    done = repair(q, k, v, out, mask, LAYOUT, probes=20, ridge=RIDGE, scale=SCALE, dense=cpu.dense_attention)
    assert torch.equal(done.out, out)
    assert float(done.before.max()) < 1e-6
    assert float(done.after.max()) < 1e-6


def test_text_rows_and_full_rows_are_not_touched() -> None:
    done, sparse, _ = run(20)
    exact = random_mask().counts == random_mask().key_blocks
    for head, row in exact.nonzero().tolist():
        tokens = slice(row * BLOCK, (row + 1) * BLOCK)
        assert torch.equal(done.out[0, head, tokens], sparse[0, head, tokens])
    assert torch.equal(done.out[:, :, : LAYOUT.text_tokens], sparse[:, :, : LAYOUT.text_tokens])


@pytest.mark.parametrize("seed", range(3))
def test_an_affine_error_is_repaired(seed: int) -> None:
    """Rows whose error follows from their output: what the repair is for."""
    layout = TokenLayout(4, 8, 8, 0, "last")
    q, k, v = tensors(layout, seed)
    dense = cpu.dense_attention(q, k, v, SCALE)[0]
    turned = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)) * 0.1 + torch.eye(8)
    sparse = dense @ turned + 0.5
    mask = random_mask(layout)
    done = repair(q, k, v, sparse, mask, layout, probes=32, ridge=1e-3, scale=SCALE, dense=cpu.dense_attention)
    video_only = (mask.counts != mask.key_blocks).repeat_interleave(BLOCK, -1)
    left = (done.out - dense)[0][video_only].norm() / dense[0][video_only].norm()
    assert float(left) < 1e-2
    assert float(done.after.max()) < 1e-2 < 0.1 < float(done.before.min())


def test_after_a_remainder_the_probes_say_how_far_the_rest_is() -> None:
    """On random values nothing can be learnt: the estimate must not claim so."""
    layout = TokenLayout(8, 8, 16, 0, "last")
    q, k, v = tensors(layout)
    mask = random_mask(layout)
    sparse, lse = reference.block_sparse_attention(q, k, v, mask, SCALE)
    out, _ = merge(sparse, lse, *remainder(q, pool(k, v, layout, BLOCK), mask, SCALE))
    done = repair(q, k, v, out, mask, layout, probes=64, ridge=RIDGE, scale=SCALE, dense=cpu.dense_attention)
    dense = cpu.dense_attention(q, k, v, SCALE)[0]
    others = torch.ones(layout.tokens, dtype=torch.bool)
    others[probe_rows(layout, 64, "cpu")] = False
    for estimate, result in ((done.before, out), (done.after, done.out)):
        truth = (result - dense)[:, :, others].norm(dim=(2, 3)) / dense[:, :, others].norm(dim=(2, 3))
        torch.testing.assert_close(estimate, truth, rtol=0.3, atol=0)


@pytest.mark.parametrize("probes", [1, 2])
def test_few_probes_or_a_constant_output_give_numbers(probes: int) -> None:
    q, k, v = tensors()
    mask = random_mask()
    constant = torch.ones_like(q)
    done = repair(q, k, v, constant, mask, LAYOUT, probes=probes, ridge=RIDGE, scale=SCALE, dense=cpu.dense_attention)
    assert bool(done.out.isfinite().all())
    assert bool(done.after.isfinite().all())


@pytest.mark.parametrize("probes", [2, 3, 4, 16])
def test_rounding_is_not_magnified(probes: int) -> None:
    """A channel that few probes see hardly vary, by chance, is not divided by that: what several processes make of a
    video differs from what one makes by the rounding of products, times this in each layer and step."""
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 64, LAYOUT.tokens, 8, generator=random) for _ in range(3))
    mask = BlockMask.from_bool(random_mask().to_bool()[:1].expand(64, -1, -1), (BLOCK, BLOCK))
    sparse, error = cpu.block_sparse_attention(q, k, v, mask, SCALE)[0], 1e-6
    noise = error * torch.randn(sparse.shape, generator=random).sign()
    one, other = (
        repair(q, k, v, out, mask, LAYOUT, probes=probes, ridge=RIDGE, scale=SCALE, dense=cpu.dense_attention).out
        for out in (sparse, sparse + noise)
    )
    assert (one - other).abs().max() < 100 * error


def test_bfloat16_stays_bfloat16_and_near() -> None:
    q, k, v = tensors(dtype=torch.bfloat16)
    mask = random_mask()
    arguments = {"probes": 40, "ridge": RIDGE, "scale": SCALE, "dense": cpu.dense_attention}
    sparse = cpu.block_sparse_attention(q, k, v, mask, SCALE)[0]
    narrow = repair(q, k, v, sparse, mask, LAYOUT, **arguments)
    wide = repair(q.float(), k.float(), v.float(), sparse.float(), mask, LAYOUT, **arguments)
    assert narrow.out.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.out.float(), wide.out, atol=3e-2, rtol=3e-2)


def test_probes_are_spread_over_the_video_alone() -> None:
    rows = probe_rows(LAYOUT, 6, "cpu")
    assert rows.tolist() == [11 + 18, 11 + 54, 11 + 90, 11 + 126, 11 + 162, 11 + 198]
    assert probe_rows(LAYOUT, 500, "cpu").tolist() == list(range(11, 227))
