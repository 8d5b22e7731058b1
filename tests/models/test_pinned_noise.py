"""Noise drawn on the CPU: the same numbers, and the GPU's queue is not waited for."""

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from adaspa_cli.models.pinned_noise import PinnedNoise

pytestmark = pytest.mark.gpu
LONG = 2_000_000_000  # clock cycles: about a second


def draw(device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return randn_tensor((2, 3, 1000), torch.Generator("cpu").manual_seed(5), device, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_numbers_are_the_same(device: torch.device, dtype: torch.dtype) -> None:
    expected = draw(device, dtype)
    with PinnedNoise():
        drawn = draw(device, dtype)
    assert drawn.device.type == "cuda"
    assert torch.equal(drawn, expected)


def test_the_gpu_is_not_waited_for(device: torch.device) -> None:
    with PinnedNoise():
        draw(device)  # pinned memory is there from now on
        torch.cuda.synchronize()
        torch.cuda._sleep(LONG)
        busy = torch.cuda.Event()
        busy.record()
        drawn = [draw(device) for _ in range(2)]
        assert not busy.query()
    torch.cuda.synchronize()
    assert torch.equal(*drawn)
