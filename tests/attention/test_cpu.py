"""The CPU operators against the float64 reference.

Rule: at most ``FACTOR`` times the error of the plain PyTorch formula in the same dtype, plus a float32 rounding of
the size of the values.
"""

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import cpu, reference
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.layout import ceil_div

FACTOR, EPSILON = 2.0, 4e-6
DTYPES = [torch.float32, torch.bfloat16]
SCALE = 0.2
LENGTHS = [(1, 1), (65, 63), (200, 320)]


def tensors(dtype: torch.dtype, *, lengths: tuple[int, int], batch: int = 1, heads: int = 3) -> tuple[Tensor, ...]:
    """q, k, v as [B, H, L, D] views of [B, L, H, D]."""
    random = torch.Generator().manual_seed(sum(lengths))
    return tuple(
        torch.randn(batch, length, heads, 32, generator=random).to(dtype).transpose(1, 2)
        for length in (lengths[0], lengths[1], lengths[1])
    )


def random_mask(q: Tensor, k: Tensor, block: tuple[int, int], *, batch: int | None = None) -> BlockMask:
    """Counts that differ between heads, an empty row and full rows."""
    shape = (q.shape[1], ceil_div(q.shape[2], block[0]), ceil_div(k.shape[2], block[1]))
    density = torch.linspace(0.2, 0.8, q.shape[1])[:, None, None]
    kept = torch.rand(batch or 1, *shape, generator=torch.Generator().manual_seed(1)) < density
    kept[:, 0, 0] = False
    kept[:, 1:, -1] = True
    return BlockMask.from_bool(kept if batch else kept[0], block)


def unreadable(mask: BlockMask) -> BlockMask:
    """The same mask with garbage in the lists of full rows, which must not be read."""
    indices = mask.indices.masked_fill((mask.counts == mask.key_blocks)[..., None], 32_767)
    return BlockMask(mask.counts, indices, mask.key_blocks, mask.block_size)


def error(result: Tensor, truth: Tensor) -> float:
    difference = (result.double() - truth).abs()
    assert not difference.isnan().any()
    return float(difference.max()) if difference.numel() else 0.0


