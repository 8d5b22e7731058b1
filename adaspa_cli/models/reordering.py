"""Video tokens in another order between the module that embeds them and the one that projects them out.

Attention needs the positions of its tokens, but not their order, and everything else in a transformer's blocks treats
each token by itself. So a transformer computes the same, but for rounding, with its tokens and their rotary tables
permuted once on the way in and back once on the way out. Only block-sparse attention sees the order.

Shapes: B batch, T text tokens, N video tokens, C channels, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from adaspa_cli.attention import TokenLayout
from adaspa_cli.masks.token_order import TokenOrder, video_order

Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Ends:
    """Where video tokens enter and leave the blocks of a transformer.

    Attributes:
        embedder: gives [B, N, C], or [B, T + N, C] where text comes first.
        projector: takes [B, N, C] after the last block.
        rotary: gives the rotary tables; None where the caller passes them through :meth:`Reordering.rotary`.
    """

    embedder: nn.Module
    projector: nn.Module
    rotary: nn.Module | None = None


class Reordering:
    """Hooks on one transformer that bring video tokens into the Hilbert order and back; :meth:`remove` takes them
    off."""

    def __init__(
        self,
        ends: Ends,
        layout: Callable[[], TokenLayout],
    ) -> None:
        """
        Args:
            ends: the modules between which tokens are in another order.
            layout: of the forward pass in progress.
        """
        self._layout = layout
        self._hooks = [
            ends.embedder.register_forward_hook(self._enter),
            ends.projector.register_forward_hook(lambda _module, _args, out: self._leave(out)),
        ]
        if ends.rotary is not None:
            self._hooks.append(ends.rotary.register_forward_hook(lambda _module, _args, tables: self.rotary(tables)))

    def rotary(self, tables: Sequence[Tensor]) -> Rotary:
        """Cosines and sines [N, D] of the tokens in the order of the layout."""
        cosines, sines = (self._order(x).apply(x, 0) for x in tables)
        return cosines, sines

    def _enter(self, _module: nn.Module, _args: Any, embedded: Tensor) -> Tensor:
        start = embedded.shape[1] - self._layout().video_tokens
        video = self._order(embedded).apply(embedded[:, start:], 1)
        if not start:
            return video
        out = embedded.clone()
        out[:, start:] = video
        return out

    def _leave(self, projected: Tensor) -> Tensor:
        return self._order(projected).undo(projected, 1)

    def _order(self, x: Tensor) -> TokenOrder:
        return video_order(self._layout(), x.device)

    def remove(self) -> None:
        """Take all hooks off."""
        for hook in self._hooks:
            hook.remove()
