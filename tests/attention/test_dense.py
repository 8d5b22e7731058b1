"""The dense kernel is chosen by measurement: the fastest that is right, once, and what was left out says why."""

import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import dense, reference, split_keys
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.dense import candidates


def exact(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    blocks = BlockMask.full(q.shape[1], 1, 1, (q.shape[2], k.shape[2]), q.device)
    out, lse = reference.block_sparse_attention(q.float(), k.float(), v.float(), blocks, scale)
    return out.to(q.dtype), lse


def wrong_output(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = exact(q, k, v, scale)
    return out * 1.1, lse


def wrong_lse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = exact(q, k, v, scale)
    return out, lse + 1


def not_a_number(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = exact(q, k, v, scale)
    return out * torch.nan, lse


def refuses(*_: object) -> tuple[Tensor, Tensor]:
    raise RuntimeError("no kernel for this GPU\nsecond line")


QKV = tuple(torch.randn(1, 2, 256, 64, generator=torch.Generator().manual_seed(0)).half() for _ in range(3))


def times(*milliseconds: float) -> Callable[[object], float]:
    """A clock that says what it is told."""
    said = iter(milliseconds)
    return lambda _launch: next(said)


def test_the_fastest_right_kernel_is_chosen(caplog: pytest.LogCaptureFixture) -> None:
    kernels = {
        "slow": exact, "fast": exact, "efficient": exact,
        "wrong": wrong_output, "wrong LSE": wrong_lse, "NaN": not_a_number, "refuses": refuses,
    }  # fmt: skip
    with caplog.at_level(logging.INFO, logger="adaspa_cli"):
        choice = dense.fastest(kernels, *QKV, times(3.0, 1.0, 2.0))
    assert choice.kernel == "fast"  # though the first one is right too
    assert choice.probe == (1, 2, 256, 64)
    assert choice.milliseconds == {"slow": 3.0, "fast": 1.0, "efficient": 2.0}
    assert choice.problems == {
        "wrong": "wrong result", "wrong LSE": "wrong result", "NaN": "wrong result",
        "refuses": "RuntimeError: no kernel for this GPU",
    }  # fmt: skip
    (record,) = caplog.records
    assert "dense attention by fast" in record.getMessage()


def test_of_nearly_equal_times_the_order_decides() -> None:
    kernels = {"first": exact, "second": exact, "efficient": exact}
    assert dense.fastest(kernels, *QKV, times(1.02, 1.0, 0.995)).kernel == "first"


def test_running_out_of_memory_says_nothing_of_a_kernel() -> None:
    def fails(*_: object) -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError("too large")

    with pytest.raises(torch.OutOfMemoryError):
        dense.fastest({"large": fails, "efficient": exact}, *QKV, times(1.0))


def test_without_another_right_kernel_the_reference_one_runs() -> None:
    choice = dense.fastest({"refuses": refuses, "efficient": exact}, *QKV, times(1.0))
    assert (choice.kernel, choice.milliseconds) == ("efficient", {"efficient": 1.0})


def test_a_flash_attn_that_cannot_be_imported_is_a_problem_and_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Such as version 2, built for another torch."""
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise ImportError('undefined symbol')\n")
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    candidates.cache_clear()
    kernels = {"flash-attn-4": candidates(64)["flash-attn-4"], "efficient": exact}
    candidates.cache_clear()
    choice = dense.fastest(kernels, *QKV, times(1.0))
    assert choice.kernel == "efficient"
    assert choice.problems == {"flash-attn-4": "ImportError: undefined symbol"}


def test_our_own_kernel_keeps_every_block(device: torch.device) -> None:
    """Also in Triton's interpreter; a ragged last block, and more keys than queries."""
    pytest.importorskip("triton", reason="triton is not installed")
    own = candidates(64)["adaspa"]
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(1, n, 2, 64, device=device, dtype=torch.half, generator=generator).transpose(1, 2)
        for n in (130, 300, 300)
    )

    def cut(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return own(q, k[:, :, :256], v[:, :, :256], scale)

    choice = dense.fastest({"adaspa": own, "cut": cut, "efficient": exact}, q, k, v, times(1.0, 2.0))
    assert choice.kernel == "adaspa"
    assert choice.problems == {"cut": "wrong result"}


@pytest.mark.parametrize(("right", "taken"), [(True, "split"), (False, "efficient")], ids=["right", "wrong"])
def test_keys_are_split_only_where_our_kernel_is_right(
    monkeypatch: pytest.MonkeyPatch, right: bool, taken: str
) -> None:
    milliseconds = {"adaspa": 1.0} if right else {}
    choice = dense.Choice("efficient", (1, 1, 8, 64), milliseconds | {"efficient": 0.5})
    monkeypatch.setattr(dense, "choose", lambda *_: choice)
    monkeypatch.setattr(dense, "candidates", lambda _: {"adaspa": refuses, "efficient": lambda *_: "efficient"})
    monkeypatch.setattr(split_keys, "parts_of", lambda *_: 3)
    monkeypatch.setattr(split_keys, "split_attention", lambda *_: "split")
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    x = torch.zeros(1, 1, 8, 64, dtype=torch.half, device="meta")
    assert dense.dense_attention(x, x, x, 0.1) == taken


def test_nothing_is_chosen_on_a_cpu_or_in_float32() -> None:
    x = torch.zeros(1, 1, 8, 64)
    assert dense.describe(x, x) is None
    assert dense.describe(x.to("meta"), x.to("meta")) is None


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("lengths", [(1, 1), (517, 1000), (4096, 4096)], ids=str)
def test_every_kernel_there_agrees(device: torch.device, head_dim: int, lengths: tuple[int, int]) -> None:
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(2, n, 3, head_dim, device=device, dtype=torch.bfloat16, generator=generator).transpose(1, 2)
        for n in (lengths[0], lengths[1], lengths[1])
    )
    truth, true_lse = exact(q, k, v, 0.1)
    described = dense.describe(q, k)
    assert described is not None
    assert "adaspa" in described["milliseconds"]
    for name in described["milliseconds"]:
        out, lse = dense.candidates(head_dim)[name](q, k, v, 0.1)
        assert (out.float() - truth.float()).norm() <= dense.OUTPUT_ERROR * truth.float().norm(), name
        assert (lse - true_lse).abs().max() <= dense.LSE_ERROR, name
    out, lse = dense.dense_attention(q, k, v, 0.1)
    assert lse.shape == q.shape[:3]
    assert out.shape == q.shape
    assert described["kernel"] in described["milliseconds"]
