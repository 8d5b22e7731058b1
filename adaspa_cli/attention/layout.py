"""Where video and text are in the joint token sequence of a video diffusion transformer. Imports nothing heavy."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from adaspa_cli.config.names import OrderName as OrderName
from adaspa_cli.errors import ConfigError

INT16_BLOCKS = 32_768  # key blocks from which an index no longer fits into 16 bits
WORD_BITS = 32  # blocks in a word of a packed mask


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class TokenLayout:
    """One sequence of ``frames * height * width`` video tokens and ``text_tokens`` real text tokens.

    Sizes are in tokens of the latent grid (after patching). Video tokens come frame by frame and row by row
    (``raster``), or along a Hilbert curve (:mod:`adaspa_cli.masks.token_order`), which restarts after
    ``lead_frames`` frames where a model treats these apart. Padded text is not part of the sequence: adapters drop it
    before attention.
    """

    frames: int
    height: int
    width: int
    text_tokens: int
    text_position: Literal["first", "last"]
    order: OrderName = "raster"
    lead_frames: int = 0

    @property
    def video_tokens(self) -> int:
        return self.frames * self.height * self.width

    @property
    def tokens(self) -> int:
        return self.video_tokens + self.text_tokens

    @property
    def video_start(self) -> int:
        """Place of the first video token."""
        return self.text_tokens if self.text_position == "first" else 0

    def blocks(self, block_size: int) -> int:
        """Number of blocks of the whole sequence; the last may be ragged."""
        return ceil_div(self.tokens, block_size)

    def video_blocks(self, block_size: int) -> range:
        """Blocks without a single text token. A block that straddles video and text counts as text."""
        if self.text_tokens == 0:
            return range(self.blocks(block_size))
        if self.text_position == "last":
            return range(self.video_tokens // block_size)
        return range(ceil_div(self.text_tokens, block_size), self.blocks(block_size))

    def text_blocks(self, block_size: int) -> range:
        """Blocks with at least one text token: the complement of :meth:`video_blocks`."""
        video = self.video_blocks(block_size)
        if self.text_position == "last":
            return range(video.stop, self.blocks(block_size))
        return range(video.start)


def check_video_block(layout: TokenLayout, block_size: int) -> None:
    """Raise ConfigError for a video without a single block of its own, whose masks have nothing to leave out."""
    if not layout.video_blocks(block_size):
        raise ConfigError(
            f"{layout.video_tokens} video tokens fill no block of {block_size}",
            hint="make a larger video, or use smaller blocks, as --set block_size=32",
        )


def same_video_blocks(before: TokenLayout, now: TokenLayout, block_size: tuple[int, int]) -> bool:
    """Whether the blocks without text hold the same tokens of the video."""
    same_video = dataclasses.replace(before, text_tokens=now.text_tokens) == now
    shift = now.video_start - before.video_start
    return same_video and all(
        shift % size == 0 and len(before.video_blocks(size)) == len(now.video_blocks(size)) for size in block_size
    )
