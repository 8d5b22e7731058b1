"""A sheet of pictures with captions: what both pictures of weights and pictures of masks are drawn on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

# In pixels. A sheet of many tiles is shown smaller than it is, so its letters are larger.
_SIDE, _GAP = 256, 12
_FONTS, _TILES_PER_FONT = (14, 24), 64  # smallest and largest; width of a row of tiles over the font's size
_INK, _FRAME = "#282828", "#a8a8a8"


@dataclass(frozen=True)
class Tile:
    """A picture, one pixel a cell, and the lines above it."""

    image: Image.Image
    caption: Sequence[str]


def draw_sheet(mode: str, titles: Sequence[str], rows: Sequence[tuple[str, Sequence[Tile]]]) -> Image.Image:
    """Draw rows of tiles of one size, each row with its label at the left, below the titles.

    A cell is a square of whole pixels: to draw it at another size would bring back what the means of areas avoid.
    Columns and sheet are as wide as their text needs. Letters grow with the width of the rows.

    Args:
        mode: of the sheet, as Pillow names it: ``"L"`` or ``"RGB"``.
    """
    tiles = [tile for _, row in rows for tile in row]
    lines = max(len(tile.caption) for tile in tiles)
    size = tiles[0].image.size
    wide, high = (pixels * max(1, round(_SIDE / size[0])) for pixels in size)
    letters = min(_FONTS[1], max(_FONTS[0], wide * max(len(row) for _, row in rows) // _TILES_PER_FONT))
    font, title_line, caption_line = ImageFont.load_default(letters), letters * 4 // 3, letters * 7 // 6
    above = lines * caption_line + _GAP // 2
    across = max(wide, *(_width(font, line) for tile in tiles for line in tile.caption)) + _GAP
    before = max(_width(font, label) for label, _ in rows) + _GAP
    down, top = above + high + _GAP, len(titles) * title_line + _GAP
    widest = max(len(row) * across for _, row in rows)
    width = before + max(widest, *(_width(font, title) + _GAP for title in titles))
    sheet = Image.new(mode, (width, top + len(rows) * down), "white")
    pen = ImageDraw.Draw(sheet)
    for number, title in enumerate(titles):
        pen.text((before, 4 + number * title_line), title, fill=_INK, font=font)
    for number, (label, row) in enumerate(rows):
        upper = top + number * down
        pen.text((4, upper + above + (high - letters) // 2), label, fill=_INK, font=font)
        for column, tile in enumerate(row):
            left = before + column * across
            for line, text in enumerate(tile.caption):
                pen.text((left, upper + line * caption_line), text, fill=_INK, font=font)
            picture = tile.image.resize((wide, high), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, upper + above))
            pen.rectangle((left - 1, upper + above - 1, left + wide, upper + above + high), outline=_FRAME)
    return sheet


def _width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    return round(font.getlength(text)) + 1
