"""Triton kernels for block-sparse attention, exact block sums of attention weights, masks from them, the norm of each
head with its rotary embedding, and rows in FP8.

Import works without Triton: :func:`unavailable` then says so, and the operators are absent.
"""

from importlib.util import find_spec

from adaspa_kernels.launch import (
    BLOCK_SIZES,
    HALF_DTYPES,
    HEAD_DIMS,
    MAX_SELECTED_BLOCKS,
    PATHS,
    ROW_STRIDES,
    hopper_unavailable,
    selection_unavailable,
    unavailable,
)

if find_spec("triton") is not None:
    # Eager on purpose (0.2 s): imported later, the module `block_sums` would replace the function of that name.
    from adaspa_kernels.affine import add_affine
    from adaspa_kernels.block_sparse import block_sparse_attention
    from adaspa_kernels.block_sums import block_sums
    from adaspa_kernels.mask_lists import count_flags, flag_lists, list_flags
    from adaspa_kernels.norm_rope import norm_rope
    from adaspa_kernels.quantise import quantise_rows
    from adaspa_kernels.row_counts import count_above, listed_mass
    from adaspa_kernels.selection import pack_rows, weigh_rows
    from adaspa_kernels.summaries import Summaries, summarise

__all__ = [
    "BLOCK_SIZES",
    "HALF_DTYPES",
    "HEAD_DIMS",
    "MAX_SELECTED_BLOCKS",
    "PATHS",
    "ROW_STRIDES",
    "Summaries",
    "add_affine",
    "block_sparse_attention",
    "block_sums",
    "count_above",
    "count_flags",
    "flag_lists",
    "hopper_unavailable",
    "list_flags",
    "listed_mass",
    "norm_rope",
    "pack_rows",
    "quantise_rows",
    "selection_unavailable",
    "summarise",
    "unavailable",
    "weigh_rows",
]
