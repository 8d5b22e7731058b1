"""The block mask: which key blocks each query block attends to. One definition for every method and kernel.

Shapes: H heads, Nq query blocks, Nk key blocks, K the width of the index lists; ``*`` is an optional batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaspa_cli.attention import mask_conversion
from adaspa_cli.attention.layout import INT16_BLOCKS, WORD_BITS, ceil_div


def index_dtype(key_blocks: int) -> torch.dtype:
    """Return the narrowest integer type that holds every key block's index."""
    return torch.int16 if key_blocks < INT16_BLOCKS else torch.int32


@dataclass(frozen=True)
class BlockMask:
    """Kept key blocks per head and query block, as packed index lists.

    Attributes:
        counts: int32 ``[*, H, Nq]``, number of kept key blocks of each row.
        indices: int16 (int32 from 32,768 key blocks on) ``[*, H, Nq, K]``; the first ``counts`` entries of a row
            are its kept key blocks in ascending order, the rest is zero.
        key_blocks: Nk.
        block_size: tokens of a (query, key) block.

    A row whose count equals ``key_blocks`` keeps everything, and its list is *not* read: so the text rows, which
    are dense, do not force the width K of all the sparse rows up to Nk.
    """

    counts: Tensor
    indices: Tensor
    key_blocks: int
    block_size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.counts.dtype != torch.int32:
            raise ValueError(f"counts must be int32, got {self.counts.dtype}")
        if self.indices.dtype != index_dtype(self.key_blocks):
            raise ValueError(f"indices must be {index_dtype(self.key_blocks)}, got {self.indices.dtype}")
        if self.counts.dim() not in (2, 3) or self.indices.shape[:-1] != self.counts.shape:
            raise ValueError(
                f"counts [*, H, Nq] and indices [*, H, Nq, K] disagree: "
                f"{tuple(self.counts.shape)} and {tuple(self.indices.shape)}"
            )

    @property
    def heads(self) -> int:
        return self.counts.shape[-2]

    @property
    def query_blocks(self) -> int:
        return self.counts.shape[-1]

    @property
    def device(self) -> torch.device:
        return self.counts.device

    @property
    def nbytes(self) -> int:
        """Bytes that the mask occupies."""
        return self.counts.nbytes + self.indices.nbytes

    def density(self) -> Tensor:
        """Share of blocks kept, text included: float32 ``[*, H]`` (achieved density), without a synchronisation."""
        return self.counts.sum(-1, dtype=torch.float32) / (self.query_blocks * self.key_blocks)

    def to(self, device: torch.device | str) -> BlockMask:
        """Return the mask on another device."""
        return BlockMask(self.counts.to(device), self.indices.to(device), self.key_blocks, self.block_size)

    def to_bool(self) -> Tensor:
        """Return bool ``[*, H, Nq, Nk]``, True where a block is kept."""
        return mask_conversion.to_flags(self.counts, self.indices, self.key_blocks, words=False)

    def to_bits(self) -> Tensor:
        """Return int32 words ``[*, H, Nq, ceil(Nk / 32)]``.

        Key block j is bit j % 32, from the lowest, of word j // 32; bits past the last key block are zero.
        """
        return mask_conversion.to_flags(self.counts, self.indices, self.key_blocks, words=True)

    @classmethod
    def from_bool(cls, dense: Tensor, block_size: tuple[int, int], *, width: int | None = None) -> BlockMask:
        """Pack bool ``[*, H, Nq, Nk]``.

        Args:
            dense: True where a block is kept.
            block_size: tokens of a (query, key) block.
            width: K, at least the count of every row that is not full. Without it the call synchronises once, to
                learn the longest list.

        Raises:
            ValueError: ``dense`` is not bool, or a row does not fit into the width. On a GPU, where nobody waits for
                the counts, the latter is an assertion on the device.
        """
        if dense.dtype != torch.bool:
            raise ValueError(f"a mask of one element a block must be bool, got {dense.dtype}")
        key_blocks = dense.shape[-1]
        return cls._of_flags(dense, key_blocks, block_size, width)

    @classmethod
    def from_bits(
        cls, bits: Tensor, key_blocks: int, block_size: tuple[int, int], *, width: int | None = None
    ) -> BlockMask:
        """Pack int32 words ``[*, H, Nq, ceil(Nk / 32)]``, as :meth:`to_bits` returns them.

        Bits past the last key block are ignored. ``width`` and errors as in :meth:`from_bool`.
        """
        words = ceil_div(key_blocks, WORD_BITS)
        if bits.dtype != torch.int32 or bits.shape[-1] != words:
            raise ValueError(
                f"bits of {key_blocks} key blocks must be int32 [*, H, Nq, {words}], "
                f"got {bits.dtype} {tuple(bits.shape)}"
            )
        return cls._of_flags(bits, key_blocks, block_size, width)

    @classmethod
    def _of_flags(cls, flags: Tensor, key_blocks: int, block_size: tuple[int, int], width: int | None) -> BlockMask:
        lists = mask_conversion.to_lists(flags, key_blocks, width, index_dtype(key_blocks))
        return cls(*lists, key_blocks, block_size)

    @classmethod
    def full(
        cls,
        heads: int,
        query_blocks: int,
        key_blocks: int,
        block_size: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> BlockMask:
        """A mask that keeps every block."""
        counts = torch.full((heads, query_blocks), key_blocks, dtype=torch.int32, device=device)
        indices = torch.zeros(heads, query_blocks, 1, dtype=index_dtype(key_blocks), device=device)
        return cls(counts, indices, key_blocks, block_size)
