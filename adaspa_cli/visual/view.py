"""The video view: the key blocks that a query token's mask keeps, as a heat map over the frames.

The page draws it in the browser for any token that is touched; here the same for one token, as a PNG file.
"""

from __future__ import annotations

import base64
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from adaspa_cli.attention import TokenLayout
from adaspa_cli.masks.token_order import token_blocks
from adaspa_cli.report.media import small

_HEIGHT = 160  # pixels of a frame
_ACROSS = 4  # frames side by side in the PNG file
_GAP = 6
_LEFT_OUT = (12, 18, 34, 0.62)  # red, green, blue, strength of what is painted over a frame
_KEPT = (255, 140, 0)
_FAINTEST, _STRONGEST = 0.10, 0.75
_QUERY = (0, 230, 255)


def query_block(layout: TokenLayout, block_size: int, query: tuple[int, int, int]) -> int:
    """The query block of a token (frame, row, column)."""
    frame, row, column = query
    return int(token_blocks(layout, block_size)[(frame * layout.height + row) * layout.width + column])


def token_strength(view_row: Tensor, layout: TokenLayout, block_size: int) -> NDArray[np.uint8]:
    """What a row of a view [Nk] says of each token: uint8 [frames, height, width], 0 where it is left out."""
    tokens: NDArray[np.uint8] = view_row[token_blocks(layout, block_size)].numpy()
    return tokens.reshape(layout.frames, layout.height, layout.width)


def frames_shown(frames: NDArray[np.uint8] | None, layout: TokenLayout) -> NDArray[np.uint8]:
    """A small picture [F, h, w, 3] of each frame of tokens: the nearest in time, or grey if there is no video."""
    if frames is None:
        size = (layout.frames, _HEIGHT, max(2, round(_HEIGHT * layout.width / layout.height)), 3)
        return np.full(size, 150, np.uint8)
    nearest = np.linspace(0, len(frames) - 1, layout.frames).round().astype(int)
    return small(frames[nearest], _HEIGHT)


def paint(frames: NDArray[np.uint8], strength: NDArray[np.uint8], query: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Frames [F, h, w, 3] with the strength of each token painted over, and the query token: the sheet [*, *, 3]."""
    share = (_FAINTEST + (_STRONGEST - _FAINTEST) * (strength.astype(float) - 1) / 254)[..., None]
    left_out = strength[..., None] == 0
    alpha = np.where(left_out, _LEFT_OUT[3], share)
    colour = np.where(left_out, _LEFT_OUT[:3], _KEPT)
    alpha[query], colour[query] = 1, _QUERY
    height, width = frames.shape[1:3]
    rows = np.arange(height) * strength.shape[1] // height
    columns = np.arange(width) * strength.shape[2] // width
    over = np.ix_(range(len(frames)), rows, columns)
    painted = (frames * (1 - alpha[over]) + colour[over] * alpha[over]).round().astype(np.uint8)
    across = min(_ACROSS, len(frames))
    padded = np.pad(painted, ((0, -len(painted) % across), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    sheet = padded.reshape(-1, across, *padded.shape[1:]).swapaxes(1, 2)
    return sheet.reshape(sheet.shape[0] * sheet.shape[1], -1, 3)[:-_GAP, :-_GAP]


def draw_query(sheet: NDArray[np.uint8], path: Path) -> None:
    """Write a sheet as a PNG file."""
    Image.fromarray(sheet).save(path, "PNG", optimize=True)


def packed(view: Tensor) -> str:
    """Numbers for the page, such as a view [Nq, Nk]: zlib, then base64."""
    return base64.b64encode(zlib.compress(view.contiguous().numpy().tobytes(), 9)).decode("ascii")


def style() -> dict[str, Any]:
    """How the page paints, so that both ways look alike."""
    return {
        "leftOut": [*_LEFT_OUT[:3], round(255 * _LEFT_OUT[3])],
        "kept": _KEPT,
        "alpha": [round(255 * _FAINTEST), round(255 * _STRONGEST)],
        "query": [*_QUERY, 255],
    }
