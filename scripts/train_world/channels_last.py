"""Elementwise passes over clips whose channels are last in memory, each as one kernel on a GPU.

PyTorch takes several for each: a product of bfloat16 clips with float32 numbers converts element by element in its
slowest kernel, and padding is a copy for the inside and one for each border.

Shapes: N clips, C channels, F frames, H height, W width.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from adaspa_kernels.launch import run

_BLOCK = 2048


def affine(x: Tensor, gain: Tensor, shift: Tensor, other: Tensor | None = None, slope: Tensor | None = None) -> Tensor:
    """x * gain + shift, and + other * slope if there is one, in x's dtype and rounded once.

    Args:
        x, other: [N, C, F, H, W].
        gain, shift, slope: float32, one value of each per clip and channel [N, C].
    """
    if not x.is_cuda:
        value = x * _per_channel(gain) + _per_channel(shift)
        return (value if other is None or slope is None else value + other * _per_channel(slope)).to(x.dtype)
    return affine_kernel(x, gain, shift, other, slope)


def affine_kernel(x: Tensor, gain: Tensor, shift: Tensor, other: Tensor | None, slope: Tensor | None) -> Tensor:
    """``affine``, by the kernel whatever the device."""
    x = _last(x)
    other = x if other is None else _last(other)
    out = torch.empty_like(x)
    per_clip = x[0].numel()
    run(
        _affine, (triton.cdiv(per_clip, _BLOCK), len(x)),
        x, other, out, gain.contiguous(), shift.contiguous(), (gain if slope is None else slope).contiguous(),
        per_clip, x.shape[1],
        HAS_OTHER=slope is not None, BLOCK=_BLOCK, where=x,
    )  # fmt: skip
    return out


def replicate_borders(x: Tensor) -> Tensor:
    """[N, C, F, H, W] to [N, C, 2 + F, 1 + H + 1, 1 + W + 1], channels last; time is padded in front only."""
    if not x.is_cuda:
        return F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate")
    return replicate_kernel(x)


def replicate_kernel(x: Tensor) -> Tensor:
    """``replicate_borders``, by the kernel whatever the device."""
    count, channels, frames, height, width = x.shape
    padded = torch.empty(
        (count, channels, frames + 2, height + 2, width + 2),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last_3d,
    )
    rows = count * (frames + 2) * (height + 2)
    parts = triton.cdiv((width + 2) * channels, _BLOCK)
    run(_replicate, (rows, parts), _last(x), padded, channels, frames, height, width, BLOCK=_BLOCK, where=x)
    return padded


def replicate_gradient(grad: Tensor) -> Tensor:
    """Gradient of ``replicate_borders``: each element has the sum of all its copies."""
    if grad.is_cuda:
        return replicate_gradient_kernel(grad)
    grad = grad.clone()
    grad[:, :, 2] += grad[:, :, 0] + grad[:, :, 1]
    inner = grad[:, :, 2:]
    for dim in (3, 4):
        size = inner.shape[dim]
        inner.select(dim, 1).add_(inner.select(dim, 0))
        inner.select(dim, size - 2).add_(inner.select(dim, size - 1))
        inner = inner.narrow(dim, 1, size - 2)
    return inner.contiguous()


def replicate_gradient_kernel(grad: Tensor) -> Tensor:
    """``replicate_gradient``, by the kernel whatever the device."""
    count, channels = grad.shape[:2]
    frames, height, width = (size - 2 for size in grad.shape[2:])
    inner = torch.empty(
        (count, channels, frames, height, width),
        dtype=grad.dtype,
        device=grad.device,
        memory_format=torch.channels_last_3d,
    )
    rows = count * frames * height
    parts = triton.cdiv(width * channels, _BLOCK)
    run(_gather, (rows, parts), _last(grad), inner, channels, frames, height, width, BLOCK=_BLOCK, where=grad)
    return inner


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def _per_channel(values: Tensor) -> Tensor:
    return values[:, :, None, None, None]


@triton.jit
def _affine(x, other, out, gain, shift, slope, per_clip, channels, HAS_OTHER: tl.constexpr, BLOCK: tl.constexpr):
    clip = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < per_clip
    first = clip.to(tl.int64) * per_clip
    column = clip * channels + at % channels
    value = tl.load(x + first + at, there).to(tl.float32) * tl.load(gain + column, there) + tl.load(
        shift + column, there
    )
    if HAS_OTHER:
        value += tl.load(other + first + at, there).to(tl.float32) * tl.load(slope + column, there)
    tl.store(out + first + at, value.to(out.dtype.element_ty), there)


@triton.jit
def _replicate(x, padded, channels, frames, height, width, BLOCK: tl.constexpr):
    """A row of the padded clip [N, 2 + F, 1 + H + 1], or a part of it."""
    row = tl.program_id(0)
    line = row % (height + 2)
    frame = row // (height + 2) % (frames + 2)
    clip = row // (height + 2) // (frames + 2)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = at < (width + 2) * channels
    column = tl.minimum(tl.maximum(at // channels - 1, 0), width - 1)
    line = tl.minimum(tl.maximum(line - 1, 0), height - 1)
    frame = tl.maximum(frame - 2, 0)
    first = ((clip.to(tl.int64) * frames + frame) * height + line) * width * channels
    value = tl.load(x + first + column * channels + at % channels, there)
    tl.store(padded + row.to(tl.int64) * (width + 2) * channels + at, value, there)


@triton.jit
def _gather(grad, inner, channels, frames, height, width, BLOCK: tl.constexpr):
    """A row of the clip [N, F, H], or a part of it: the sum over its copies in the padded one."""
    row = tl.program_id(0)
    line = row % height
    frame = row // height % frames
    clip = row // height // frames
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = at < width * channels
    column = at // channels
    total = tl.zeros([BLOCK], tl.float32)
    for back in tl.static_range(3):  # the frame itself, and two copies of the first one before it
        if (back == 0) | (frame == 0):
            for side in tl.static_range(3):  # the line itself, one above the first, one below the last
                if (side == 0) | ((side == 1) & (line == 0)) | ((side == 2) & (line == height - 1)):
                    padded_line = line + 1 + side // 2 * 2 - (side + 1) // 2
                    source = (clip.to(tl.int64) * (frames + 2) + frame + 2 - back) * (height + 2) + padded_line
                    here = grad + source * (width + 2) * channels + at
                    total += tl.load(here + channels, there).to(tl.float32)
                    total += tl.load(here, there & (column == 0), other=0.0).to(tl.float32)
                    total += tl.load(here + 2 * channels, there & (column == width - 1), other=0.0).to(tl.float32)
    tl.store(inner + row.to(tl.int64) * width * channels + at, total.to(inner.dtype.element_ty), there)
