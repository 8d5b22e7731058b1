"""Fixtures of the kernel tests."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from adaspa_kernels import launch
from tests.forked import ROOT, Forks, forks_of


def dtypes() -> list[torch.dtype]:
    """bfloat16 products are wrong in the interpreter of Triton 3.6; float32 is for the interpreter alone."""
    if torch.cuda.is_available():
        return [torch.bfloat16, torch.float16]
    return [torch.float32, torch.float16]


@pytest.fixture(scope="session")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Runs test modules where kernels are compiled for Hopper, GPU or not: see sm90.py."""
    with forks_of(str(ROOT / "tests" / "kernels" / "sm90.py"), tmp_path_factory.mktemp("hopper")) as forks:
        yield forks


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is NaN, or -7 in integers, so that an element that is not written is seen."""
    empty = torch.empty

    def poisoned(*args: Any, **options: Any) -> Tensor:
        x: Tensor = empty(*args, **options)
        return x.fill_(torch.nan if x.is_floating_point() else -7)

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(params=["portable", "hopper"])
def kernel_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> str:
    """What the launchers prefer; what the Hopper kernels lack (block sums of 128x128) falls back to the other ones.

    Without a GPU the Hopper kernels' source runs in gluon_on_cpu.py.
    """
    path: str = request.param
    if path == "hopper":
        if reason := launch.gluon_unavailable():
            pytest.skip(reason)
        if device.type == "cpu":
            interpret_hopper(monkeypatch)
        else:
            x = torch.empty(1, 1, 64, 64, dtype=torch.half, device=device)
            if reason := launch.hopper_unavailable("block_sums", (64, 64), x):
                pytest.skip(reason)
    monkeypatch.setattr(launch, "PREFERRED_PATH", path)
    return path


def interpret_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    from adaspa_kernels import hopper_block_sparse, hopper_block_sums
    from tests.kernels import gluon_on_cpu

    def unavailable(kernel: str, block_size: tuple[int, int], *tensors: torch.Tensor) -> str | None:
        fits = block_size in launch.HOPPER_BLOCK_SIZES[kernel] and launch.uses_tma(*tensors)
        return None if fits else "not for these tensors"

    monkeypatch.setattr(launch, "hopper_unavailable", unavailable)
    for module, name in (
        (hopper_block_sparse, "hopper_block_sparse_kernel"),
        (hopper_block_sums, "hopper_block_sums_kernel"),
    ):
        monkeypatch.setattr(module, name, gluon_on_cpu.Kernel(module, name))
        monkeypatch.setattr(module, "boxes", gluon_on_cpu.boxes)
    monkeypatch.setattr(hopper_block_sparse, "multiprocessors", lambda _: 2)
    monkeypatch.setattr(hopper_block_sparse, "keeps_step", lambda _: True)
