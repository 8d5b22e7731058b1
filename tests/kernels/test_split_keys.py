"""Attention of few queries with the keys in parts agrees with float64; bounds as in test_block_sparse.py.

The plain formula has as many parts: the output of each is rounded to the inputs' dtype before they are merged.
"""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from adaspa_cli.attention import dense, split_keys
from adaspa_cli.attention.layout import ceil_div
from tests.kernels.conftest import dtypes
from tests.kernels.test_block_sparse import EPSILON, FACTOR, error, tensors
from tests.kernels.test_summaries import check_lse

pytestmark = pytest.mark.usefixtures("kernel_path", "poisoned_memory")


def in_parts(logits: Tensor, v: Tensor, parts: int) -> Tensor:
    """softmax(logits) v with the keys in parts, of logits float32 [B, H, Lq, Lk]."""
    width = split_keys.BLOCK * ceil_div(ceil_div(v.shape[2], split_keys.BLOCK), parts)
    pieces = list(zip(logits.split(width, 3), v.split(width, 2), strict=True))
    outs = torch.stack([torch.softmax(piece, -1).to(v.dtype) @ values for piece, values in pieces])
    weights = torch.stack([torch.logsumexp(piece, -1) for piece, _ in pieces]).softmax(0)
    return (outs * weights[..., None]).sum(0).to(v.dtype)


@pytest.mark.parametrize("dtype", dtypes(), ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("queries", "keys", "parts"), [(1, 1, 1), (64, 700, 2), (128, 1000, 5), (130, 640, 3)])
def test_agrees_with_float64(
    device: torch.device, dtype: torch.dtype, head_dim: int, queries: int, keys: int, parts: int
) -> None:
    q, k, v = tensors(device, dtype, lengths=(queries, keys), head_dim=head_dim, batch=2)
    scale = head_dim**-0.5
    out, lse = split_keys.split_attention(q, k, v, scale, parts)
    logits = q.double() @ k.double().mT * scale
    truth, true_lse = torch.softmax(logits, -1) @ v.double(), torch.logsumexp(logits, -1)
    rounded = (q.float() @ k.float().mT) * scale
    plain = in_parts(rounded, v, parts)
    assert out.shape == q.shape
    assert out.dtype == dtype
    assert error(out, truth) <= FACTOR * error(plain, truth) + EPSILON
    check_lse(lse, torch.logsumexp(rounded, -1), true_lse)


def test_few_queries_fill_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 heads of one block on 132 multiprocessors: 11 parts. Nothing is split where queries are many or keys few."""
    properties = type("Properties", (), {"multi_processor_count": 132})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    x = torch.empty(1, 24, 119_056, 1)
    assert split_keys.parts_of(x[:, :, :128], x) == 11
    assert split_keys.parts_of(x[:, :, :129], x) == 5
    assert split_keys.parts_of(x, x) == 1
    assert split_keys.parts_of(x[:, :, :128], x[:, :, :2048]) == 2
    assert split_keys.parts_of(x[:, :, :128], x[:, :, :1024]) == 1


@pytest.mark.gpu
def test_dense_attention_of_few_queries_takes_it(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors(device, torch.bfloat16, lengths=(64, 8192), head_dim=128)
    seen = []
    split = split_keys.split_attention
    monkeypatch.setattr(split_keys, "split_attention", lambda *args: seen.append(args[-1]) or split(*args))
    out, lse = dense.dense_attention(q, k, v, 0.1)
    assert seen == [8]
    logits = q.double() @ k.double().mT * 0.1
    assert error(out, torch.softmax(logits, -1) @ v.double()) < 1e-2
    assert (lse - torch.logsumexp(logits, -1)).abs().max() < 1e-3
