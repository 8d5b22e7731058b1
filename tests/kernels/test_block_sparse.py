"""The sparse kernels against the float64 reference: on a GPU where there is one, otherwise in Triton's interpreter.

Each test runs for the portable and for the Hopper kernel. The bound is never a guess: the kernel may err at most
``FACTOR`` times as much as the plain PyTorch formula in the same dtype does, plus a float32 rounding of the size of the
values.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import reference
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.layout import ceil_div

pytest.importorskip("triton", reason="triton is not installed")

import adaspa_kernels
from adaspa_kernels.launch import uses_tma
from tests.kernels.conftest import dtypes

pytestmark = pytest.mark.usefixtures("kernel_path", "poisoned_memory")

FACTOR, EPSILON = 2.0, 4e-6  # the sums of a few hundred float32 terms near one


def tensors(
    device: torch.device, dtype: torch.dtype, *, lengths: tuple[int, int], head_dim: int, batch: int = 1, heads: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as [B, H, L, D] views of [B, L, H, D]; q is large, so that attention is far from uniform."""
    random = torch.Generator().manual_seed(sum(lengths) + head_dim)
    q, k, v = (
        torch.randn(batch, length, heads, head_dim, generator=random).to(device, dtype).transpose(1, 2)
        for length in (lengths[0], lengths[1], lengths[1])
    )
    return 2 * q, k, v


def random_mask(q: Tensor, k: Tensor, block: int, *, batch: int | None = None) -> BlockMask:
    """About half of the blocks, with an empty and a full row."""
    shape = (q.shape[1], ceil_div(q.shape[2], block), ceil_div(k.shape[2], block))
    kept = torch.rand(batch or 1, *shape, generator=torch.Generator().manual_seed(1)) < 0.5
    kept[:, 0, 0] = False
    kept[:, -1, -1] = True
    return BlockMask.from_bool(kept if batch else kept[0], (block, block)).to(q.device)


def uneven_mask(q: Tensor, k: Tensor) -> BlockMask:
    """Counts that differ as much as they can between neighbouring rows: none, one, all, odd, even, all but one."""
    rows, columns = ceil_div(q.shape[2], 64), ceil_div(k.shape[2], 64)
    cycle = [0, columns, 1, columns - 1, 3, 2, columns, 5, 0, 0, 4, 1]
    counts = torch.tensor([[cycle[(row + 3 * head) % len(cycle)] for row in range(rows)] for head in range(q.shape[1])])
    order = torch.rand(q.shape[1], rows, columns, generator=torch.Generator().manual_seed(2)).argsort(-1).argsort(-1)
    return BlockMask.from_bool(order < counts[..., None], (64, 64)).to(q.device)


