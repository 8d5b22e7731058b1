"""Which kernel runs: what was asked for by name, or what ``auto`` prefers, with a word in the log where it cannot."""

import logging
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import adaspa_kernels
from adaspa_kernels import launch


@pytest.fixture(autouse=True)
def _forget_what_was_said() -> None:
    launch._say_fallback.cache_clear()


def sums(device: torch.device, path: str) -> torch.Tensor:
    x = torch.zeros(1, 1, 64, 64, dtype=torch.float16, device=device)
    lse = torch.zeros(1, 1, 64, device=device)
    return adaspa_kernels.block_sums(x, x, lse, block_size=(64, 64), scale=1.0, path=path)


def test_an_unknown_path_is_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="path must be one of"):
        sums(device, "fast")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there may be a Hopper GPU")
def test_the_hopper_path_is_never_replaced_where_it_was_asked_for(device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"capability 9\.0.*use path='portable'"):
        sums(device, "hopper")
    x = torch.zeros(1, 1, 64, 64, dtype=torch.float16, device=device)
    counts, indices = torch.ones(1, 1, dtype=torch.int32), torch.zeros(1, 1, 1, dtype=torch.int16)
    with pytest.raises(ValueError, match="block_sparse_attention cannot run"):
        adaspa_kernels.block_sparse_attention(
            x, x, x, counts, indices, key_blocks=1, block_size=(64, 64), scale=1.0, path="hopper"
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there may be a Hopper GPU")
def test_a_fallback_is_announced_once(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launch, "PREFERRED_PATH", "hopper")
    with caplog.at_level(logging.WARNING, logger="adaspa_kernels"):
        assert torch.equal(sums(device, "auto"), sums(device, "portable"))
        sums(device, "auto")
    (record,) = caplog.records
    assert "block_sums runs the portable Triton kernel" in record.getMessage()


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)
def test_auto_is_hopper_on_hopper(device: torch.device) -> None:
    x = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16, device=device)
    assert launch.choose_path("auto", "block_sums", (64, 64), x) == "hopper"
    assert launch.choose_path("auto", "block_sparse_attention", (128, 128), x, x, x) == "hopper"


def test_a_kernel_runs_on_the_gpu_of_its_tensors(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    selected: list[torch.Tensor] = []

    def select(x: torch.Tensor) -> AbstractContextManager[None]:
        selected.append(x)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device_of", select)
    x = torch.zeros(1, 2, 3, 64, dtype=torch.float16, device=device)
    adaspa_kernels.norm_rope(x, x)
    assert [found is x for found in selected] == [True]


def test_gluon_has_what_the_kernels_use() -> None:
    assert launch.gluon_unavailable() is None


def test_portable_kernels_are_tuned_on_a_gpu_whatever_the_length() -> None:
    from adaspa_kernels.block_sparse import block_sparse_kernel

    gpu = torch.device("cuda")
    for device, tokens in ((torch.device("cpu"), 10_000), (gpu, 4095)):
        assert launch.tuned(block_sparse_kernel, device, tokens) == (
            block_sparse_kernel, {"num_warps": 8, "num_stages": 1}
        )  # fmt: skip
    tuned, options = launch.tuned(block_sparse_kernel, gpu, 4096)
    assert tuned is launch.tuned(block_sparse_kernel, gpu, 118_784)[0]
    assert options == {}
    chosen_by = set(tuned.keys)
    assert chosen_by == {"BLOCK_Q", "BLOCK_K", "D", "TMA"}
    assert chosen_by <= set(block_sparse_kernel.arg_names)
    assert {(config.num_warps, config.num_stages) for config in tuned.configs} >= {(4, 1), (4, 2), (8, 2)}
