"""The memory that a block mask takes, as lists of kept blocks and as one bit a block. Imports nothing heavy.

Shapes: H heads, Nq query blocks, Nk key blocks, K the width of the lists.
"""

from __future__ import annotations

from adaspa_cli.attention.layout import INT16_BLOCKS, WORD_BITS, ceil_div

LEAST_PACKED = 16_000_000  # bytes of a mask's lists
PACKED_TIMES = 4  # lists of 16 bits over one bit a block: where a row may keep a quarter of the blocks and more
_COUNT_BYTES = 4


def list_bytes(rows: int, width: int, key_blocks: int) -> int:
    """Bytes of the counts and lists of ``rows`` = H * Nq rows of K = ``width``."""
    return rows * (width * (2 if key_blocks < INT16_BLOCKS else 4) + _COUNT_BYTES)


def bit_bytes(rows: int, key_blocks: int) -> int:
    """Bytes of the bits of as many rows, in words."""
    return rows * ceil_div(key_blocks, WORD_BITS) * 4


def packs(rows: int, width: int, key_blocks: int) -> bool:
    """Whether a mask is kept as bits between its uses: a large one, if its lists take more than four times as much."""
    lists = list_bytes(rows, width, key_blocks)
    return lists >= LEAST_PACKED and lists > PACKED_TIMES * bit_bytes(rows, key_blocks)


def kept_bytes(rows: int, width: int, key_blocks: int) -> int:
    """Bytes of a mask that is kept for later calls."""
    if packs(rows, width, key_blocks):
        return bit_bytes(rows, key_blocks) + rows * _COUNT_BYTES
    return list_bytes(rows, width, key_blocks)
