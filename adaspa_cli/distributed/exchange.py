"""Attention of one row: from all heads of some tokens to all tokens of some heads, and back.

The video's q, k and v are exchanged by one all-to-all each; the text's heads are taken locally, because every process
has them. Outputs return in a single all-to-all, those of the text to every process.

Shapes: H heads of the layer, h of them here, L tokens of the row, l of them here (its part of the video, and the text),
N and n those of the video, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from adaspa_cli.attention.layout import TokenLayout
from adaspa_cli.distributed.heads import Heads, in_a_row, index_of, pick, pick_into
from adaspa_cli.distributed.tokens import TokenShare


class Row(Protocol):
    """A row of the batch."""

    @property
    def layout(self) -> TokenLayout: ...


Attend = Callable[[int, Any, Tensor, Tensor, Tensor], Tensor]
HeadsOf = Callable[[int, Any, int], Heads]


class Exchange:
    """An attention function of some tokens, made of one of some heads; an ``Attend`` of a
    :class:`~adaspa_cli.models.forward.Forward`."""

    def __init__(self, share: TokenShare, heads_of: HeadsOf, attend: Attend) -> None:
        """
        Args:
            share: says whose the tokens are.
            heads_of: the heads of this process in the coming call of a layer and row, out of so many.
            attend: attends with these heads: q, k, v [1, h, L, D] to output [1, h, L, D].
        """
        self._share, self._heads_of, self._attend = share, heads_of, attend

    def __call__(self, layer: int, row: Row, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: q, k, v [1, H, l, D] to output [1, H, l, D]; every process calls it."""
        heads = self._heads_of(layer, row, q.shape[1])
        with self._share.team.timed(q.device):
            sent = [self._to_heads(x[0].transpose(0, 1), heads, row.layout) for x in (q, k, v)]
            for _, work in sent:
                work.wait()
        whole = (joint.transpose(0, 1)[None] for joint, _ in sent)
        out = self._attend(layer, row, *whole)
        with self._share.team.timed(q.device):
            return self._to_tokens(out[0].transpose(0, 1), heads, row.layout).transpose(0, 1)[None]

    def _to_heads(self, x: Tensor, heads: Heads, layout: TokenLayout) -> tuple[Tensor, Any]:
        """Begin to bring x [l, H, D] to the tokens of all members; [L, h, D] when the work is done."""
        own, head_dim = len(self._share.own(layout)), x.shape[2]
        start = layout.video_start
        video = x[start : start + own]
        sent = x.new_empty(own * x.shape[1] * head_dim)
        send = [own * count * head_dim for count in heads.sizes]
        for piece, hand in zip(torch.split(sent, send), heads.deal, strict=True):
            pick_into(piece.view(own, len(hand), head_dim), video, hand, 1)
        mine = heads.deal[heads.team.rank]
        joint = x.new_empty(layout.tokens, len(mine), head_dim)
        text = pick(x, mine, 1)
        joint[:start] = text[:start]
        joint[start + layout.video_tokens :] = text[start + own :]
        receive = [count * len(mine) * head_dim for count in self._share.sizes(layout)]
        into = joint[start : start + layout.video_tokens]
        return joint, _Held(heads.team.all_to_all(sent, send, into, receive), sent)

    def _to_tokens(self, x: Tensor, heads: Heads, layout: TokenLayout) -> Tensor:
        """Bring x [L, h, D] back to the heads of all members: [l, H, D]."""
        sizes, head_dim, start = self._share.sizes(layout), x.shape[2], layout.video_start
        before, videos, after = x[:start], x[start : start + layout.video_tokens], x[start + layout.video_tokens :]
        pieces = [part for video in torch.split(videos, sizes) for part in (before, video, after)]
        own = self._share.tokens(layout)
        receive = [own * count * head_dim for count in heads.sizes]
        sent, into = torch.cat(pieces).contiguous(), x.new_empty(sum(receive))
        send = [(size + layout.text_tokens) * x.shape[1] * head_dim for size in sizes]
        heads.team.all_to_all(sent, send, into, receive).wait()
        out = x.new_empty(own, sum(heads.sizes), head_dim)
        for piece, hand in zip(torch.split(into, receive), heads.deal, strict=True):
            piece = piece.view(own, len(hand), head_dim)
            if in_a_row(hand):
                out[:, hand[0] : hand[-1] + 1] = piece
            else:
                out.index_copy_(1, index_of(hand, out.device), piece)
        return out


class _Held:
    """Work in progress, and the memory that it reads."""

    def __init__(self, work: Any, sent: Tensor) -> None:
        self._work, self._sent = work, sent

    def wait(self) -> None:
        self._work.wait()