def eager(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> tuple[Tensor, Tensor]:
    """The formula as one writes it in PyTorch, every step in the inputs' dtype but the log-sum-exp."""
    kept = mask.to_bool().repeat_interleave(mask.block_size[0], -2).repeat_interleave(mask.block_size[1], -1)
    kept = kept[..., : q.shape[2], : k.shape[2]]
    scores = ((q @ k.mT) * SCALE).masked_fill(~kept, -torch.inf)
    return torch.softmax(scores, -1).nan_to_num(0) @ v, torch.logsumexp(scores.float(), -1)


def check_sparse(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> None:
    out, lse = cpu.block_sparse_attention(q, k, v, unreadable(mask), SCALE)
    truth, truth_lse = reference.block_sparse_attention(q.double(), k.double(), v.double(), mask, SCALE)
    plain, plain_lse = eager(q, k, v, mask)
    assert out.dtype == q.dtype
    assert out.transpose(1, 2).is_contiguous()
    assert lse.dtype == torch.float32
    assert error(out, truth) <= FACTOR * error(plain, truth) + EPSILON
    assert torch.equal(lse == -torch.inf, truth_lse == -torch.inf)
    seen = truth_lse != -torch.inf
    assert error(lse[seen], truth_lse[seen]) <= FACTOR * error(plain_lse[seen], truth_lse[seen]) + EPSILON


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [(64, 64), (32, 64), (16, 16), (50, 30)], ids=str)
@pytest.mark.parametrize("lengths", [(1, 1), (63, 65), (200, 320), (320, 200)], ids=str)
def test_sparse_attention(dtype: torch.dtype, block: tuple[int, int], lengths: tuple[int, int]) -> None:
    q, k, v = tensors(dtype, lengths=lengths)
    check_sparse(q, k, v, random_mask(q, k, block))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask_batch", [None, 1, 2])
def test_sparse_attention_of_a_batch(dtype: torch.dtype, mask_batch: int | None) -> None:
    q, k, v = tensors(dtype, lengths=(150, 150), batch=2)
    check_sparse(q, k, v, random_mask(q, k, (32, 32), batch=mask_batch))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sparse_attention_in_several_groups(dtype: torch.dtype) -> None:
    """More rows of one length than a group of them takes."""
    q, k, v = tensors(dtype, lengths=(1330, 1330))
    check_sparse(q, k, v, random_mask(q, k, (16, 16)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("blocks", [21, 81])
@pytest.mark.parametrize("gaps", [False, True])
def test_rows_that_keep_equally_many_keys(dtype: torch.dtype, blocks: int, gaps: bool) -> None:
    """Such rows are read and written in place where they follow one another, many of them in several groups; the last
    block is ragged."""
    q, k, v = tensors(dtype, lengths=(16 * blocks - 6, 16 * blocks - 6))
    order = torch.rand(3, blocks, blocks - 1, generator=torch.Generator().manual_seed(2)).argsort(-1)
    kept = torch.cat([order < 5, torch.ones(3, blocks, 1, dtype=torch.bool)], dim=-1)
    kept[:, -1] = True
    if gaps:
        kept[:, 3::4] = False
        kept[:, 1::4, 0] = True
    check_sparse(q, k, v, BlockMask.from_bool(kept, (16, 16)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_small_and_huge_scores(dtype: torch.dtype, size: float) -> None:
    q, k, v = tensors(dtype, lengths=(200, 320))
    q, v = q * size, v * 100
    check_sparse(q, k, v, random_mask(q, k, (32, 32)))
    check_dense(q, k, v, *cpu.dense_attention(q, k, v, SCALE))
    out, lse, sums = cpu.attention_with_block_sums(q, k, v, (32, 32), SCALE)
    check_dense(q, k, v, out, lse)
    assert sums.isfinite().all()
    assert cpu.block_sums(q, k, lse, (32, 32), SCALE).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_blocks_are_dense_attention(dtype: torch.dtype) -> None:
    q, k, v = tensors(dtype, lengths=(100, 150))
    mask = BlockMask.full(3, 2, 3, (64, 64))
    check_sparse(q, k, v, mask)
    sparse, dense = cpu.block_sparse_attention(q, k, v, mask, SCALE), cpu.dense_attention(q, k, v, SCALE)
    for a, b in zip(sparse, dense, strict=True):
        torch.testing.assert_close(a, b)


def test_empty_rows_give_zeros_and_minus_infinity() -> None:
    q, k, v = tensors(torch.float32, lengths=(100, 100))
    out, lse = cpu.block_sparse_attention(
        q, k, v, BlockMask.from_bool(torch.zeros(3, 2, 2, dtype=torch.bool), (64, 64)), SCALE
    )
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_that_are_left_out_are_not_read(dtype: torch.dtype) -> None:
    q, k, v = tensors(dtype, lengths=(128, 128))
    k[:, :, 64:], v[:, :, 64:] = torch.nan, torch.nan
    kept = torch.tensor([[True, False], [True, False]]).expand(3, 2, 2)
    out, lse = cpu.block_sparse_attention(q, k, v, BlockMask.from_bool(kept, (64, 64)), SCALE)
    assert out.isfinite().all()
    assert lse.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [*LENGTHS, (300, 8000)], ids=str)  # the last in several chunks
def test_dense_attention(dtype: torch.dtype, lengths: tuple[int, int]) -> None:
    q, k, v = tensors(dtype, lengths=lengths, batch=2)
    out, lse = cpu.dense_attention(q, k, v, SCALE)
    check_dense(q, k, v, out, lse)


def check_dense(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
    mask = BlockMask.full(q.shape[1], 1, 1, (q.shape[2], k.shape[2]))
    truth, truth_lse = reference.block_sparse_attention(q.double(), k.double(), v.double(), mask, SCALE)
    plain, plain_lse = eager(q, k, v, mask)
    assert out.dtype == q.dtype
    assert out.transpose(1, 2).is_contiguous()
    assert lse.dtype == torch.float32
    assert error(out, truth) <= FACTOR * error(plain, truth) + EPSILON
    assert error(lse, truth_lse) <= FACTOR * error(plain_lse, truth_lse) + EPSILON


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_search_of_many_keys_is_that_of_its_queries_apart(dtype: torch.dtype) -> None:
    """So many keys that the queries come in several chunks; 160 queries are whole blocks, and no chunk of their own."""
    q, k, v = tensors(dtype, lengths=(300, 8000), heads=1)
    together = cpu.attention_with_block_sums(q, k, v, (32, 64), SCALE)
    apart = [cpu.attention_with_block_sums(x, k, v, (32, 64), SCALE) for x in (q[:, :, :160], q[:, :, 160:])]
    for found, pieces in zip(together, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(pieces, dim=2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [(64, 64), (16, 32)], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_search(dtype: torch.dtype, block: tuple[int, int], lengths: tuple[int, int]) -> None:
    """One pass gives the dense output, its LSE, and the sums that a second pass with that LSE gives."""
    q, k, v = tensors(dtype, lengths=lengths, batch=2)
    out, lse, sums = cpu.attention_with_block_sums(q, k, v, block, SCALE)
    check_dense(q, k, v, out, lse)
    second = cpu.block_sums(q, k, lse, block, SCALE)
    queries = torch.full((ceil_div(lengths[0], block[0]),), float(block[0]))
    queries[-1] = lengths[0] - block[0] * (len(queries) - 1)
    rounded = (q @ k.mT).float()  # scores in the inputs' dtype, times the identity below
    for result in (sums, second):
        truth = reference.block_sums(q.double(), k.double(), lse, block, SCALE)
        plain = reference.block_sums(rounded, torch.eye(lengths[1]).expand(2, 3, -1, -1), lse, block, SCALE)
        assert result.dtype == torch.float32
        assert error(result, truth) <= FACTOR * error(plain, truth) + EPSILON * block[0]
        torch.testing.assert_close(result.sum(-1), queries.expand(2, 3, -1), rtol=1e-5, atol=0)


def test_rows_without_keys_weigh_nothing() -> None:
    q, k, v = tensors(torch.float32, lengths=(100, 100))
    _, lse = cpu.dense_attention(q, k, v, SCALE)
    lse[:, 0, :64] = -torch.inf
    sums = cpu.block_sums(q, k, lse, (64, 64), SCALE)
    assert (sums[:, 0, 0] == 0).all()
    assert sums.isfinite().all()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_is_not_positive_is_refused(scale: float) -> None:
    q, k, v = tensors(torch.float32, lengths=(64, 64))
    with pytest.raises(ValueError, match="scale must be positive"):
        cpu.dense_attention(q, k, v, scale)
