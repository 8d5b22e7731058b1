"""Rows in FP8: each divided by its own scale, so that its largest element becomes the largest number of e4m3.

Maths. For a row x: scale = max|x| / 448, q = round(x / scale) to e4m3 (arXiv 2209.05433), ties to even. So x is about
q * scale, and a product of two matrices so quantised is q q' scaled by rows and by columns. Columns from ``gelu_from``
on go through the tanh form of GELU first (arXiv 1606.08415), in float32.

Memory. One program holds one row in registers between its maximum and its rounding: every element is read once, and
written once as one byte.

Shapes: M rows, K columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adaspa_kernels.launch import HALF_DTYPES, check_device, run

FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
SMALLEST = 1e-12  # of a row's maximum: rows of zeros have a scale too
MAX_COLUMNS = 32_768  # of a row that a program can hold
COLUMNS_PER_WARP = 2048  # on an H200 the fastest of 256 to 4096 in the mean of all sizes


@triton.jit
def quantise_rows_kernel(
    x_ptr, q_ptr, scale_ptr, stride_m, columns, gelu_from,
    BLOCK: tl.constexpr, GELU: tl.constexpr, LARGEST: tl.constexpr, SMALLEST: tl.constexpr,
    ENCODE: tl.constexpr,
):  # fmt: skip
    """Grid (M,); BLOCK is a power of two that holds a row."""
    row = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    inside = channels < columns
    # [BLOCK]
    b_x = tl.load(x_ptr + row * stride_m + channels, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        # tanh(u) = 1 - 2 / (1 + exp(2 u)), so x (1 + tanh(u)) / 2 = x - x / (1 + exp(2 u)).
        b_exp = tl.exp(1.5957691216057308 * (b_x + 0.044715 * b_x * b_x * b_x))
        b_x = tl.where(channels >= gelu_from, b_x - b_x / (1.0 + b_exp), b_x)
    largest = tl.maximum(tl.max(tl.abs(b_x), 0), SMALLEST)
    b_q = b_x * tl.div_rn(LARGEST, largest)
    if ENCODE:  # noqa: SIM108
        b_bits = _encoded(b_q)
    else:
        b_bits = b_q.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    tl.store(q_ptr + row * columns + channels, b_bits, mask=inside)
    tl.store(scale_ptr + row, tl.div_rn(largest, LARGEST))


@triton.jit
def _encoded(b_x):
    """The bits of the nearest number of e4m3, for the interpreter, whose own conversion is wrong (31.5 becomes 16)."""
    bits = tl.abs(b_x).to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)  # 3 bits of mantissa; the exponent's bias is 7
    small = ((tl.abs(b_x) * 512.0 + 12582912.0) - 12582912.0).to(tl.int32)  # in steps of 2^-9, below 2^-6
    code = tl.where(tl.abs(b_x) < 0.015625, small, tl.minimum(normal, 0x7E))
    sign = (b_x.to(tl.int32, bitcast=True) >> 24) & 0x80
    return tl.where(b_x == b_x, code | sign, 0x7F).to(tl.uint8)


def quantise_rows(x: Tensor, *, gelu_from: int | None = None) -> tuple[Tensor, Tensor]:
    """Quantise each row of x.

    Args:
        x: [M, K], bfloat16 or float16 (float32 too in the interpreter), the last stride 1, K up to ``MAX_COLUMNS``.
        gelu_from: the first column that goes through GELU before; None for none.

    Returns:
        e4m3 [M, K], contiguous, and scales float32 [M, 1] that it is to be multiplied by. A row that is not finite has
        no finite product: its scale or one of its elements is not finite.

    Raises:
        ValueError: the kernels cannot run on x's device, or x is not as above.
    """
    check_device(x.device)
    _check(x, gelu_from)
    rows, columns = x.shape
    block = triton.next_power_of_2(columns)
    q = torch.empty(rows, columns, dtype=FP8, device=x.device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    run(
        quantise_rows_kernel, (rows,),
        x, q.view(torch.uint8), scale, x.stride(0), columns, gelu_from or 0,
        BLOCK=block, GELU=gelu_from is not None, LARGEST=LARGEST, SMALLEST=SMALLEST, ENCODE=x.device.type == "cpu",
        num_warps=min(max(block // COLUMNS_PER_WARP, 1), 16), where=x,
    )  # fmt: skip
    return q, scale


def _check(x: Tensor, gelu_from: int | None) -> None:
    dtypes = (*HALF_DTYPES, torch.float32) if x.device.type == "cpu" else HALF_DTYPES
    if x.dim() != 2 or x.numel() == 0 or x.shape[1] > MAX_COLUMNS:
        raise ValueError(f"x must be [M, K], not empty, K at most {MAX_COLUMNS}, got {tuple(x.shape)}")
    if x.dtype not in dtypes:
        raise ValueError(f"x must be one of {dtypes}, got {x.dtype}")
    if x.stride(1) != 1:
        raise ValueError(f"the last stride of x must be 1, got strides {x.stride()}")
    if gelu_from is not None and not 0 <= gelu_from < x.shape[1]:
        raise ValueError(f"gelu_from must be a column of x, 0 to {x.shape[1] - 1}, got {gelu_from}")
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) < (8, 9):
        raise ValueError("FP8 needs a GPU of compute capability 8.9 or newer")
