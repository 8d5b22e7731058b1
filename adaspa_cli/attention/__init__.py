"""Block-sparse attention: the block mask, the operators on it, and what runs them."""

from adaspa_cli.attention.api import (
    attention_with_block_sums,
    block_sparse_attention,
    block_sums,
    dense_attention,
)
from adaspa_cli.attention.backends import Backend, resolve
from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.attention.checked import check_kernel
from adaspa_cli.attention.layout import TokenLayout

__all__ = [
    "Backend",
    "BlockMask",
    "TokenLayout",
    "attention_with_block_sums",
    "block_sparse_attention",
    "block_sums",
    "check_kernel",
    "dense_attention",
    "resolve",
]
