"""Norm of each head and rotary position embedding in one pass, written where attention reads it.

Maths. Each row of a head is divided by its root mean square, or by its standard deviation after its mean is subtracted,
and scaled by learned weights. Then neighbouring channels (x, y) of the tokens that have a position are rotated by its
angle: (x cos - y sin, y cos + x sin) (RoPE, arXiv 2104.09864). All in float32, and rounded once.

Memory. x and the output are [B, L, H, D] of any strides but the last, which is 1: the output may be a part of a longer
sequence, or x itself. Every element is read once and written once; the tables of a token come from the L1 cache for
all heads but the first.

Shapes: B batch, L tokens, H heads, D head dimension, N tokens with a position.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaspa_kernels.launch import check_device, run

NORMS = ("none", "rms", "layer")
ROWS = 32  # of all heads, in a program


@triton.jit
def norm_rope_kernel(
    x_ptr, out_ptr, weight_ptr, bias_ptr, cosines_ptr, sines_ptr,
    x_stride_b, x_stride_l, x_stride_h, out_stride_b, out_stride_l, out_stride_h,
    table_stride_n, table_stride_d, tokens, first, turned, eps,
    HEADS: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr,
    BIAS: tl.constexpr, TURN: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(L * H / ROWS), B); a row is one head of one token."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    batch = tl.program_id(1).to(tl.int64)
    token, head = rows // HEADS, rows % HEADS
    inside = token < tokens
    channels = tl.arange(0, D)
    token64, head64 = token.to(tl.int64), head.to(tl.int64)
    p_x = x_ptr + batch * x_stride_b + token64 * x_stride_l + head64 * x_stride_h
    # [ROWS, D]
    b_x = tl.load(p_x[:, None] + channels[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
    if NORM == "layer":
        b_x -= tl.sum(b_x, 1)[:, None] / D
    if NORM != "none":
        b_x *= tl.rsqrt(tl.sum(b_x * b_x, 1) / D + eps)[:, None]
    if WEIGHT:
        b_x *= tl.load(weight_ptr + channels).to(tl.float32)[None, :]
    if BIAS:
        b_x += tl.load(bias_ptr + channels).to(tl.float32)[None, :]
    if TURN:
        place = token - first
        turns = inside & (place >= 0) & (place < turned)
        pairs = tl.arange(0, D // 2)
        at = place.to(tl.int64)[:, None] * table_stride_n + pairs[None, :] * table_stride_d
        # [ROWS, D / 2]
        b_cos = tl.load(cosines_ptr + at, mask=turns[:, None], other=1.0)
        b_sin = tl.load(sines_ptr + at, mask=turns[:, None], other=0.0)
        b_even, b_odd = tl.split(tl.reshape(b_x, (ROWS, D // 2, 2)))
        b_x = tl.reshape(tl.join(b_even * b_cos - b_odd * b_sin, b_odd * b_cos + b_even * b_sin), (ROWS, D))
    p_out = out_ptr + batch * out_stride_b + token64 * out_stride_l + head64 * out_stride_h
    tl.store(p_out[:, None] + channels[None, :], b_x.to(out_ptr.dtype.element_ty), mask=inside[:, None])


def norm_rope(
    x: Tensor,
    out: Tensor,
    *,
    norm: str = "none",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 0.0,
    rotation: tuple[Tensor, Tensor] | None = None,
    first: int = 0,
) -> None:
    """Write norm and rotation of x [B, L, H, D] to ``out`` of the same shape, which may be x.

    Args:
        x, out: floating point, D a power of two, the last stride 1.
        norm: one of ``NORMS``, over D.
        weight, bias: [D], of any floating-point type.
        eps: added to the mean square.
        rotation: cosines and sines float32 [N, D / 2] of like strides, for tokens ``first`` to ``first`` + N - 1; the
            other tokens keep their values.

    Raises:
        ValueError: the kernels cannot run on x's device, or shapes, strides or types are not those above.
    """
    check_device(x.device)
    _check(x, out, norm, weight, bias, rotation)
    batch, tokens, heads, head_dim = x.shape
    cosines, sines = rotation or (x, x)
    run(
        norm_rope_kernel, (triton.cdiv(tokens * heads, ROWS), batch),
        x, out, x if weight is None else weight, x if bias is None else bias, cosines, sines,
        *x.stride()[:3], *out.stride()[:3], *cosines.stride()[:2], tokens, first, len(cosines), eps,
        HEADS=heads, D=head_dim, ROWS=ROWS, NORM=norm, WEIGHT=weight is not None, BIAS=bias is not None,
        TURN=rotation is not None, where=x,
    )  # fmt: skip


def _check(
    x: Tensor,
    out: Tensor,
    norm: str,
    weight: Tensor | None,
    bias: Tensor | None,
    rotation: tuple[Tensor, Tensor] | None,
) -> None:
    if x.dim() != 4 or x.numel() == 0 or x.shape[3] & (x.shape[3] - 1):
        raise ValueError(f"x must be [B, L, H, D], not empty, D a power of two, got {tuple(x.shape)}")
    if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
        raise ValueError(f"out must be like x: {tuple(out.shape)} {out.dtype}, {tuple(x.shape)} {x.dtype}")
    if x.stride(3) != 1 or out.stride(3) != 1:
        raise ValueError(f"the last stride of x and out must be 1, got {x.stride()} and {out.stride()}")
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}, got '{norm}'")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and (vector.shape != x.shape[3:] or vector.stride(0) != 1 or vector.device != x.device):
            raise ValueError(f"{name} must be [{x.shape[3]}] on {x.device}, got {tuple(vector.shape)}")
    for table in rotation or ():
        if table.dim() != 2 or table.shape[1] != x.shape[3] // 2 or table.dtype != torch.float32:
            raise ValueError(f"cosines and sines must be float32 [N, {x.shape[3] // 2}], got {tuple(table.shape)}")
        if table.device != x.device or rotation is None or table.stride() != rotation[0].stride():
            raise ValueError(f"cosines and sines must be on {x.device} and of like strides")
