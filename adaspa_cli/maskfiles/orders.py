"""Masks of the same tokens in two orders, compared by what they stand for: pairs of a query and a key token.

No block of one order holds the tokens of a block of the other. But the pairs of tokens that a mask keeps are the same
in any order, and can be counted without a matrix of them all: with n_ij the tokens that block i of the first file and
block j of the second have in common, the pairs that masks A and B both keep are Σ A_pq (n B nᵀ)_pq.

Shapes: H heads, R blocks without text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaspa_cli.maskfiles.description import Description
from adaspa_cli.masks.token_order import token_blocks


@dataclass(frozen=True)
class TokenPairs:
    """The blocks of two files.

    Attributes:
        common: n, tokens that a block without text of the first file and one of the second have in common: sparse
            float32 [R, R]. Tokens that share a block with text in either file are left out.
    """

    common: Tensor

    @classmethod
    def of(cls, first: Description, second: Description) -> TokenPairs:
        """Of two files of one video size."""
        places = torch.stack([_video_block(facts) for facts in (first, second)])
        places = places[:, (places >= 0).all(0)]
        ones = torch.ones(places.shape[1], device="cpu")
        size = (first.video_blocks, second.video_blocks)
        return cls(torch.sparse_coo_tensor(places, ones, size, device="cpu", check_invariants=True).coalesce())

    def iou(self, first: Tensor, second: Tensor) -> Tensor:
        """Pairs of tokens that both masks keep over those that either keeps: bool [H, R, R] twice to float32 [H].

        1 where neither keeps a pair.
        """
        sizes = [torch.sparse.sum(self.common, dim).to_dense().double() for dim in (1, 0)]
        found = []
        for a, b in zip(first, second, strict=True):
            there = self.common @ (self.common @ b.float()).T  # [R, R]: of each pair of the first's blocks, transposed
            both = (there.T.double() * a).sum()
            pairs = [n @ kept.double() @ n for n, kept in zip(sizes, (a, b), strict=True)]
            either = pairs[0] + pairs[1] - both
            found.append(torch.where(either > 0, both / either, 1.0))
        return torch.stack(found).float()


def _video_block(facts: Description) -> Tensor:
    """The block of each token, counted from the first without text; -1 where it has text."""
    video = facts.layout.video_blocks(facts.block_size)
    blocks = token_blocks(facts.layout, facts.block_size)
    return torch.where((blocks >= video.start) & (blocks < video.stop), blocks - video.start, -1)
