"""The order of the video tokens in the sequence: frame by frame as models have it, or along a 3D Hilbert curve.

Consecutive tokens of a Hilbert curve are neighbours in frame, row and column, so a block of them is a compact piece of
the video. Its tokens attend to much the same keys, and its keys have much the same values: what a block mask keeps
weighs more, and what it leaves out is closer to its mean. Dense attention does not depend on the order.

The curve runs through the smallest cube of a power of two that holds the video, and places outside of the video are
left out: any size will do, and nothing is padded. The index is J. Skilling's (Programming the Hilbert curve, AIP Conf.
Proc. 707, 2004).

Shapes: N video tokens, L tokens of the sequence.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from adaspa_cli.attention import TokenLayout

_AXES = 3
_CACHED_ORDERS = 8  # one a video size and device; 1 MB each at 118,784 tokens


@dataclass(frozen=True)
class TokenOrder:
    """One permutation of a sequence, and its inverse.

    Attributes:
        forward: int64 [L], the token (in the model's order) that comes to each place.
        backward: int64 [L], the place that each token comes to.
    """

    forward: Tensor
    backward: Tensor

    def apply(self, x: Tensor, dim: int) -> Tensor:
        """Bring L tokens along ``dim`` from the model's order into this one; copies."""
        return x.index_select(dim, self.forward)

    def undo(self, x: Tensor, dim: int) -> Tensor:
        """Bring L tokens along ``dim`` back into the model's order; copies."""
        return x.index_select(dim, self.backward)


def video_order(layout: TokenLayout, device: torch.device | str = "cpu") -> TokenOrder:
    """The Hilbert order of the N video tokens, counted from the first of them; cached for each size."""
    return _video_order(layout.frames, layout.height, layout.width, layout.lead_frames, torch.device(device))


def token_places(layout: TokenLayout, device: torch.device | str = "cpu") -> Tensor:
    """Place in the sequence of each video token, int64 [N]; the tokens frame by frame and row by row."""
    places = torch.arange(layout.video_tokens, device=device)
    if layout.order == "hilbert":
        places = video_order(layout, device).backward
    return places + layout.video_start


def token_blocks(layout: TokenLayout, block_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Block of the sequence that each video token is in, int64 [N]; the tokens as in :func:`token_places`."""
    return token_places(layout, device) // block_size


@functools.lru_cache(_CACHED_ORDERS)
def _video_order(frames: int, height: int, width: int, lead_frames: int, device: torch.device) -> TokenOrder:
    lead, rest = (_along_curve(n, height, width) for n in (lead_frames, frames - lead_frames))
    forward = torch.cat([lead, rest + len(lead)])
    return TokenOrder(forward.to(device), torch.argsort(forward).to(device))


def _along_curve(frames: int, height: int, width: int) -> Tensor:
    """The tokens of a video in the order of the curve, int64 [N]."""
    places = (torch.arange(size, device="cpu") for size in (frames, height, width))
    frame, row, column = torch.meshgrid(*places, indexing="ij")
    bits = max(1, (max(frames, height, width) - 1).bit_length())
    return torch.argsort(hilbert_index(frame, row, column, bits).flatten())


def hilbert_index(frame: Tensor, row: Tensor, column: Tensor, bits: int) -> Tensor:
    """Place on the Hilbert curve through a cube of 2^bits a side, int64 of the shape of the coordinates."""
    x = [axis.clone() for axis in (frame, row, column)]
    for bit in range(bits - 1, 0, -1):  # undo the reflections and exchanges of the axes in each level's octant
        low = (1 << bit) - 1
        for axis in range(_AXES):
            reflected = (x[axis] >> bit) & 1 == 1
            exchanged = (x[0] ^ x[axis]) & low
            first = torch.where(reflected, x[0] ^ low, x[0] ^ exchanged)
            if axis:
                x[axis] = torch.where(reflected, x[axis], x[axis] ^ exchanged)
            x[0] = first
    for axis in range(1, _AXES):  # Gray code
        x[axis] ^= x[axis - 1]
    turned = torch.zeros_like(x[0])
    for bit in range(bits - 1, 0, -1):
        turned = torch.where((x[-1] >> bit) & 1 == 1, turned ^ ((1 << bit) - 1), turned)
    index = torch.zeros_like(x[0])
    for bit in range(bits - 1, -1, -1):
        for coordinate in x:
            index = (index << 1) | (((coordinate ^ turned) >> bit) & 1)
    return index
