"""Summaries of key blocks, and sparse attention that sees them in the place of what a row leaves out.

The truth is one softmax in float64 over the kept keys and the summaries of the other video blocks; the bound is that of
test_block_sparse.py.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import reference
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.layout import ceil_div

pytest.importorskip("triton", reason="triton is not installed")

import adaspa_kernels
from adaspa_kernels.summaries import Summaries, block_means, closed_words
from tests.kernels.conftest import dtypes
from tests.kernels.test_block_sparse import EPSILON, FACTOR, error, random_mask, tensors

pytestmark = pytest.mark.usefixtures("kernel_path", "poisoned_memory")


def summarise(k: Tensor, v: Tensor, mask: BlockMask, video: range) -> Summaries:
    return adaspa_kernels.summarise(k, v, mask.counts, mask.indices, block_size=mask.block_size, video=video)


def run(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, summaries: Summaries | None) -> tuple[Tensor, ...]:
    return adaspa_kernels.block_sparse_attention(
        q, k, v, mask.counts, mask.indices,
        key_blocks=mask.key_blocks, block_size=mask.block_size, scale=q.shape[-1] ** -0.5, summaries=summaries,
    )  # fmt: skip


def with_summaries(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, summaries: Summaries) -> tuple[Tensor, Tensor]:
    """The formula, every step in the dtype of q but logits and weights of 16-bit inputs, which are float32."""
    block_q, block_k = mask.block_size
    kept = mask.to_bool()
    seen = torch.zeros(mask.key_blocks, dtype=torch.bool, device=q.device)
    seen[summaries.video.start : summaries.video.stop] = True
    tokens = torch.full((mask.key_blocks,), float(block_k), device=q.device)
    tokens[-1] -= mask.key_blocks * block_k - k.shape[2]
    per_query = (x.repeat_interleave(block_q, -2)[..., : q.shape[2], :] for x in (kept, ~kept & seen))
    kept_keys, left_out = per_query
    logits = reference.scores(q, k, None).masked_fill(
        ~kept_keys.repeat_interleave(block_k, -1)[..., : k.shape[2]], -torch.inf
    )
    pooled = reference.scores(q, summaries.keys.to(q.dtype), None) + tokens.log()
    logits = torch.cat([logits, pooled.masked_fill(~left_out, -torch.inf)], -1)
    values = torch.cat([v, summaries.values.to(q.dtype)], 2)
    return torch.softmax(logits, -1).nan_to_num(0).to(q.dtype) @ values, torch.logsumexp(logits, -1)


def check(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, video: range) -> None:
    summaries = summarise(k, v, mask, video)
    out, lse, kept_lse = run(q, k, v, mask, summaries)
    truth, truth_lse = with_summaries(q.double(), k.double(), v.double(), mask, summaries)
    plain, plain_lse = with_summaries(q, k, v, mask, summaries)
    assert out.dtype == q.dtype
    assert out.transpose(1, 2).is_contiguous()
    assert error(out, truth) <= FACTOR * error(plain, truth) + EPSILON
    check_lse(lse, plain_lse, truth_lse)
    truth_kept = reference.block_sparse_attention(q.double(), k.double(), v.double(), mask, None)[1]
    check_lse(kept_lse, reference.block_sparse_attention(q, k, v, mask, None)[1], truth_kept)


def check_lse(lse: Tensor, plain: Tensor, truth: Tensor) -> None:
    assert lse.dtype == torch.float32
    assert torch.equal(lse == -torch.inf, truth == -torch.inf)
    seen = truth != -torch.inf
    rounding = EPSILON * max(1.0, float(truth[seen].abs().max())) if seen.any() else 0.0
    assert error(lse[seen], truth[seen]) <= FACTOR * error(plain[seen], truth[seen]) + rounding


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("tokens", [1, 63, 128, 300])
def test_means_of_blocks(device: torch.device, block: int, tokens: int) -> None:
    _, k, v = tensors(device, dtypes()[1], lengths=(1, tokens), head_dim=64, batch=2)
    for means, x in zip(block_means(k, v, block), (k, v), strict=True):
        truth = torch.stack([part.double().mean(2) for part in x.split(block, 2)], 2)
        assert means.is_contiguous()
        torch.testing.assert_close(means.double(), truth, rtol=2**-11, atol=1e-6)


@pytest.mark.parametrize("key_blocks", [1, 31, 32, 127, 128, 129, 500])
@pytest.mark.parametrize("index_dtype", [torch.int16, torch.int32], ids=str)
def test_words_close_what_is_kept_and_what_is_no_video(
    device: torch.device, key_blocks: int, index_dtype: torch.dtype
) -> None:
    random = torch.Generator().manual_seed(key_blocks)
    kept = torch.rand(2, 5, key_blocks, generator=random) < 0.3
    kept[0, 0] = False
    mask = BlockMask.from_bool(kept, (64, 64)).to(device)
    video = range(key_blocks // 3, key_blocks - key_blocks // 5)
    words = closed_words(mask.counts, mask.indices.to(index_dtype), key_blocks, video)
    assert words.shape == (2, 5, 4 * ceil_div(key_blocks, 128))
    bits = (words[..., None].cpu() >> torch.arange(32)) & 1
    closed = torch.ones(2, 5, words.shape[-1] * 32, dtype=torch.bool)
    closed[..., video.start : video.stop] = kept[..., video.start : video.stop]
    listed = mask.counts.cpu() < key_blocks
    assert torch.equal(bits.flatten(-2).bool()[listed], closed[listed])


@pytest.mark.parametrize("dtype", dtypes(), ids=str)
@pytest.mark.parametrize("head_dim", adaspa_kernels.HEAD_DIMS)
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("text", ["none", "first", "last"])
def test_agrees_with_float64(device: torch.device, dtype: torch.dtype, head_dim: int, block: int, text: str) -> None:
    """With text first, or none, the last summary is one of a ragged block."""
    q, k, v = tensors(device, dtype, lengths=(300, 5 * block + 37), head_dim=head_dim)
    mask = random_mask(q, k, block)
    check(q, k, v, mask, {"none": range(6), "first": range(1, 6), "last": range(4)}[text])


@pytest.mark.parametrize(("blocks", "head_dim"), [(127, 64), (128, 128), (129, 64), (260, 128)])
def test_more_summaries_than_a_tile_holds(device: torch.device, blocks: int, head_dim: int) -> None:
    q, k, v = tensors(device, dtypes()[0], lengths=(200, blocks * 64 - 5), head_dim=head_dim, heads=1)
    kept = torch.rand(1, 4, blocks, generator=torch.Generator().manual_seed(0)) < 0.05
    kept[0, 1] = blocks < 260  # a full row takes longer than all others
    kept[0, 2] = False
    kept[0, 2, 3] = True
    mask = BlockMask.from_bool(kept, (64, 64)).to(device)
    check(q, k, v, mask, range(blocks))
    check(q, k, v, mask, range(3, blocks - 2))


def test_rows_that_keep_nothing_see_summaries_alone(device: torch.device) -> None:
    q, k, v = tensors(device, dtypes()[0], lengths=(200, 500), head_dim=64)
    mask = BlockMask.from_bool(torch.zeros(2, 4, 8, dtype=torch.bool), (64, 64)).to(device)
    check(q, k, v, mask, range(8))
    out, lse, kept_lse = run(q, k, v, mask, summarise(k, v, mask, range(4, 4)))
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    assert (kept_lse == -torch.inf).all()


def test_full_rows_are_as_they_are_without_summaries(device: torch.device) -> None:
    q, k, v = tensors(device, dtypes()[0], lengths=(130, 200), head_dim=128)
    mask = BlockMask.full(2, 3, 4, (64, 64), device)
    out, lse, kept_lse = run(q, k, v, mask, summarise(k, v, mask, range(4)))
    torch.testing.assert_close((out, lse), run(q, k, v, mask, None), rtol=1e-5, atol=1e-5)
    assert torch.equal(lse, kept_lse)


@pytest.mark.parametrize("mask_batch", [None, 1, 2])
def test_a_mask_is_shared_by_the_batch_or_its_own(device: torch.device, mask_batch: int | None) -> None:
    q, k, v = tensors(device, dtypes()[0], lengths=(130, 330), head_dim=64, batch=2)
    check(q, k, v, random_mask(q, k, 64, batch=mask_batch), range(5))


@pytest.mark.parametrize("head_dim", adaspa_kernels.HEAD_DIMS)
def test_summaries_far_above_the_kept_keys(device: torch.device, head_dim: int) -> None:
    """The Hopper kernel's fixed reference is that of the list: such rows are computed again."""
    q, k, v = tensors(device, dtypes()[0], lengths=(130, 500), head_dim=head_dim)
    q[..., 0], k[..., 0] = 8, 0
    k[:, :, :64, 0] = 20 * math.sqrt(head_dim)
    kept = torch.ones(2, 3, 8, dtype=torch.bool)
    kept[:, 1:, 0] = False
    check(q, k, v, BlockMask.from_bool(kept, (64, 64)).to(device), range(8))


