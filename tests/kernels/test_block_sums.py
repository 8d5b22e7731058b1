"""Block sums against the float64 reference: on a GPU where there is one, otherwise in Triton's interpreter.

Each test runs for the portable and for the Hopper kernel. Rule: at most ``FACTOR`` times the error of the plain PyTorch
formula on the same inputs raised to float32, plus ``EPSILON`` of the largest sum, a block's rows: products of 16-bit
numbers are exact in float32, but tensor cores add them in an order and precision of their own.
"""

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import reference
from adaspa_cli.attention.layout import ceil_div

pytest.importorskip("triton", reason="triton is not installed")

import adaspa_kernels
from tests.kernels.conftest import dtypes

pytestmark = pytest.mark.usefixtures("kernel_path", "poisoned_memory")

FACTOR, EPSILON = 2.0, 2e-6


def tensors(
    device: torch.device, dtype: torch.dtype, *, lengths: tuple[int, int], head_dim: int, batch: int = 1, heads: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """q and k as [B, H, L, D] views of [B, L, H, D], and their LSE."""
    random = torch.Generator().manual_seed(sum(lengths) + head_dim)
    q, k = (
        torch.randn(batch, length, heads, head_dim, generator=random).to(device, dtype).transpose(1, 2)
        for length in lengths
    )
    q = 2 * q
    return q, k, torch.logsumexp(reference.scores(q.double(), k.double(), None), -1).float()


def run(q: Tensor, k: Tensor, lse: Tensor, block: int, row_stride: int = 1) -> Tensor:
    return adaspa_kernels.block_sums(
        q, k, lse, block_size=(block, block), scale=q.shape[-1] ** -0.5, row_stride=row_stride
    )


def check(q: Tensor, k: Tensor, lse: Tensor, block: int, row_stride: int = 1) -> None:
    sums = run(q, k, lse, block, row_stride)
    truth = reference.block_sums(q.double(), k.double(), lse, (block, block), None, row_stride)
    eager = reference.block_sums(q.float(), k.float(), lse, (block, block), None, row_stride)
    assert sums.dtype == torch.float32
    assert sums.is_contiguous()
    assert sums.shape == truth.shape
    assert (sums - truth).abs().max() <= FACTOR * (eager - truth).abs().max() + EPSILON * block


@pytest.mark.parametrize("dtype", dtypes(), ids=str)
@pytest.mark.parametrize("head_dim", adaspa_kernels.HEAD_DIMS)
@pytest.mark.parametrize("lengths", [(1, 1), (63, 64), (64, 63), (65, 65), (200, 320), (320, 200)], ids=str)
def test_agrees_with_float64(device: torch.device, dtype: torch.dtype, head_dim: int, lengths: tuple[int, int]) -> None:
    check(*tensors(device, dtype, lengths=lengths, head_dim=head_dim), 64)


@pytest.mark.parametrize("dtype", dtypes(), ids=str)
def test_blocks_of_128(device: torch.device, dtype: torch.dtype) -> None:
    check(*tensors(device, dtype, lengths=(200, 320), head_dim=64, batch=2), 128)


@pytest.mark.parametrize("block", [64, 128])
def test_a_row_of_blocks_weighs_as_much_as_it_has_queries(device: torch.device, block: int) -> None:
    length = 200
    q, k, lse = tensors(device, dtypes()[0], lengths=(length, length), head_dim=64)
    sums = run(q, k, lse, block)
    rows = torch.full((ceil_div(length, block),), float(block))
    rows[-1] = length % block or block
    torch.testing.assert_close(sums.sum(-1).cpu(), rows.expand(1, 2, -1), rtol=2e-5, atol=0)


ROW_STRIDES = [stride for stride in adaspa_kernels.ROW_STRIDES if stride > 1]


@pytest.mark.parametrize("head_dim", adaspa_kernels.HEAD_DIMS)
@pytest.mark.parametrize("lengths", [(1, 65), (64, 64), (200, 320), (64 * 7 + 17, 200)], ids=str)
@pytest.mark.parametrize("row_stride", ROW_STRIDES)
def test_some_rows_stand_for_all(
    device: torch.device, row_stride: int, lengths: tuple[int, int], head_dim: int
) -> None:
    check(*tensors(device, dtypes()[0], lengths=lengths, head_dim=head_dim), 64, row_stride)


@pytest.mark.parametrize("row_stride", ROW_STRIDES)
def test_some_rows_of_blocks_of_128_stand_for_all(device: torch.device, row_stride: int) -> None:
    check(*tensors(device, dtypes()[1], lengths=(300, 200), head_dim=64, batch=2), 128, row_stride)


@pytest.mark.parametrize("row_stride", ROW_STRIDES)
def test_only_every_nth_row_is_read(device: torch.device, row_stride: int) -> None:
    """And the mass of each row of blocks is exact all the same, that of the ragged one too."""
    q, k, lse = tensors(device, dtypes()[0], lengths=(64 * 9 + 23, 130), head_dim=64)
    left_out = torch.arange(q.shape[2]) % row_stride > 0
    q[:, :, left_out], lse[:, :, left_out] = torch.nan, torch.nan
    rows = torch.tensor([64.0] * 9 + [23.0])
    sums = run(q, k, lse, 64, row_stride)
    torch.testing.assert_close(sums.sum(-1).cpu(), rows.expand(1, 2, -1), rtol=2e-5, atol=0)


@pytest.mark.parametrize("row_stride", [0, 3, 32])
def test_other_row_strides_are_refused(device: torch.device, row_stride: int) -> None:
    with pytest.raises(ValueError, match="row_stride must be one of"):
        run(*tensors(device, dtypes()[0], lengths=(64, 64), head_dim=64), 64, row_stride)


def test_rows_without_keys_weigh_nothing(device: torch.device) -> None:
    q, k, lse = tensors(device, dtypes()[0], lengths=(150, 150), head_dim=64)
    lse[:, 0, :64] = -torch.inf
    sums = run(q, k, lse, 64)
    assert (sums[:, 0, 0] == 0).all()
    assert sums.isfinite().all()
    check(q, k, torch.where(lse == -torch.inf, torch.inf, lse), 64)


def test_an_older_lse_with_strides(device: torch.device) -> None:
    """The LSE-cached search: the mass is no longer one; and the cache may be a view."""
    q, k, lse = tensors(device, dtypes()[0], lengths=(130, 130), head_dim=64)
    cached = (lse + 0.1).transpose(1, 2).contiguous().transpose(1, 2)
    assert not cached.is_contiguous()
    check(q, k, cached, 64)


def test_memory_that_the_copy_engine_cannot_read_takes_pointers(device: torch.device) -> None:
    q, k, lse = tensors(device, dtypes()[1], lengths=(64, 201), head_dim=64)
    storage = torch.zeros(k.numel() + 1, dtype=k.dtype, device=device)
    shifted = storage[1:].view(k.transpose(1, 2).shape).transpose(1, 2).copy_(k)
    check(q, shifted, lse, 64)


def test_equal_runs_are_equal_to_the_bit(device: torch.device) -> None:
    q, k, lse = tensors(device, dtypes()[0], lengths=(200, 200), head_dim=64)
    assert torch.equal(run(q, k, lse, 64), run(q, k, lse, 64))


def test_a_wrong_lse_is_refused(device: torch.device) -> None:
    q, k, lse = tensors(device, dtypes()[0], lengths=(64, 64), head_dim=64)
    with pytest.raises(ValueError, match="lse must be float32"):
        run(q, k, lse[:, :, 1:], 64)
    with pytest.raises(ValueError, match="lse must be float32"):
        run(q, k, lse.double(), 64)


@pytest.mark.parametrize("tokens", [128 * 16, 128 * 16 + 1, 128 * 17, 128 * 32 - 64])
def test_ends_of_the_groups_of_tiles(device: torch.device, tokens: int) -> None:
    """The Hopper kernel writes the sums of 16 tiles at a time."""
    check(*tensors(device, dtypes()[0], lengths=(200, tokens), head_dim=128), 64)


@pytest.mark.parametrize("row_stride", [2, 8])
@pytest.mark.parametrize("tokens", [128 * 8, 128 * 8 + 1, 128 * 17])
def test_ends_of_the_groups_of_tiles_with_a_row_stride(device: torch.device, tokens: int, row_stride: int) -> None:
    """From a row stride of 8 on, the sums of 8 tiles."""
    check(*tensors(device, dtypes()[0], lengths=(400, tokens), head_dim=64), 64, row_stride)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", adaspa_kernels.HEAD_DIMS)
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("length", [4096, 4133])
def test_long_sequences(device: torch.device, head_dim: int, block: int, length: int) -> None:
    x = tensors(device, torch.bfloat16, lengths=(length, length), head_dim=head_dim, heads=3)
    check(*x, block)
    check(*x, block, 8)
