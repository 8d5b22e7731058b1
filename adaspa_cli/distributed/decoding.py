"""A VAE's tiles, decoded by several processes and put together by one as diffusers does it.

The VAE's own ``decode`` runs twice. The first time its decoder works on this process's tiles alone and answers every
call with a tiny stand-in, so that what is blended is of no size and no matter. Then the first process gets all tiles,
and runs ``decode`` again with a decoder that answers with these: blending is diffusers' own, in any VAE, and the video
is the same. A tile is a call of the decoder, or the calls that hand on a state in time (CogVideoX, Wan). A VAE that
makes one tile decodes it in the first process.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adaspa_cli.distributed.team import Team
from adaspa_cli.hooks.override import Override

_DIMENSIONS = 5  # of a decoded tile: batch, channels, frames, height, width


def spread_decoding(vae: Any, team: Team) -> Override:
    """Let the processes of a team decode together, until the override is restored.

    All call ``vae.decode`` with the same latents; the first one gets the video, the others something tiny.
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def decode(*args: Any, **kwargs: Any) -> Any:
            tiles, spans = _Tiles(vae, team), len(team.spans)
            video = tiles.at_work(tiles.compute, lambda: original(*args, **kwargs))
            whole = tiles.gather()
            del team.spans[spans:]  # they are those of denoising
            if team.rank:
                return video
            return tiles.at_work(lambda _forward: _replay(whole), lambda: original(*args, **kwargs))

        return decode

    return Override(vae, "decode", wrap)


class _Tiles:
    """The tiles of one decoding: this process's are decoded, all are counted."""

    def __init__(self, vae: Any, team: Team) -> None:
        self._vae, self._team = vae, team
        self._tile = -1
        self._calls: list[int] = []  # by call of the decoder, the process whose it is
        self._own: list[Tensor] = []
        patch = getattr(vae.config, "patch_size", None) or 1  # of Wan 2.2: channels become pixels afterwards
        self._channels = 3 * patch**2

    def at_work(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]], decode: Callable[[], Any]) -> Any:
        """Decode with another decoder."""
        override = Override(self._vae.decoder, "forward", wrap)
        try:
            return decode()
        finally:
            override.restore()

    def compute(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(z: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._tile += _begins(kwargs)
            owner = self._tile % self._team.size
            self._calls.append(owner)
            decoded, state = None, kwargs.get("conv_cache") or {}
            if owner == self._team.rank:
                decoded = original(z, *args, **kwargs)
                if isinstance(decoded, tuple):
                    decoded, state = decoded
                self._own.append(decoded)
            stand_in = z.new_zeros(len(z), self._channels, 1, 1, 1)
            return (stand_in, state or {"": None}) if "conv_cache" in kwargs else stand_in

        return forward

    def gather(self) -> list[Tensor]:
        """What the decoder makes, by call; for the first process."""
        team, device = self._team, (self._own[0] if self._own else next(self._vae.parameters())).device
        counts = [self._calls.count(member) for member in range(team.size)]
        shapes = torch.tensor([tile.shape for tile in self._own], dtype=torch.int64, device=device)
        table = team.gather(shapes.view(-1, _DIMENSIONS), counts).tolist()
        by_member = [table[sum(counts[:member]) : sum(counts[: member + 1])] for member in range(team.size)]
        sizes = [sum(math.prod(shape) for shape in shapes) for shapes in by_member]
        dtype = self._vae.dtype if not self._own else self._own[0].dtype
        sent = torch.cat([tile.flatten() for tile in self._own]) if self._own else torch.empty(0, dtype=dtype)
        into = torch.empty(0 if team.rank else sum(sizes), dtype=dtype, device=device)
        send = [len(sent), *[0] * (team.size - 1)]
        team.all_to_all(sent.to(device), send, into, [0] * team.size if team.rank else sizes).wait()
        self._own.clear()
        if team.rank:
            return []
        parts = [
            iter([piece.view(shape) for piece, shape in zip(_split(part, shapes), shapes, strict=True)])
            for part, shapes in zip(torch.split(into, sizes), by_member, strict=True)
        ]
        return [next(parts[owner]) for owner in self._calls]


def _split(part: Tensor, shapes: list[list[int]]) -> tuple[Tensor, ...]:
    return torch.split(part, [math.prod(shape) for shape in shapes])


def _replay(tiles: list[Tensor]) -> Callable[..., Any]:
    """A decoder that answers with these, one after another. Blending writes into them: each is used once."""
    left = itertools.chain(tiles)

    def forward(_z: Tensor, *_args: Any, **kwargs: Any) -> Any:
        return (next(left), {"": None}) if "conv_cache" in kwargs else next(left)

    return forward


def _begins(kwargs: dict[str, Any]) -> bool:
    """Whether a call of the decoder begins a tile: it gets no state of the call before."""
    if "conv_cache" in kwargs:
        return not kwargs["conv_cache"]
    return bool(kwargs.get("first_chunk", "feat_cache" not in kwargs))
