"""Triton kernels for block-sparse attention and for the exact block sums of attention weights.

Import works without Triton: :func:`unavailable` then says so, and the operators are absent.
"""

from importlib.util import find_spec

from adaspa_kernels.launch import BLOCK_SIZES, HALF_DTYPES, HEAD_DIMS, PATHS, hopper_unavailable, unavailable

if find_spec("triton") is not None:
    # Eager on purpose (0.2 s): imported later, the module `block_sums` would replace the function of that name.
    from adaspa_kernels.block_sparse import block_sparse_attention
    from adaspa_kernels.block_sums import block_sums

__all__ = [
    "BLOCK_SIZES",
    "HALF_DTYPES",
    "HEAD_DIMS",
    "PATHS",
    "block_sparse_attention",
    "block_sums",
    "hopper_unavailable",
    "unavailable",
]
