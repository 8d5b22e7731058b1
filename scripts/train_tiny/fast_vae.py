"""Two operations of the VAE that are slow on a GPU, written so that they are not. In float32 results stay what they
are; under autocast they are rounded to bfloat16, sums apart.

- A GroupNorm of one group is computed by one thread block per clip, and a batch has few clips: it took longer than any
  other kernel. Here the sums over a clip are reductions that fill the machine. What comes out has the dtype of what
  goes in, where autocast would make it float32 and every operation after it twice as large.
- The gradient of replicated borders adds atomically, element by element. Here it is a few sums of slices.

Shapes: N clips, C channels, F frames, H height, W width.
"""

import types
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoCausalConv3d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def speed_up(vae: nn.Module) -> None:
    """Replace ``forward`` of the modules concerned, of this instance alone."""
    for module in vae.modules():
        if isinstance(module, nn.GroupNorm) and module.num_groups == 1:
            module.forward = types.MethodType(_norm_forward, module)  # type: ignore[method-assign]
        elif isinstance(module, HunyuanVideoCausalConv3d) and module.conv.kernel_size == (3, 3, 3):
            module.forward = types.MethodType(_conv_forward, module)


def _norm_forward(self: nn.GroupNorm, x: Tensor) -> Tensor:
    return OneGroupNorm.apply(x, self.weight, self.bias, self.eps)


def _conv_forward(self: HunyuanVideoCausalConv3d, hidden_states: Tensor) -> Tensor:
    return self.conv(ReplicateBorders.apply(hidden_states))


class OneGroupNorm(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, mean and variance over all of a clip [C, F, H, W]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        flat = x.flatten(2)  # [N, C, F H W]
        sums = flat.sum(2, dtype=torch.float32)  # [N, C]
        squares = torch.linalg.vector_norm(flat, dim=2, dtype=torch.float32).square()
        count = flat[0].numel()
        mean = sums.sum(1, keepdim=True) / count  # [N, 1]
        rstd = (squares.sum(1, keepdim=True) / count - mean.square()).clamp(min=0.0).add(eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, rstd)
        gain = rstd * weight  # [N, C]
        return _affine(x, gain, bias - mean * gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, rstd = ctx.saved_tensors
        flat, flat_grad = x.flatten(2), grad.flatten(2)
        count = flat[0].numel()
        grad_sum = flat_grad.sum(2, dtype=torch.float32)  # [N, C]
        grad_x = (
            (flat_grad * flat).sum(2, dtype=torch.float32) - mean * grad_sum
        ) * rstd  # sum of grad times normalised x [N, C]
        # dx = rstd * (w grad - mean(w grad) - x^ mean(w grad x^)), x^ the normalised x
        first = (weight * grad_sum).sum(1, keepdim=True) / count
        second = (weight * grad_x).sum(1, keepdim=True) / count
        slope = -rstd.square() * second
        result = _affine(x, slope.expand_as(grad_sum), (-rstd * first - slope * mean).expand_as(grad_sum))
        result.addcmul_(grad, _per_channel(rstd * weight))
        return result, grad_x.sum(0), grad_sum.sum(0), None


class ReplicateBorders(torch.autograd.Function):
    """[N, C, F, H, W] to [N, C, 2 + F, 1 + H + 1, 1 + W + 1]; time is padded in front only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        inner = grad[:, :, 2:].clone()
        inner[:, :, 0] += grad[:, :, 0] + grad[:, :, 1]
        for dim in (3, 4):
            size = inner.shape[dim]
            inner.select(dim, 1).add_(inner.select(dim, 0))
            inner.select(dim, size - 2).add_(inner.select(dim, size - 1))
            inner = inner.narrow(dim, 1, size - 2)
        return inner.contiguous()


def _affine(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """x * gain + shift with one float32 value of each per clip and channel [N, C], in x's dtype and one pass."""
    return torch.addcmul(_per_channel(shift), x, _per_channel(gain), out=torch.empty_like(x))


def _per_channel(values: Tensor) -> Tensor:
    return values[:, :, None, None, None]
