"""The affine map of the probe repair against the PyTorch formula in float64; bounds as in test_block_sparse.py."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import adaspa_kernels
from tests.kernels.conftest import dtypes
from tests.kernels.test_block_sparse import EPSILON, FACTOR, error

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("dtype", dtypes(), ids=str)
@pytest.mark.parametrize("head_dim", adaspa_kernels.HEAD_DIMS)
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("mask_batch", [None, 2])
def test_rows_of_video_that_leave_something_out_are_moved(
    device: torch.device, dtype: torch.dtype, head_dim: int, block: int, mask_batch: int | None
) -> None:
    random = torch.Generator().manual_seed(head_dim)
    x = torch.randn(2, 333, 3, head_dim, generator=random).to(device, dtype).transpose(1, 2)
    mean, factor, intercept = (torch.randn(2, 3, 1, head_dim, generator=random).to(device) for _ in range(3))
    weight = torch.randn(2, 3, head_dim, head_dim, generator=random).to(device) / head_dim**0.5
    shape = (3, -(-333 // block)) if mask_batch is None else (mask_batch, 3, -(-333 // block))
    counts = torch.randint(8, 11, shape, dtype=torch.int32, generator=random).to(device)
    out = adaspa_kernels.add_affine(
        x, mean, factor, weight, intercept, counts, key_blocks=10, block=block, video=range(5, 301)
    )
    assert out.stride() == x.stride()
    assert out.dtype == dtype
    token = torch.arange(333, device=device)
    moved = (counts < 10).repeat_interleave(block, -1)[..., :333] & (token >= 5) & (token < 301)
    moved = moved.expand(2, 3, 333)
    assert torch.equal(out[~moved], x[~moved])
    wide = x.double()
    truth = wide + ((wide - mean) * factor) @ weight.double() + intercept
    features = ((x.float() - mean) * factor).to(dtype)
    plain = x + ((features @ weight.to(dtype)).float() + intercept).to(dtype)
    assert error(out[moved], truth[moved]) <= FACTOR * error(plain[moved], truth[moved]) + EPSILON


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    x = torch.zeros(1, 2, 100, 64, dtype=torch.float16, device=device)
    row, weight = torch.zeros(1, 2, 1, 64, device=device), torch.zeros(1, 2, 64, 64, device=device)
    counts = torch.zeros(2, 2, dtype=torch.int32, device=device)
    sizes = {"key_blocks": 2, "block": 64, "video": range(100)}
    with pytest.raises(ValueError, match="weight must be float32"):
        adaspa_kernels.add_affine(x, row, row, weight[:, :, :1], row, counts, **sizes)
    with pytest.raises(ValueError, match="counts do not fit"):
        adaspa_kernels.add_affine(x, row, row, weight, row, counts[:, :1], **sizes)
    with pytest.raises(ValueError, match="counts do not fit"):
        adaspa_kernels.add_affine(x, row, row, weight, row, counts.expand(3, 2, 2), **sizes)
    with pytest.raises(ValueError, match="no gaps"):
        adaspa_kernels.add_affine(x[:, :, ::2], row, row, weight, row, counts[:, :1], **sizes)