def run(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> tuple[Tensor, Tensor]:
    """Call the kernel, with garbage in the lists of full rows, which must not be read."""
    indices = mask.indices.masked_fill((mask.counts == mask.key_blocks)[..., None], 32_767)
    return adaspa_kernels.block_sparse_attention(
        q, k, v, mask.counts, indices,
        key_blocks=mask.key_blocks, block_size=mask.block_size, scale=q.shape[-1] ** -0.5,
    )  # fmt: skip


def eager(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> tuple[Tensor, Tensor]:
    """The formula as one writes it in PyTorch, every step in the inputs' dtype but the log-sum-exp."""
    kept = mask.to_bool().repeat_interleave(mask.block_size[0], -2).repeat_interleave(mask.block_size[1], -1)
    kept = kept[..., : q.shape[2], : k.shape[2]]
    scores = ((q @ k.mT) * q.shape[-1] ** -0.5).masked_fill(~kept, -torch.inf)
    return torch.softmax(scores, -1).nan_to_num(0) @ v, torch.logsumexp(scores.float(), -1)


def check(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> None:
    out, lse = run(q, k, v, mask)
    truth, truth_lse = reference.block_sparse_attention(q.double(), k.double(), v.double(), mask, None)
    plain, plain_lse = eager(q, k, v, mask)
    assert out.dtype == q.dtype
    assert out.transpose(1, 2).is_contiguous()
    assert lse.dtype == torch.float32
    assert error(out, truth) <= FACTOR * error(plain, truth) + EPSILON
    assert torch.equal(lse == -torch.inf, truth_lse == -torch.inf)
    seen = truth_lse != -torch.inf
    assert error(lse[seen], truth_lse[seen]) <= FACTOR * error(plain_lse[seen], truth_lse[seen]) + EPSILON


def error(result: Tensor, truth: Tensor) -> float:
    difference = (result.double() - truth).abs()
    assert not difference.isnan().any()
    return float(difference.max()) if difference.numel() else 0.0


@pytest.mark.parametrize("dtype", dtypes(), ids=str)
@pytest.mark.parametrize("head_dim", adaspa_kernels.HEAD_DIMS)
@pytest.mark.parametrize("lengths", [(1, 1), (63, 64), (64, 63), (65, 65), (200, 320), (320, 200)], ids=str)
def test_agrees_with_float64(device: torch.device, dtype: torch.dtype, head_dim: int, lengths: tuple[int, int]) -> None:
    q, k, v = tensors(device, dtype, lengths=lengths, head_dim=head_dim)
    check(q, k, v, random_mask(q, k, 64))


@pytest.mark.parametrize("dtype", dtypes(), ids=str)
@pytest.mark.parametrize("head_dim", adaspa_kernels.HEAD_DIMS)
@pytest.mark.parametrize("lengths", [(200, 320), (300, 293)], ids=str)
def test_blocks_of_128(device: torch.device, dtype: torch.dtype, head_dim: int, lengths: tuple[int, int]) -> None:
    """The last block of keys holds 64 of them, and 37."""
    q, k, v = tensors(device, dtype, lengths=lengths, head_dim=head_dim)
    check(q, k, v, random_mask(q, k, 128))


@pytest.mark.parametrize("block", [64, 128])
def test_lists_of_32_bits_and_with_strides(device: torch.device, block: int) -> None:
    """As from 32,768 key blocks on, and as one sample of more masks is."""
    q, k, v = tensors(device, dtypes()[0], lengths=(300, 500), head_dim=64)
    mask = random_mask(q, k, block)
    counts, indices = (torch.stack([x, x], 1)[:, 1] for x in (mask.counts, mask.indices.int()))
    assert not indices.is_contiguous()
    options: dict[str, Any] = {"key_blocks": mask.key_blocks, "block_size": mask.block_size, "scale": 0.125}
    expected = adaspa_kernels.block_sparse_attention(q, k, v, mask.counts, mask.indices, **options)
    found = adaspa_kernels.block_sparse_attention(q, k, v, counts, indices, **options)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("mask_batch", [None, 1, 2])
def test_a_mask_is_shared_by_the_batch_or_its_own(device: torch.device, mask_batch: int | None) -> None:
    q, k, v = tensors(device, dtypes()[0], lengths=(130, 130), head_dim=64, batch=2)
    check(q, k, v, random_mask(q, k, 64, batch=mask_batch))


def test_all_blocks_are_dense_attention(device: torch.device) -> None:
    q, k, v = tensors(device, dtypes()[0], lengths=(130, 200), head_dim=64)
    mask = BlockMask.full(2, 3, 4, (64, 64), device)
    check(q, k, v, mask)
    out, _ = run(q, k, v, mask)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    truth = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert error(out, truth) <= FACTOR * error(dense, truth) + EPSILON


def test_one_block_a_row(device: torch.device) -> None:
    q, k, v = tensors(device, dtypes()[0], lengths=(200, 200), head_dim=64)
    kept = torch.eye(4, dtype=torch.bool).flip(0).expand(2, 4, 4)
    check(q, k, v, BlockMask.from_bool(kept, (64, 64)).to(device))


@pytest.mark.parametrize("head_dim", adaspa_kernels.HEAD_DIMS)
@pytest.mark.parametrize(
    "length", [1, 63, 64, 65, 1000, *(pytest.param(n, marks=pytest.mark.gpu) for n in (4096, 4133))]
)
def test_uneven_neighbours(device: torch.device, length: int, head_dim: int) -> None:
    q, k, v = tensors(device, dtypes()[0], lengths=(length, length), head_dim=head_dim, heads=3)
    check(q, k, v, uneven_mask(q, k))


@pytest.mark.gpu
def test_many_launches_agree_to_the_bit(device: torch.device) -> None:
    """A race between copies and products shows as a rare difference."""
    q, k, v = tensors(device, torch.bfloat16, lengths=(4133, 4133), head_dim=128, heads=3)
    mask = uneven_mask(q, k)
    first, first_lse = run(q, k, v, mask)
    for _ in range(50):
        out, lse = run(q, k, v, mask)
        assert torch.equal(out, first)
        assert torch.equal(lse, first_lse)


def test_empty_rows_give_zeros_and_minus_infinity(device: torch.device) -> None:
    q, k, v = tensors(device, dtypes()[0], lengths=(100, 100), head_dim=64)
    out, lse = run(q, k, v, BlockMask.from_bool(torch.zeros(2, 2, 2, dtype=torch.bool), (64, 64)).to(device))
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter computes with numpy
def test_nan_in_one_key_block_reaches_only_the_rows_that_keep_it(device: torch.device) -> None:
    q, k, v = tensors(device, dtypes()[0], lengths=(128, 128), head_dim=64)
    k[:, :, 64:] = torch.nan
    out, lse = run(q, k, v, BlockMask.from_bool(torch.eye(2, dtype=torch.bool).expand(2, 2, 2), (64, 64)).to(device))
    assert out[:, :, :64].isfinite().all()
    assert lse[:, :, :64].isfinite().all()
    assert out[:, :, 64:].isnan().all()


def test_blocks_that_score_minus_infinity_weigh_nothing_wherever_they_stand(device: torch.device) -> None:
    q, k, v = tensors(device, dtypes()[0], lengths=(128, 384), head_dim=64)
    q[..., 0] = 1
    k[..., 0] = 0
    k[:, :, :128, 0] = k[:, :, -128:, 0] = -torch.inf
    check(q, k, v, BlockMask.full(2, 2, 6, (64, 64), device))


@pytest.mark.parametrize("tail", [64, 37])
def test_memory_that_the_copy_engine_cannot_read_takes_pointers(device: torch.device, tail: int) -> None:
    """A view that starts one element late is not 16-byte aligned."""
    q, k, v = tensors(device, dtypes()[1], lengths=(64, 64 + tail), head_dim=64)
    shifted = []
    for x in (k, v):
        storage = torch.zeros(x.numel() + 1, dtype=x.dtype, device=device)
        shifted.append(storage[1:].view(x.transpose(1, 2).shape).transpose(1, 2).copy_(x))
    assert not uses_tma(*shifted)
    check(q, *shifted, random_mask(q, k, 64))


def test_copy_engine_rule() -> None:
    x = torch.zeros(1, 2, 8, 64)
    assert uses_tma(x, x.transpose(1, 2))
    assert not uses_tma(x, torch.zeros(1, 2, 8, 65)[..., :64])  # rows of 260 bytes
    assert not uses_tma(x.expand(3, 2, 8, 64))  # a stride of 0


def _wrong_arguments(device: torch.device | str = "cpu") -> dict[str, dict[str, Any]]:
    x = torch.zeros(1, 1, 64, 64, device=device)
    return {
        "block_size must be one of": {"block_size": (32, 32)},
        "scale must be positive": {"scale": 0.0},
        "D one of": {"q": torch.zeros(1, 1, 64, 32)},
        "must agree in B, H, D": {"k": torch.zeros(1, 2, 64, 64)},
        "one dtype": {"v": x.double()},
        # Of the kernels' own dtype and device: moving or casting it would close the gaps.
        "last stride of q": {"q": torch.zeros(1, 1, 64, 128, dtype=dtypes()[0], device=device)[..., ::2]},
        "must not be empty": {"q": x[:, :, :0]},
        "one shape": {"v": torch.zeros(1, 1, 65, 64)},
        "counts must be int32": {"counts": torch.ones(1, 1, dtype=torch.int64)},
        "key_blocks is": {"key_blocks": 2},
        "int32 for more than": {"key_blocks": 32_769},
        "H, Nq =": {"counts": torch.ones(2, 1, dtype=torch.int32)},
    }


@pytest.mark.parametrize("message", _wrong_arguments())
def test_wrong_arguments_are_refused(device: torch.device, message: str) -> None:
    x = torch.zeros(1, 1, 64, 64)
    arguments: dict[str, Any] = {
        "q": x, "k": x, "v": x,
        "counts": torch.ones(1, 1, dtype=torch.int32), "indices": torch.zeros(1, 1, 1, dtype=torch.int16),
        "key_blocks": 1, "block_size": (64, 64), "scale": 1.0,
    }  # fmt: skip
    arguments |= _wrong_arguments(device)[message]
    dtype = dtypes()[0]
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            value = value.to(device)
            arguments[name] = value.to(dtype) if value.dtype == torch.float32 else value
    with pytest.raises(ValueError, match=message):
        adaspa_kernels.block_sparse_attention(**arguments)


def _rows(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of some rows q [R, D] over the keys that are seen, bool [L], every step in the inputs' dtype."""
    scores = (q @ k.T * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    return torch.softmax(scores, -1).nan_to_num(0) @ v, torch.logsumexp(scores, -1)


@pytest.mark.gpu
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("head_dim", adaspa_kernels.HEAD_DIMS)
def test_the_length_of_a_video_agrees_in_sampled_rows(device: torch.device, head_dim: int, block: int) -> None:
    """118,800 tokens end in a ragged block, and the keys and values of a head exceed the L2 cache."""
    q, k, v = tensors(device, torch.bfloat16, lengths=(118_800, 118_800), head_dim=head_dim)
    blocks = -(-118_800 // block)
    kept = torch.rand(2, blocks, blocks, device=device, generator=torch.Generator(device).manual_seed(0)) < 0.1
    kept[1] &= torch.rand(blocks, 1, device=device, generator=torch.Generator(device).manual_seed(1)) < 0.5
    kept[:, -3:] = True
    mask = BlockMask.from_bool(kept, (block, block))
    out, lse = run(q, k, v, mask)
    for head in (0, 1):
        for row in (0, 1, blocks // 2, blocks - 4, blocks - 2, blocks - 1):
            tokens = slice(row * block, (row + 1) * block)
            seen = kept[head, row].repeat_interleave(block)[:118_800]
            rows = (x[0, head] for x in (q[:, :, tokens], k, v))
            truth, true_lse = _rows(*(x.double() for x in rows), seen)
            plain, _ = _rows(q[0, head, tokens], k[0, head], v[0, head], seen)
            assert error(out[0, head, tokens], truth) <= FACTOR * error(plain, truth) + EPSILON
            assert torch.equal(lse[0, head, tokens] == -torch.inf, true_lse == -torch.inf)
            assert error(lse[0, head, tokens].nan_to_num(neginf=0), true_lse.nan_to_num(neginf=0)) <= 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", adaspa_kernels.HEAD_DIMS)
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("length", [4096, 4133])
def test_long_sequences(device: torch.device, dtype: torch.dtype, head_dim: int, block: int, length: int) -> None:
    q, k, v = tensors(device, dtype, lengths=(length, length), head_dim=head_dim, heads=3)
    check(q, k, v, random_mask(q, k, block))
