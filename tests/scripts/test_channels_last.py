"""Kernels over clips with channels last, in Triton's interpreter or on a GPU, against PyTorch's own operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.train_world.channels_last import affine, affine_kernel, replicate_gradient_kernel, replicate_kernel

SHAPES = [(2, 3, 4, 5, 6), (1, 16, 1, 1, 130), (2, 2, 3, 2, 1)]


def clips(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", [True, False])
def test_replicated_borders_and_their_gradient(shape: tuple[int, ...], last: bool, device: torch.device) -> None:
    x = clips(shape, device, torch.float32)
    layout = torch.channels_last_3d if last else torch.contiguous_format
    x = x.contiguous(memory_format=layout).requires_grad_()
    expected = F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate")
    padded = replicate_kernel(x.detach())
    assert padded.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(padded, expected.detach(), atol=0.0, rtol=0.0)
    grad = clips(tuple(expected.shape), device, torch.float32)
    (wanted,) = torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(replicate_gradient_kernel(grad.contiguous(memory_format=layout)), wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("two", [True, False])
def test_affine(shape: tuple[int, ...], two: bool, device: torch.device) -> None:
    x, other = (clips(shape, device, torch.bfloat16) * factor for factor in (1.0, -0.5))
    gain, shift, slope = (clips(shape[:2], device, torch.float32) + at for at in (0.0, 1.0, 2.0))
    more = (other, slope) if two else (None, None)
    found = affine_kernel(x, gain, shift, *more)
    expected = affine(x.cpu(), gain.cpu(), shift.cpu(), *(None if value is None else value.cpu() for value in more))
    torch.testing.assert_close(found.cpu(), expected)
