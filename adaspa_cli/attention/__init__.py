"""Block-sparse attention: the block mask, the operators on it, and their backends."""

from typing import TYPE_CHECKING

from adaspa_cli.on_demand import on_demand

if TYPE_CHECKING:
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

__getattr__ = on_demand(  # adaspa_cli.attention.layout imports nothing heavy
    __name__,
    {
        "api": ("attention_with_block_sums", "block_sparse_attention", "block_sums", "dense_attention"),
        "backends": ("Backend", "resolve"),
        "block_mask": ("BlockMask",),
        "checked": ("check_kernel",),
        "layout": ("TokenLayout",),
    },
)
