"""The block mask: which key blocks each query block attends to. One definition for every method and kernel.

Shapes: H heads, Nq query blocks, Nk key blocks, K the width of the index lists; ``*`` is an optional batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

INT16_BLOCKS = 32_768


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
        width = self.indices.shape[-1]
        slots = torch.arange(width, device=self.device)
        full = (self.counts == self.key_blocks)[..., None]
        listed = (slots < self.counts[..., None]) & ~full
        # One extra column swallows the unused slots, so that they need no branch.
        columns = torch.where(listed, self.indices.long(), self.key_blocks)
        dense = torch.zeros(*self.counts.shape, self.key_blocks + 1, dtype=torch.bool, device=self.device)
        dense.scatter_(-1, columns, True)
        return dense[..., :-1] | full

    @classmethod
    def from_bool(cls, dense: Tensor, block_size: tuple[int, int]) -> BlockMask:
        """Pack bool ``[*, H, Nq, Nk]``. Synchronises once, to learn the longest list."""
        key_blocks = dense.shape[-1]
        counts = dense.sum(-1, dtype=torch.int32)
        partial = torch.where(counts == key_blocks, 0, counts)
        width = max(1, int(partial.max()) if partial.numel() else 1)
        kept_first = torch.argsort((~dense).to(torch.uint8), dim=-1, stable=True)[..., :width]
        slots = torch.arange(width, device=dense.device)
        indices = torch.where(slots < partial[..., None], kept_first, 0)
        return cls(counts, indices.to(index_dtype(key_blocks)), key_blocks, block_size)

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
