"""The dense kernel is chosen by measurement: the fastest that is right, once, and what was left out says why."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import dense, reference
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.dense import candidates

CPU = torch.device("cpu")


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


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Kernels for the CPU with times that were made up; the list says what was timed."""
    kernels = {
        "slow": exact, "fast": exact, "middle": exact,
        "wrong": wrong_output, "wrong LSE": wrong_lse, "NaN": not_a_number, "refuses": refuses,
    }  # fmt: skip
    timed: list[str] = []
    order = iter(["slow", "fast", "middle"])
    times = {"slow": 3.0, "fast": 1.0, "middle": 2.0}

    def milliseconds(_: object) -> float:
        timed.append(next(order))
        return times[timed[-1]]

    monkeypatch.setattr(dense, "candidates", lambda _: kernels)
    monkeypatch.setattr(dense, "_milliseconds", milliseconds)
    monkeypatch.setattr(dense, "_efficient", exact)
    dense.choose.cache_clear()
    yield timed
    dense.choose.cache_clear()


def test_the_fastest_right_kernel_is_chosen_once(measured: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="adaspa_cli"):
        choice = dense.choose(CPU, torch.float16, 64, 256)
        assert dense.choose(CPU, torch.float16, 64, 256) is choice
    assert choice.kernel == "fast"  # though the first one is right too
    assert choice.milliseconds == {"slow": 3.0, "fast": 1.0, "middle": 2.0}
    assert measured == ["slow", "fast", "middle"]
    assert choice.problems == {
        "wrong": "wrong result", "wrong LSE": "wrong result", "NaN": "wrong result",
        "refuses": "RuntimeError: no kernel for this GPU",
    }  # fmt: skip
    (record,) = caplog.records
    assert "dense attention by fast" in record.getMessage()


def test_of_nearly_equal_times_the_order_decides(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "candidates", lambda _: {"first": exact, "second": exact, "third": exact})
    times = iter([1.02, 1.0, 0.995])
    monkeypatch.setattr(dense, "_milliseconds", lambda _: next(times))
    assert dense.choose(CPU, torch.float16, 64, 512).kernel == "first"
    assert not measured


def test_running_out_of_memory_is_not_remembered(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(dense, "candidates", lambda _: {"large": fails})
    with pytest.raises(torch.OutOfMemoryError):
        dense.choose(CPU, torch.float16, 64, 640)
    monkeypatch.setattr(dense, "candidates", lambda _: {"slow": exact})
    assert dense.choose(CPU, torch.float16, 64, 640).kernel == "slow"
    assert measured == ["slow"]


def test_without_a_right_kernel_the_reference_one_runs(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "candidates", lambda _: {"refuses": refuses})
    choice = dense.choose(CPU, torch.float16, 64, 128)
    assert choice.kernel == "efficient"
    assert not choice.milliseconds
    assert not measured


def test_a_flash_attn_that_cannot_be_imported_is_a_problem_and_no_error(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Such as version 2, built for another torch."""
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise ImportError('undefined symbol')\n")
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    found = {name: kernel for name, kernel in candidates(64).items() if name == "flash-attn-4"}
    monkeypatch.setattr(dense, "candidates", lambda _: {"slow": exact} | found)
    choice = dense.choose(CPU, torch.float16, 64, 128)
    assert choice.kernel == "slow"
    assert measured == ["slow"]
    assert choice.problems == {"flash-attn-4": "ImportError: undefined symbol"}


def test_our_own_kernel_keeps_every_block(device: torch.device) -> None:
    """Also in Triton's interpreter; a ragged last block, and more keys than queries."""
    pytest.importorskip("triton", reason="triton is not installed")
    q, k, v = (torch.randn(1, n, 2, 64, device=device, dtype=torch.half).transpose(1, 2) for n in (130, 300, 300))
    truth = exact(q, k, v, 0.1)
    assert dense._agrees(dense._own(q, k, v, 0.1), truth)
    assert not dense._agrees(dense._own(q, k[:, :, :256], v[:, :, :256], 0.1), truth)


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
    choice = dense._choice(q, k)
    assert "adaspa" in choice.milliseconds
    for name in choice.milliseconds:
        out, lse = dense.candidates(head_dim)[name](q, k, v, 0.1)
        assert (out.float() - truth.float()).norm() <= dense.OUTPUT_ERROR * truth.float().norm(), name
        assert (lse - true_lse).abs().max() <= dense.LSE_ERROR, name
    out, lse = dense.dense_attention(q, k, v, 0.1)
    assert lse.shape == q.shape[:3]
    assert out.shape == q.shape
    described = dense.describe(q, k)
    assert described is not None
    assert described["kernel"] == choice.kernel
