"""One affine map for each head, added to the rows of an attention output: the last pass of the probe repair.

Maths. Rows of video that leave key blocks out become x + ((x - mean) * factor) W + intercept; all others stay as they
are. The product is in the dtype of x, of centred features, the rest in float32.

Memory. x is [B, H, L, D] of any strides but the last, which is 1, and is read once; the result, with the strides of x,
is written once. Means, factors, weights and intercepts are float32, contiguous, one of each for a head.

Shapes: B batch, H heads, L tokens, D head dimension, Nq query blocks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaspa_kernels.launch import check_device, check_tensors, run

ROWS = 128


@triton.jit
def add_affine_kernel(
    x_ptr, out_ptr, mean_ptr, factor_ptr, weight_ptr, intercept_ptr, counts_ptr,
    stride_b, stride_h, stride_l, stride_cb, stride_ch, stride_cq, tokens, first, end, key_blocks,
    BLOCK_Q: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(L / ROWS), H, B)."""
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    place = batch * tl.num_programs(1) + head
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channels = tl.arange(0, D)
    inside = rows < tokens
    # [ROWS, D]
    offsets = batch * stride_b + head * stride_h + rows.to(tl.int64)[:, None] * stride_l + channels[None, :]
    b_x = tl.load(x_ptr + offsets, mask=inside[:, None], other=0.0)
    b_wide = b_x.to(tl.float32)
    # [D]
    b_mean = tl.load(mean_ptr + place * D + channels)
    b_factor = tl.load(factor_ptr + place * D + channels)
    b_intercept = tl.load(intercept_ptr + place * D + channels)
    # [D, D]
    b_weight = tl.load(weight_ptr + place * D * D + channels[:, None] * D + channels[None, :]).to(b_x.dtype)
    b_features = ((b_wide - b_mean[None, :]) * b_factor[None, :]).to(b_x.dtype)
    b_added = tl.dot(b_features, b_weight) + b_intercept[None, :]
    p_counts = counts_ptr + batch * stride_cb + head * stride_ch + (rows // BLOCK_Q).to(tl.int64) * stride_cq
    # [ROWS]
    moved = (tl.load(p_counts, mask=inside, other=0) < key_blocks) & (rows >= first) & (rows < end)
    b_out = tl.where(moved[:, None], b_wide + b_added.to(b_x.dtype).to(tl.float32), b_wide)
    tl.store(out_ptr + offsets, b_out.to(b_x.dtype), mask=inside[:, None])


def add_affine(
    x: Tensor, mean: Tensor, factor: Tensor, weight: Tensor, intercept: Tensor, counts: Tensor, *,
    key_blocks: int, block: int, video: range,
) -> Tensor:  # fmt: skip
    """Add an affine map of each head to the video rows of x that leave key blocks out.

    Args:
        x: [B, H, L, D] in bf16 or fp16 (float32 in the interpreter), without gaps; the last stride is 1.
        mean, factor, intercept: float32 [B, H, 1, D].
        weight: float32 [B, H, D, D].
        counts: int32 [H, Nq], [1, H, Nq] or [B, H, Nq]: rows of ``key_blocks`` stay as they are.
        block: tokens of a query block, 64 or 128.
        video: tokens of video.

    Raises:
        ValueError: device, dtype, shape or stride is not one of these.
    """
    check_device(x.device)
    check_tensors((block, block), 1.0, x=x)
    batch, heads, tokens, head_dim = x.shape
    parts = {"mean": mean, "factor": factor, "weight": weight, "intercept": intercept}
    for name, part in parts.items():
        rows = head_dim if name == "weight" else 1
        if part.shape != (batch, heads, rows, head_dim) or part.dtype != torch.float32 or part.device != x.device:
            raise ValueError(
                f"{name} must be float32 {(batch, heads, rows, head_dim)} on {x.device}, "
                f"got {part.dtype} {tuple(part.shape)} on {part.device}"
            )
    heads_and_rows = (heads, triton.cdiv(tokens, block))
    fits = tuple(counts.shape) in {heads_and_rows, (1, *heads_and_rows), (batch, *heads_and_rows)}
    if not fits or counts.dtype != torch.int32 or counts.device != x.device:
        raise ValueError(
            f"counts do not fit x {tuple(x.shape)} on {x.device}: "
            f"{counts.dtype} {tuple(counts.shape)} on {counts.device}"
        )
    out = torch.empty_like(x)
    if out.stride() != x.stride():
        raise ValueError(f"x must have no gaps, got strides {x.stride()} for {tuple(x.shape)}")
    counts = counts.expand(batch, *counts.shape[-2:])
    run(
        add_affine_kernel, (triton.cdiv(tokens, ROWS), heads, batch),
        x, out, *(part.contiguous() for part in parts.values()), counts,
        *x.stride()[:3], *counts.stride(), tokens, video.start, video.stop, key_blocks,
        BLOCK_Q=block, ROWS=ROWS, D=head_dim, num_warps=8, where=x,
    )  # fmt: skip
    return out
