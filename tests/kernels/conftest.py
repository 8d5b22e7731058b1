"""Fixtures of the kernel tests."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from adaspa_kernels import launch


@pytest.fixture(params=["portable", pytest.param("hopper", marks=pytest.mark.gpu)])
def kernel_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> str:
    """What the launchers prefer; where the Hopper kernel lacks something (128x128), they fall back to the other."""
    path: str = request.param
    if path == "hopper":
        probe: Tensor = torch.empty(1, 1, 64, 64, dtype=torch.bfloat16, device=device)
        reason = launch.hopper_unavailable((64, 64), probe)
        if reason:
            pytest.skip(reason)
    monkeypatch.setattr(launch, "PREFERRED_PATH", path)
    return path
