"""The operators: wrong arguments are refused, and results agree with a dense softmax in float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import (
    BlockMask,
    attention_with_block_sums,
    block_sparse_attention,
    block_sums,
    check_kernel,
    dense_attention,
    resolve,
)
from adaspa_cli.attention.backends import Backend
from adaspa_cli.errors import BackendError

HEAD_DIM, BLOCK = 64, 64  # a shape that every backend has a kernel for


def tensors(device: torch.device, *, batch: int = 2, heads: int = 3, tokens: int = 150) -> tuple[Tensor, ...]:
    """q, k, v [B, H, L, D]; 150 tokens leave the third block of 64 ragged. Large q: attention far from uniform."""
    random = torch.Generator().manual_seed(0)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    q, k, v = (torch.randn(batch, heads, tokens, HEAD_DIM, generator=random) for _ in range(3))
    return tuple(x.to(device, dtype) for x in (2 * q, k, v))


def truth(q: Tensor, k: Tensor, v: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Output, LSE and weights in float64; ``kept`` [H, Lq, Lk] says which keys a query sees."""
    q, k, v = (x.detach().cpu().double() for x in (q, k, v))
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    if kept is not None:
        logits = logits.masked_fill(~kept, -torch.inf)
    weights = torch.softmax(logits, dim=-1).nan_to_num(0)
    return weights @ v, torch.logsumexp(logits, dim=-1), weights


def tolerances(q: Tensor) -> dict[str, float]:
    """Float32 sums of 150 terms of size 1 err by some 1e-6; float16 stores results to 2**-11 of their size, and the
    weights that enter the last product as well."""
    return {"rtol": 2e-5, "atol": 2e-5} if q.dtype == torch.float32 else {"rtol": 4e-3, "atol": 4e-3}


@pytest.fixture
def place(backend: str, device: torch.device) -> torch.device:
    return device if backend == "triton" else torch.device("cpu")


def random_mask(heads: int = 3, blocks: int = 3) -> Tensor:
    kept = torch.rand(heads, blocks, blocks, generator=torch.Generator().manual_seed(1)) < 0.5
    kept[0, 0] = False  # an empty row
    kept[1, 1] = True  # a full row
    return kept


def per_token(blocks: Tensor, tokens: int) -> Tensor:
    return blocks.repeat_interleave(BLOCK, -1).repeat_interleave(BLOCK, -2)[..., :tokens, :tokens]


def test_dense_attention_agrees_with_float64(backend: str, place: torch.device) -> None:
    q, k, v = tensors(place)
    out, lse = dense_attention(q, k, v, backend=backend)
    expected, expected_lse, _ = truth(q, k, v)
    assert lse.dtype == torch.float32
    torch.testing.assert_close(out.cpu().double(), expected, **tolerances(q))
    torch.testing.assert_close(lse.cpu().double(), expected_lse, **tolerances(q))


def test_sparse_attention_agrees_with_float64(backend: str, place: torch.device) -> None:
    q, k, v = tensors(place)
    blocks = random_mask()
    mask = BlockMask.from_bool(blocks, (BLOCK, BLOCK)).to(place)
    out, lse = block_sparse_attention(q, k, v, mask, return_lse=True, backend=backend)
    expected, expected_lse, _ = truth(q, k, v, per_token(blocks, q.shape[2]))
    torch.testing.assert_close(out.cpu().double(), expected, **tolerances(q))
    torch.testing.assert_close(lse.cpu().double(), expected_lse, **tolerances(q))


def test_a_row_without_blocks_gives_zeros_and_minus_infinity(backend: str, place: torch.device) -> None:
    q, k, v = tensors(place)
    mask = BlockMask.from_bool(random_mask(), (BLOCK, BLOCK)).to(place)
    out, lse = block_sparse_attention(q, k, v, mask, return_lse=True, backend=backend)
    assert torch.equal(out[:, 0, :BLOCK].cpu(), torch.zeros_like(out[:, 0, :BLOCK].cpu()))
    assert (lse[:, 0, :BLOCK] == -torch.inf).all()


