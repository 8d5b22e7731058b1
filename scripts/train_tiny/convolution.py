"""The VAE's causal 3-D convolutions as 2-D ones, for speed while training on a GPU.

Two things are slow in the original there: the gradient of replicating borders (it adds atomically), and 3-D
convolutions of few channels. So borders are concatenated, which has a gradient of plain sums, and the three taps in
time become channels of a 2-D convolution in channels-last memory. Parameters and results stay what they are.

Shapes: B clips, C and O channels in and out, F frames, H height, W width; kernels [O, C, 3, 3, 3].
"""

import types

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoCausalConv3d
from torch import Tensor, nn


def use_flat_convolutions(vae: nn.Module) -> None:
    """Replace ``forward`` of each causal 3x3x3 convolution of this instance."""
    for module in vae.modules():
        if isinstance(module, HunyuanVideoCausalConv3d) and module.conv.kernel_size == (3, 3, 3):
            module.forward = types.MethodType(_forward, module)


def _forward(self: HunyuanVideoCausalConv3d, hidden_states: Tensor) -> Tensor:
    """[B, C, F, H, W] to [B, O, F', H', W']."""
    conv = self.conv
    step, *stride = conv.stride
    clips, frames = hidden_states.shape[0], hidden_states.shape[2]
    x = hidden_states.permute(0, 2, 1, 3, 4).flatten(0, 1)  # [B F, C, H, W]
    x = x.contiguous(memory_format=torch.channels_last)
    x = _replicate(_replicate(x, 2), 3).unflatten(0, (clips, frames))
    x = torch.cat([x[:, :1].expand(-1, 2, -1, -1, -1), x], dim=1)  # the past of the first frame is the first frame
    made = (frames - 1) // step + 1
    taps = [x[:, tap : tap + step * (made - 1) + 1 : step].flatten(0, 1) for tap in range(3)]  # each [B F', C, ...]
    x = torch.cat(taps, dim=1).contiguous(memory_format=torch.channels_last)
    weight = conv.weight.transpose(1, 2).flatten(1, 2)  # [O, 3 C, 3, 3]
    y = F.conv2d(x, weight, conv.bias, stride=stride)
    return y.unflatten(0, (clips, made)).permute(0, 2, 1, 3, 4)


def _replicate(x: Tensor, dim: int) -> Tensor:
    """One more row or column at either border."""
    return torch.cat([x.narrow(dim, 0, 1), x, x.narrow(dim, x.shape[dim] - 1, 1)], dim=dim)