def test_summaries_of_another_mask_are_refused(device: torch.device) -> None:
    q, k, v = tensors(device, dtypes()[0], lengths=(130, 200), head_dim=64)
    mask = random_mask(q, k, 64)
    other = random_mask(q[:, :, :64], k, 64)
    with pytest.raises(ValueError, match="are not those of keys"):
        run(q, k, v, mask, summarise(k, v, other, range(4)))
    with pytest.raises(ValueError, match="video must be some of the 4 key blocks"):
        summarise(k, v, mask, range(5))


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    q, k, v = tensors(device, dtypes()[0], lengths=(130, 200), head_dim=64)
    mask = random_mask(q, k, 64)
    counts, indices, sizes = mask.counts, mask.indices, {"block_size": (64, 64), "video": range(4)}
    with pytest.raises(ValueError, match="k and v must have one shape"):
        adaspa_kernels.summarise(k, v[:, :, :64], counts, indices, **sizes)
    with pytest.raises(ValueError, match="counts must be int32"):
        adaspa_kernels.summarise(k, v, counts.long(), indices, **sizes)
    with pytest.raises(ValueError, match="disagree in shape"):
        adaspa_kernels.summarise(k, v, counts, indices[:, :1], **sizes)
    summaries = summarise(k, v, mask, range(4))
    strided = torch.stack([summaries.values] * 2, -1)[..., 0]
    for name, part, message in (
        ("values", summaries.values[:, :, :1], "are not those of keys"),
        ("values", strided, "values of summaries must be contiguous"),
        ("keys", strided, "keys of summaries must be contiguous"),
        ("words", summaries.words.long(), "words of summaries must be contiguous torch.int32"),
    ):
        with pytest.raises(ValueError, match=message):
            run(q, k, v, mask, replace(summaries, **{name: part}))


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", adaspa_kernels.HEAD_DIMS)
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("length", [8192, 8229])
def test_long_sequences(device: torch.device, head_dim: int, block: int, length: int) -> None:
    q, k, v = tensors(device, torch.bfloat16, lengths=(length, length), head_dim=head_dim, heads=3)
    kept = torch.rand(3, ceil_div(length, block), ceil_div(length, block), device=device) < 0.1
    check(q, k, v, BlockMask.from_bool(kept, (block, block)), range(kept.shape[-1]))
    check(q, k, v, BlockMask.from_bool(kept, (block, block)), range(kept.shape[-1] - 2))
