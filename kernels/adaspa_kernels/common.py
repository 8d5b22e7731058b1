"""What kernels share: the factor between natural and binary exponents, and how rows of a head are loaded.

It imports no other module of the package, so that kernels and their launchers can all import it.
"""

import math

import triton
import triton.language as tl

LOG2_E = math.log2(math.e)


@triton.jit
def load_rows(
    source, batch, head, start, tokens, stride_b, stride_h, stride_l,
    ROWS: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Load rows ``start`` to ``start + ROWS`` of one head, [ROWS, D]; rows past the end are zero if MASKED or TMA."""
    if TMA:
        b_x = source.load([batch, head, start, 0]).reshape(ROWS, D)
    else:
        rows = start + tl.arange(0, ROWS)
        p_head = source + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
        # [ROWS, D]
        p_x = p_head + rows.to(tl.int64)[:, None] * stride_l + tl.arange(0, D)[None, :]
        if MASKED:  # noqa: SIM108
            b_x = tl.load(p_x, mask=rows[:, None] < tokens, other=0.0)
        else:
            b_x = tl.load(p_x)
    return b_x
