"""The pooled remainder against a softmax that is written out key by key in float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout, reference
from adaspa_cli.attention.remainder import merge, pool, remainder, share

BLOCK, SCALE = 16, 0.3
LAYOUTS = {
    "text last, straddling": TokenLayout(3, 5, 7, 9, "last"),
    "text first, ragged": TokenLayout(3, 5, 7, 20, "first"),
    "no text, ragged": TokenLayout(3, 5, 7, 0, "last"),
    "no text, whole blocks": TokenLayout(4, 4, 8, 0, "last"),
    "one block": TokenLayout(1, 3, 4, 0, "last"),
    "text alone": TokenLayout(1, 2, 3, 9, "last"),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def tensors(layout: TokenLayout, dtype: torch.dtype = torch.float32, heads: int = 3) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(layout.tokens)
    return tuple(torch.randn(2, heads, layout.tokens, 8, generator=random).to(dtype) for _ in range(3))


def random_mask(layout: TokenLayout, heads: int = 3, seed: int = 1) -> BlockMask:
    """Blocks with text kept, an empty row, a full one, and anything in between."""
    blocks, text = layout.blocks(BLOCK), layout.text_blocks(BLOCK)
    kept = torch.rand(heads, blocks, blocks, generator=torch.Generator().manual_seed(seed)) < 0.4
    kept[0, 0] = False
    kept[1, 0] = True
    kept[:, text.start : text.stop] = True
    kept[:, :, text.start : text.stop] = True
    return BlockMask.from_bool(kept, (BLOCK, BLOCK))


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """Output and LSE of the remainder, one row and one block at a time."""
    kept = mask.to_bool()
    out, lse = torch.zeros_like(q, dtype=torch.float64), torch.full(q.shape[:3], -torch.inf, dtype=torch.float64)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        logits, values = [], []
        for j in layout.video_blocks(BLOCK):
            if kept[h, i // BLOCK, j]:
                continue
            keys, vectors = (x[b, h, j * BLOCK : (j + 1) * BLOCK].double() for x in (k, v))
            logits.append(q[b, h, i].double() @ keys.mean(0) * SCALE + math.log(len(keys)))
            values.append(vectors.mean(0))
        if logits:
            lse[b, h, i] = torch.logsumexp(torch.stack(logits), 0)
            out[b, h, i] = torch.softmax(torch.stack(logits), 0) @ torch.stack(values)
    return out, lse


@layouts
def test_against_one_key_at_a_time(layout: TokenLayout) -> None:
    q, k, v = tensors(layout)
    mask = random_mask(layout)
    out, lse = remainder(q, pool(k, v, layout, BLOCK), mask, SCALE)
    truth, truth_lse = written_out(q, k, v, mask, layout)
    assert out.dtype == q.dtype
    assert lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), truth, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(lse.double(), truth_lse, atol=2e-6, rtol=1e-5)


def test_a_row_that_keeps_every_block_has_no_remainder() -> None:
    layout = LAYOUTS["text last, straddling"]
    q, k, v = tensors(layout)
    out, lse = remainder(q, pool(k, v, layout, BLOCK), random_mask(layout), SCALE)
    rows = slice(layout.video_blocks(BLOCK).stop * BLOCK, None)
    for exact in ((slice(None), 1, slice(0, BLOCK)), (slice(None), slice(None), rows)):
        assert bool((lse[exact] == -torch.inf).all())
        assert bool((out[exact] == 0).all())


def test_a_long_sequence_has_the_remainder_of_each_head_apart() -> None:
    """So long that all heads together come in several chunks, one head alone in one."""
    layout = TokenLayout(8, 16, 16, 20, "first")
    q, k, v = tensors(layout)
    mask = random_mask(layout)
    out, lse = remainder(q, pool(k, v, layout, BLOCK), mask, SCALE)
    for sample, head in itertools.product(range(2), range(3)):
        here = (slice(sample, sample + 1), slice(head, head + 1))
        alone = BlockMask(mask.counts[here[1]], mask.indices[here[1]], mask.key_blocks, mask.block_size)
        own_out, own_lse = remainder(q[here], pool(k[here], v[here], layout, BLOCK), alone, SCALE)
        torch.testing.assert_close(out[here], own_out)
        torch.testing.assert_close(lse[here], own_lse)


def test_bfloat16_is_as_near_as_its_rounding() -> None:
    layout = LAYOUTS["text first, ragged"]
    q, k, v = tensors(layout, torch.bfloat16)
    mask = random_mask(layout)
    out, lse = remainder(q, pool(k, v, layout, BLOCK), mask, SCALE)
    truth, truth_lse = written_out(q, k, v, mask, layout)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), truth, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(lse.double(), truth_lse, atol=2e-2, rtol=2e-2)


def sparse_and_remainder(q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, mask: BlockMask) -> list[Tensor]:
    """The output without and with the remainder."""
    sparse, lse = reference.block_sparse_attention(q, k, v, mask, SCALE)
    return [sparse, merge(sparse, lse, *remainder(q, pool(k, v, layout, BLOCK), mask, SCALE))[0]]


@layouts
def test_with_all_blocks_kept_the_result_is_dense(layout: TokenLayout) -> None:
    q, k, v = tensors(layout)
    blocks = layout.blocks(BLOCK)
    sparse, merged = sparse_and_remainder(q, k, v, layout, BlockMask.full(q.shape[1], blocks, blocks, (BLOCK, BLOCK)))
    assert torch.equal(merged, sparse)
    torch.testing.assert_close(merged, torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=SCALE))


@pytest.mark.parametrize("seed", range(4))
def test_the_remainder_is_nearer_to_dense_over_random_inputs(seed: int) -> None:
    layout = TokenLayout(4, 8, 12, 9, "last")
    random = torch.Generator().manual_seed(seed)
    # Blocks whose tokens are alike to a degree, as those of a video are.
    blocks = layout.blocks(BLOCK)
    shared = torch.randn(2, 2, 3, blocks, 1, 8, generator=random).expand(-1, -1, -1, -1, BLOCK, -1).flatten(3, 4)
    own = torch.randn(2, 2, 3, layout.tokens, 8, generator=random)
    k, v = shared[:, :, :, : layout.tokens] + own
    q = torch.randn(2, 3, layout.tokens, 8, generator=random)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=SCALE)
    without, merged = sparse_and_remainder(q, k, v, layout, random_mask(layout, seed=seed))
    errors = [(out - dense).norm(dim=(2, 3)) for out in (without, merged)]
    assert bool((errors[1] < errors[0]).all())


def test_merge_is_exact_where_one_part_is_empty() -> None:
    a, b = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8)
    nothing = torch.full((1, 2, 4), -torch.inf)
    lse = torch.tensor([-300.0, -1.0, 0.0, 90.0]).expand(1, 2, 4)
    zeros = torch.zeros_like(a)
    for mine, yours in ((merge(a, lse, zeros, nothing), a), (merge(zeros, nothing, b, lse), b)):
        assert torch.equal(mine[0], yours)
        assert torch.equal(mine[1], lse)
    out, both = merge(zeros, nothing, zeros, nothing)
    assert torch.equal(out, zeros)
    assert torch.equal(both, nothing)


def test_merge_of_two_halves_is_the_whole() -> None:
    layout = LAYOUTS["no text, whole blocks"]
    q, k, v = tensors(layout)
    mask = random_mask(layout)
    kept = mask.to_bool()
    other = BlockMask.from_bool(~kept, (BLOCK, BLOCK))
    halves = [reference.block_sparse_attention(q, k, v, part, SCALE) for part in (mask, other)]
    out, lse = merge(*halves[0], *halves[1])
    blocks = layout.blocks(BLOCK)
    whole = reference.block_sparse_attention(q, k, v, BlockMask.full(3, blocks, blocks, (BLOCK, BLOCK)), SCALE)
    torch.testing.assert_close((out, lse), whole)


def test_the_share_of_the_pooled_mass() -> None:
    lse_a, lse_b = torch.tensor([0.0, -torch.inf, 2.0, -torch.inf]), torch.tensor([0.0, 1.0, -torch.inf, -torch.inf])
    assert torch.equal(share(lse_a, lse_b), torch.tensor([0.5, 1.0, 0.0, 0.0]))
