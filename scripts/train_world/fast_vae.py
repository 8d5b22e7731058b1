"""The VAE's operations that are slow on a GPU, written so that they are not. In float32 results stay what they are;
under autocast they are rounded to bfloat16, sums apart.

- What passes from layer to layer has its channels last in memory. cuDNN's convolutions in bfloat16 want that, and
  otherwise reorder what they read and write.
- A GroupNorm of one group is computed by one thread block per clip, and a batch has few clips: it took longer than any
  other kernel. Here the sums over a clip are reductions that fill the machine. What comes out has the dtype of what
  goes in, where autocast would make it float32 and every operation after it twice as large.
- The gradient of replicated borders adds atomically, element by element. Here each element collects its copies.

Shapes: N clips, C channels, F frames, H height, W width.
"""

import types
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import (
    HunyuanVideoCausalConv3d,
    HunyuanVideoResnetBlockCausal3D,
    HunyuanVideoUpsampleCausal3D,
)
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scripts.train_world.channels_last import affine, replicate_borders, replicate_gradient

_CLIP = (2, 3, 4)  # the dimensions of a clip's frames


def speed_up(vae: nn.Module) -> None:
    """Replace ``forward`` of the modules concerned, of this instance alone."""
    for module in vae.modules():
        if isinstance(module, nn.GroupNorm) and module.num_groups == 1:
            module.forward = types.MethodType(_norm_forward, module)  # type: ignore[method-assign]
        elif isinstance(module, HunyuanVideoCausalConv3d):
            module.forward = types.MethodType(_conv_forward, module)
        elif isinstance(module, HunyuanVideoResnetBlockCausal3D):
            module.forward = types.MethodType(_block_forward, module)
        elif isinstance(module, HunyuanVideoUpsampleCausal3D):
            module.forward = types.MethodType(_upsample_forward, module)


def _norm_forward(self: nn.GroupNorm, x: Tensor) -> Tensor:
    return OneGroupNorm.apply(x, self.weight, self.bias, self.eps)


def _conv_forward(self: HunyuanVideoCausalConv3d, hidden_states: Tensor) -> Tensor:
    if self.conv.kernel_size == (1, 1, 1):
        return self.conv(hidden_states)
    return self.conv(ReplicateBorders.apply(hidden_states))


def _block_forward(self: HunyuanVideoResnetBlockCausal3D, hidden_states: Tensor) -> Tensor:
    """diffusers' begins by putting the width last in memory."""
    residual = hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states)
    hidden_states = self.conv1(self.nonlinearity(self.norm1(hidden_states)))
    return self.conv2(self.nonlinearity(self.norm2(hidden_states))) + residual


def _upsample_forward(self: HunyuanVideoUpsampleCausal3D, hidden_states: Tensor) -> Tensor:
    return self.conv(_repeated(hidden_states, self.upsample_factor))


def _repeated(x: Tensor, factor: Sequence[int]) -> Tensor:
    """Every element so many times in time, height and width; the first frame once in time."""
    time, height, width = map(int, factor)
    x = x.permute(0, 2, 3, 4, 1)  # [N, F, H, W, C]
    if time > 1 and x.shape[1] > 1:
        x = torch.cat([x[:, :1], x[:, 1:, None].expand(-1, -1, time, -1, -1, -1).flatten(1, 2)], dim=1)
    x = x[:, :, :, None, :, None].expand(-1, -1, -1, height, -1, width, -1)
    return x.flatten(4, 5).flatten(2, 3).permute(0, 4, 1, 2, 3)


class OneGroupNorm(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, mean and variance over all of a clip [C, F, H, W]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        sums = x.sum(_CLIP, dtype=torch.float32)  # [N, C]
        squares = torch.linalg.vector_norm(x, dim=_CLIP, dtype=torch.float32).square()
        count = x[0].numel()
        mean = sums.sum(1, keepdim=True) / count  # [N, 1]
        rstd = (squares.sum(1, keepdim=True) / count - mean.square()).clamp(min=0.0).add(eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, rstd)
        gain = rstd * weight  # [N, C]
        return affine(x, gain, bias - mean * gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, rstd = ctx.saved_tensors
        count = x[0].numel()
        grad_sum = grad.sum(_CLIP, dtype=torch.float32)  # [N, C]
        grad_x = (
            (grad * x).sum(_CLIP, dtype=torch.float32) - mean * grad_sum
        ) * rstd  # sum of grad times normalised x [N, C]
        # dx = rstd * (w grad - mean(w grad) - x^ mean(w grad x^)), x^ the normalised x
        first = (weight * grad_sum).sum(1, keepdim=True) / count
        second = (weight * grad_x).sum(1, keepdim=True) / count
        slope = -rstd.square() * second
        gain, shift = (values.expand_as(grad_sum) for values in (slope, -rstd * first - slope * mean))
        return affine(x, gain, shift, grad, rstd * weight), grad_x.sum(0), grad_sum.sum(0), None


class ReplicateBorders(torch.autograd.Function):
    """[N, C, F, H, W] to [N, C, 2 + F, 1 + H + 1, 1 + W + 1]; time is padded in front only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return replicate_borders(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return replicate_gradient(grad)
