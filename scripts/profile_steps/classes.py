"""Which kind of work a GPU kernel does, told by its name.

The first pattern that is found in the name decides, so that what is special stands before what is general: the
memory-efficient attention of PyTorch is a CUTLASS kernel too, and a copy is an elementwise kernel.

Small operators of PyTorch look alike wherever they run: sums and comparisons within the choice of a mask count as
elementwise. Sorting counts as mask work; the Hopper kernel sorts the rows of a mask by length before each call.
"""

from __future__ import annotations

import re

ATTENTION, SUMS, MASKS = "attention", "block sums", "mask work"
GEMM, ELEMENTWISE, COPIES, OTHER = "GEMM", "norms, RoPE, elementwise", "copies and layout", "other"
CLASSES = (ATTENTION, SUMS, MASKS, GEMM, ELEMENTWISE, COPIES, OTHER)

# What a kernel that Inductor fused out of these alone does: it moves numbers and computes none.
_MOVES = (
    "_to_copy|_unsafe_view|cat|clone|constant_pad_nd|copy|copy_|expand|permute|reshape|select|slice|split|"
    "split_with_sizes|squeeze|stack|transpose|t|unsqueeze|view"
)

_PATTERNS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        # Ours, and those behind scaled_dot_product_attention: cuDNN, FlashAttention-2, memory-efficient; FlexAttention.
        (SUMS, r"block_sums_kernel"),
        (ATTENTION, r"block_sparse_kernel|block_means_kernel|add_affine_kernel"),
        (ATTENTION, r"sdpa|fmha|[Ff]lash_?[Aa]tt|flash_fwd|FlashFwd|MemEffAttention|flex_attention"),
        (
            MASKS,
            r"(weigh_rows|pack_rows|count_above|listed_mass|count_flags|list_flags|flag_lists|closed_words)_kernel",
        ),
        (MASKS, r"[Ss]ort|fill_index_and_segment|fill_reverse_indices|[tT]op[kK]|radixFind|_assert_async"),
        # cuBLAS (nvjet and sm90_xmma on Hopper), CUTLASS, convolutions of cuDNN, templates of Inductor.
        (GEMM, r"nvjet|xmma|cutlass|cublas|[Gg]emm|GEMM|gem[vk]|splitKreduce|dot_kernel|reduce_1Block"),
        (GEMM, r"triton_tem_\w*(mm|conv)|triton_mm|implicit_convolve|conv_?depthwise|[Cc]onvolution|vol2col|im2col"),
        (COPIES, r"Memcpy|Memset|\bmemcpy|\bmemset|copy_kernel|CatArray|FillFunctor|nchwToNhwc|nhwcToNchw"),
        (
            COPIES,
            r"index_elementwise|index_kernel|indexSelect|index_select|gather|scatter|reflection_pad|replication_pad",
        ),
        (COPIES, rf"triton_poi_fused_(?:(?:{_MOVES})_)+\d+"),
        (ELEMENTWISE, r"triton_(poi|red|per|spl|for)_"),
        (
            ELEMENTWISE,
            r"elementwise|reduce_kernel|[Nn]orm|[Ss]oft_?[Mm]ax|RowwiseMoments|[Rr]otary|rope|[Gg]elu|[Ss]ilu|quantise_rows",
        ),
    )
)


def classify(name: str) -> str:
    """The kind of work, one of ``CLASSES``, of a kernel as the profiler names it."""
    return next((kind for kind, pattern in _PATTERNS if pattern.search(name)), OTHER)