def test_a_mask_for_each_row_of_the_batch(backend: str, place: torch.device) -> None:
    q, k, v = tensors(place)
    blocks = torch.stack([random_mask(), ~random_mask()])
    out = block_sparse_attention(q, k, v, BlockMask.from_bool(blocks, (BLOCK, BLOCK)).to(place), backend=backend)
    for row in range(2):
        expected, _, _ = truth(q[row], k[row], v[row], per_token(blocks[row], q.shape[2]))
        torch.testing.assert_close(out[row].cpu().double(), expected, **tolerances(q))


def test_all_blocks_kept_is_dense_attention(backend: str, place: torch.device) -> None:
    q, k, v = tensors(place)
    mask = BlockMask.full(3, 3, 3, (BLOCK, BLOCK), place)
    out = block_sparse_attention(q, k, v, mask, backend=backend)
    assert isinstance(out, Tensor)
    torch.testing.assert_close(out.cpu().double(), truth(q, k, v)[0], **tolerances(q))


def test_block_sums_are_the_summed_weights(backend: str, place: torch.device) -> None:
    q, k, v = tensors(place)
    _, lse, weights = truth(q, k, v)
    sums = block_sums(q, k, lse.float().to(place), BLOCK, backend=backend)
    padded = torch.nn.functional.pad(weights, (0, 42, 0, 42))
    expected = padded.unflatten(-1, (3, BLOCK)).unflatten(-3, (3, BLOCK)).sum((-1, -3))
    # A sum has up to 64 * 64 terms, and errs by their roundings: in float16, 64 rows of 2**-11 each at the worst.
    torch.testing.assert_close(sums.cpu().double(), expected, rtol=tolerances(q)["rtol"], atol=64 * 2e-5)


def test_each_row_of_blocks_sums_to_its_number_of_queries(backend: str, place: torch.device) -> None:
    q, k, v = tensors(place)
    _, _, sums = attention_with_block_sums(q, k, v, BLOCK, backend=backend)
    rows = torch.tensor([64.0, 64.0, 22.0]).expand(2, 3, 3)
    torch.testing.assert_close(sums.sum(-1).cpu(), rows, rtol=tolerances(q)["rtol"], atol=0)


def test_the_fused_search_gives_what_its_parts_give(backend: str, place: torch.device) -> None:
    q, k, v = tensors(place)
    out, lse, sums = attention_with_block_sums(q, k, v, BLOCK, backend=backend)
    dense_out, dense_lse = dense_attention(q, k, v, backend=backend)
    torch.testing.assert_close(out, dense_out, **tolerances(q))
    torch.testing.assert_close(lse, dense_lse, **tolerances(q))
    torch.testing.assert_close(sums, block_sums(q, k, lse, BLOCK, backend=backend), **tolerances(q))


def test_an_old_lse_gives_masses_that_do_not_sum_to_one(backend: str, place: torch.device) -> None:
    q, k, v = tensors(place)
    _, lse, _ = truth(q, k, v)
    older = (lse + math.log(2)).float().to(place)
    halved = block_sums(q, k, older, BLOCK, backend=backend)
    rows = torch.tensor([32.0, 32.0, 11.0]).expand(2, 3, 3)
    torch.testing.assert_close(halved.sum(-1).cpu(), rows, rtol=tolerances(q)["rtol"], atol=0)


def test_the_scale_is_taken(backend: str, place: torch.device) -> None:
    q, k, v = tensors(place)
    # So small a scale weighs all keys alike.
    out, lse = dense_attention(q, k, v, scale=1e-9, backend=backend)
    mean = v.cpu().double().mean(2, keepdim=True).expand(v.shape)
    torch.testing.assert_close(out.cpu().double(), mean, **tolerances(q))
    torch.testing.assert_close(lse.cpu(), torch.full_like(lse.cpu(), math.log(150)), **tolerances(q))


