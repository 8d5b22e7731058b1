"""What a processor knows of the forward pass that it is called in, and how it attends.

A processor computes q, k and v as its model does, and hands attention over to an :class:`Attend`. It learns what
the rows of the batch are from :class:`Forward`, which a hook on the transformer fills before each forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.errors import RunError


@dataclass(frozen=True)
class Row:
    """One row of the batch: the guidance branch and video that it belongs to, and its token sequence."""

    branch: str
    sample: int
    layout: TokenLayout


class Attend(Protocol):
    """Attention of one row in one layer: q, k, v [1, H, L, D] without padding to output [1, H, L, D].

    L is the number of tokens that are here, see :attr:`Forward.tokens`.
    """

    def __call__(self, layer: int, row: Row, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


@dataclass
class Forward:
    """The forward pass in progress, and the function that attends.

    Attributes:
        attend: where a sequence is split over processes, it exchanges what they have.
        rows: of the batch; their layouts are those of whole sequences.
        tokens: how many tokens of a sequence are here.
    """

    attend: Attend
    rows: Sequence[Row] = ()
    tokens: Callable[[TokenLayout], int] = lambda layout: layout.tokens

    def attend_rows(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        """Attend row by row over the real tokens of q, k, v [B, L, H, D]; padding stands last in a row.

        Conditional rows are attended first, because the others may use their masks.

        Returns:
            Per row [1, real tokens, H * D].

        Raises:
            RunError: there are more rows than the inputs of the transformer have.
        """
        if q.shape[0] > len(self.rows):
            raise RunError(f"attention got a batch of {q.shape[0]}, and the transformer one of {len(self.rows)}")
        # A cache may leave out the unconditional rows, which come first.
        rows = self.rows[-q.shape[0] :]
        outputs = {}
        for index in sorted(range(len(rows)), key=lambda index: rows[index].branch != "cond"):
            row = rows[index]
            real = slice(0, self.tokens(row.layout))
            parts = (x[index : index + 1, real].transpose(1, 2) for x in (q, k, v))
            outputs[index] = self.attend(layer, row, *parts).transpose(1, 2).flatten(2)
        return [outputs[index] for index in range(len(rows))]


def join(rows: Sequence[Tensor]) -> Tensor:
    """Rows [1, n, C] to a batch [B, n, C]; a batch of one is not copied.

    Such a batch gets the strides that its shape has when it is no part of a longer row: a compiled block looks at them,
    and would be recompiled for each text length.
    """
    return rows[0].squeeze(0).unsqueeze(0) if len(rows) == 1 else torch.cat(list(rows))


def pad_tokens(x: Tensor, tokens: int) -> Tensor:
    """Fill x [1, n, C] with zeros to [1, tokens, C]: the output of padded text."""
    return x if x.shape[1] == tokens else torch.nn.functional.pad(x, (0, 0, 0, tokens - x.shape[1]))
