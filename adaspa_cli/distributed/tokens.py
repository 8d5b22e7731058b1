"""Which process has which video tokens between attention calls. Every process has all text tokens.

Shapes: N video tokens, n of them here, T text tokens.
"""

from __future__ import annotations

from torch import Tensor

from adaspa_cli.attention.layout import TokenLayout
from adaspa_cli.distributed.team import Team, even_parts


class TokenShare:
    """Even parts of the video in the order of the sequence; the layout alone gives their sizes."""

    def __init__(self, team: Team) -> None:
        self.team = team

    def sizes(self, layout: TokenLayout) -> list[int]:
        """Video tokens of each member."""
        return even_parts(layout.video_tokens, self.team.size)

    def own(self, layout: TokenLayout) -> range:
        """The video tokens of this process, counted from the first of the video."""
        sizes = self.sizes(layout)
        start = sum(sizes[: self.team.rank])
        return range(start, start + sizes[self.team.rank])

    def tokens(self, layout: TokenLayout) -> int:
        """Tokens that this process has of a sequence, the text included."""
        return len(self.own(layout)) + layout.text_tokens

    def enter(self, x: Tensor, dim: int, layout: TokenLayout) -> Tensor:
        """Of N video tokens along ``dim`` those of this process; a copy, so that the others' memory is given back."""
        own = self.own(layout)
        return x.narrow(dim, own.start, len(own)).clone()

    def leave(self, x: Tensor, dim: int, layout: TokenLayout) -> Tensor:
        """The video tokens of all members; every process calls it."""
        return self.team.gather(x, self.sizes(layout), dim)