def test_strided_views_give_what_copies_give(backend: str, place: torch.device) -> None:
    q, k, v = tensors(place)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert not views[0].is_contiguous()
    mask = BlockMask.from_bool(random_mask(), (BLOCK, BLOCK)).to(place)
    copies = block_sparse_attention(q, k, v, mask, backend=backend)
    assert isinstance(copies, Tensor)
    torch.testing.assert_close(block_sparse_attention(*views, mask, backend=backend), copies, **tolerances(q))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lse_and_sums_are_float32_whatever_the_inputs_are(
    backend: str, place: torch.device, dtype: torch.dtype
) -> None:
    q, k, v = (x.to(dtype) for x in tensors(place))
    out, lse, sums = attention_with_block_sums(q, k, v, BLOCK, backend=backend)
    mask = BlockMask.full(3, 3, 3, (BLOCK, BLOCK), place)
    sparse_lse = block_sparse_attention(q, k, v, mask, return_lse=True, backend=backend)[1]
    assert out.dtype == dtype
    assert (lse.dtype, sums.dtype, sparse_lse.dtype) == (torch.float32,) * 3


@pytest.mark.parametrize("block_size", [(16, 16), (32, 16), (7, 50)])
def test_backends_without_kernels_take_any_block(block_size: tuple[int, int]) -> None:
    q, k, v = tensors(torch.device("cpu"))
    mask = BlockMask.full(3, -(-150 // block_size[0]), -(-150 // block_size[1]), block_size)
    out = block_sparse_attention(q, k, v, mask, backend="reference")
    assert isinstance(out, Tensor)
    torch.testing.assert_close(out.double(), truth(q, k, v)[0], **tolerances(q))
    sums = block_sums(q, k, truth(q, k, v)[1].float(), block_size, backend="reference")
    assert sums.shape[-2:] == (mask.query_blocks, mask.key_blocks)


def call_sparse(**changed: Any) -> Any:
    q, k, v = tensors(torch.device("cpu"))
    given = {"q": q, "k": k, "v": v, "mask": BlockMask.full(3, 3, 3, (BLOCK, BLOCK))} | changed
    return block_sparse_attention(given["q"], given["k"], given["v"], given["mask"], backend="reference")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": torch.zeros(3, 150, 64)}, "must be"),
        ({"q": torch.zeros(2, 2, 150, 64)}, "agree in B, H, D"),
        ({"q": torch.zeros(2, 3, 150, 32)}, "agree in B, H, D"),
        ({"k": torch.zeros(1, 3, 150, 64)}, "agree in B, H, D"),
        ({"q": torch.zeros(2, 3, 150, 64, dtype=torch.float64)}, "disagree"),
        ({"q": torch.zeros(2, 3, 150, 64, device="meta")}, "disagree"),
        ({"v": torch.zeros(2, 3, 149, 64)}, "v must match k"),
        ({"v": torch.zeros(2, 3, 150, 64, dtype=torch.float64)}, "v must match k"),
        ({"mask": BlockMask.full(2, 3, 3, (64, 64))}, "does not fit"),
        ({"mask": BlockMask.full(3, 2, 3, (64, 64))}, "does not fit"),
        ({"mask": BlockMask.full(3, 3, 2, (64, 64))}, "does not fit"),
        ({"mask": BlockMask.full(3, 3, 3, (32, 64))}, "does not fit"),
        ({"mask": BlockMask.from_bool(torch.ones(3, 3, 3, 3, dtype=torch.bool), (64, 64))}, "batch 3"),
        ({"mask": BlockMask.full(3, 3, 3, (64, 64), "meta")}, "mask is on meta"),
    ],
)
def test_arguments_that_disagree_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call_sparse(**changed)


def test_dense_attention_refuses_arguments_that_disagree() -> None:
    q, k, v = tensors(torch.device("cpu"))
    with pytest.raises(ValueError, match="v must match k"):
        dense_attention(q, k, v[:, :, 1:], backend="reference")
    with pytest.raises(ValueError, match="q does not fit k"):
        dense_attention(q[:, :2], k, v, backend="reference")
    with pytest.raises(ValueError, match="q does not fit k"):
        dense_attention(q.to("meta"), k, v, backend="reference")


