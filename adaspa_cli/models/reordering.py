"""Video tokens in another order, or only some of them, between the module that embeds them and the one that projects
them out.

Attention needs the positions of its tokens, but not their order, and everything else in a transformer's blocks treats
each token by itself. So a transformer computes the same, but for rounding, with its tokens and their rotary tables
permuted once on the way in and back once on the way out. Only block-sparse attention sees the order. In the same way
each of several processes can have a part of the tokens, as long as attention brings them together.

Shapes: B batch, T text tokens, N video tokens, C channels, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adaspa_cli.attention import TokenLayout
from adaspa_cli.masks.token_order import video_order

Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Ends:
    """Where video tokens enter and leave the blocks of a transformer.

    Attributes:
        embedder: gives [B, N, C], or [B, T + N, C] where text comes first; None where ``first_block`` is the way in.
        projector: takes [B, N, C] after the last block.
        rotary: gives the rotary tables; None where the caller passes them through :meth:`Rearrangement.rotary`.
        first_block: takes [B, N, C] as its first argument, where no module gives tokens.
    """

    embedder: nn.Module | None
    projector: nn.Module
    rotary: nn.Module | None = None
    first_block: nn.Module | None = None


class Way(Protocol):
    """What is done to the video tokens along a dimension on the way in, and undone on the way out."""

    def enter(self, x: Tensor, dim: int, layout: TokenLayout) -> Tensor: ...
    def leave(self, x: Tensor, dim: int, layout: TokenLayout) -> Tensor: ...


class HilbertOrder:
    """The order along a Hilbert curve."""

    def enter(self, x: Tensor, dim: int, layout: TokenLayout) -> Tensor:
        return video_order(layout, x.device).apply(x, dim)

    def leave(self, x: Tensor, dim: int, layout: TokenLayout) -> Tensor:
        return video_order(layout, x.device).undo(x, dim)


class Rearrangement:
    """Hooks on one transformer that rearrange its video tokens and bring them back; :meth:`remove` takes them off.

    A later one works on what an earlier one gives, and is undone before it.
    """

    def __init__(self, ends: Ends, layout: Callable[[], TokenLayout], way: Way) -> None:
        """
        Args:
            ends: the modules between which tokens are rearranged.
            layout: of the whole sequence in the forward pass in progress.
            way: what is done.
        """
        self._layout, self._way = layout, way
        self._hooks = [ends.projector.register_forward_hook(self._leave, prepend=True)]
        if ends.embedder is not None:
            self._hooks.append(ends.embedder.register_forward_hook(lambda _module, _args, out: self._enter(out)))
        if ends.first_block is not None:
            self._hooks.append(
                ends.first_block.register_forward_pre_hook(lambda _module, args: (self._enter(args[0]), *args[1:]))
            )
        if ends.rotary is not None:
            self._hooks.append(ends.rotary.register_forward_hook(lambda _module, _args, tables: self.rotary(tables)))

    def rotary(self, tables: Sequence[Tensor]) -> Rotary:
        """Cosines and sines, [N, D] or [1, N, 1, D], of the tokens that the blocks get."""
        cosines, sines = (self.tokens(x, 0 if x.dim() == 2 else 1) for x in tables)
        return cosines, sines

    def tokens(self, x: Tensor, dim: int) -> Tensor:
        """What belongs to each video token, along ``dim``, of the tokens that the blocks get."""
        return self._way.enter(x, dim, self._layout())

    def _enter(self, embedded: Tensor) -> Tensor:
        start = embedded.shape[1] - self._layout().video_tokens
        video = self.tokens(embedded[:, start:], 1)
        return torch.cat([embedded[:, :start], video], dim=1) if start else video

    def _leave(self, _module: nn.Module, _args: Any, projected: Tensor) -> Tensor:
        return self._way.leave(projected, 1, self._layout())

    def remove(self) -> None:
        """Take all hooks off."""
        for hook in self._hooks:
            hook.remove()