@pytest.mark.parametrize(
    "lse", [torch.zeros(2, 3, 149), torch.zeros(2, 3, 150, 1), torch.zeros(2, 3, 150, device="meta")]
)
def test_an_lse_of_another_shape_or_device_is_refused(lse: Tensor) -> None:
    q, k, _ = tensors(torch.device("cpu"))
    with pytest.raises(ValueError, match="lse must be"):
        block_sums(q, k, lse, BLOCK, backend="reference")


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_scale_is_refused(scale: float) -> None:
    q, k, v = tensors(torch.device("cpu"))
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        dense_attention(q, k, v, scale=scale, backend="reference")


@pytest.mark.parametrize("block_size", [0, -1, (64, 0)])
def test_an_impossible_block_size_is_refused(block_size: int | tuple[int, int]) -> None:
    q, k, v = tensors(torch.device("cpu"))
    with pytest.raises(BackendError, match="has no kernel"):
        attention_with_block_sums(q, k, v, block_size, backend="reference")


def backend_with_limits() -> Backend:
    rest = resolve("reference", torch.device("cpu"))
    return Backend("limited", rest.sparse, rest.sums, rest.dense, rest.search, (64,), ((64, 64), (128, 64)))


def test_a_block_size_without_kernel_names_those_with_one() -> None:
    check_kernel(backend_with_limits(), 64, (128, 64))
    with pytest.raises(BackendError, match="block size 16x16 has no kernel in backend 'limited'") as caught:
        check_kernel(backend_with_limits(), 64, (16, 16))
    assert caught.value.hint == "allowed there: 64x64, 128x64"


def test_an_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(BackendError, match="unknown attention backend 'referense'; did you mean 'reference'") as caught:
        resolve("referense", torch.device("cpu"))
    assert "auto, triton, cpu, reference" in str(caught.value.hint)


def test_triton_on_the_cpu_without_its_interpreter_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match=r"attention backend 'triton' cannot run on cpu: .+"):
        resolve("triton", torch.device("cpu"))


def test_the_cpu_backend_on_another_device_is_an_error() -> None:
    with pytest.raises(BackendError, match="attention backend 'cpu' cannot run on cuda"):
        resolve("cpu", torch.device("cuda"))


def test_asking_for_a_backend_gives_that_one(backend: str, place: torch.device) -> None:
    assert resolve(backend, place).name == backend


def test_auto_is_the_cpu_backend_on_the_cpu() -> None:
    pytest.importorskip("adaspa_cli.attention.cpu")
    assert resolve("auto", torch.device("cpu")).name == "cpu"


@pytest.mark.parametrize("row_stride", [2, 16])
def test_block_sums_of_every_nth_row(backend: str, place: torch.device, row_stride: int) -> None:
    """The sum of rows 0, N, .. of a block times its rows over those that were weighed, also of the ragged block."""
    q, k, v = tensors(place)
    _, lse, weights = truth(q, k, v)
    _, _, sums = attention_with_block_sums(q, k, v, BLOCK, row_stride=row_stride, backend=backend)
    per_row = torch.nn.functional.pad(weights, (0, 42)).unflatten(-1, (3, BLOCK)).sum(-1)
    for block, real in enumerate((64, 64, 22)):
        some = per_row[:, :, block * BLOCK : block * BLOCK + real : row_stride]
        torch.testing.assert_close(
            sums[:, :, block].cpu().double(),
            some.sum(-2) * real / some.shape[-2],
            rtol=tolerances(q)["rtol"],
            atol=64 * 2e-5,
        )
    alone = block_sums(q, k, lse.float().to(place), BLOCK, row_stride=row_stride, backend=backend)
    torch.testing.assert_close(alone, sums, **tolerances(q))


@pytest.mark.parametrize(("row_stride", "block"), [(3, 64), (16, 24)])
def test_row_strides_that_no_block_is_made_of_are_refused(row_stride: int, block: int) -> None:
    q, k, v = tensors(torch.device("cpu"))
    with pytest.raises(ValueError, match="row_stride must be one of"):
        attention_with_block_sums(q, k, v, block, row_stride=row_stride, backend="reference")
