"""Sheets of pictures: letters that can be read on a wide sheet too, and nothing cut off."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adaspa_cli.visual.sheet import Tile, draw_sheet


def ink(sheet: Image.Image) -> NDArray[np.intp]:
    """Rows and columns of what is not white."""
    return np.argwhere(np.asarray(sheet.convert("L")) < 128)


def test_letters_are_larger_on_a_wide_sheet() -> None:
    def title(tiles: int) -> int:
        sheet = draw_sheet("L", ["HHH"], [("", [Tile(Image.new("L", (64, 64), 255), [""])] * tiles)])
        rows = ink(sheet.crop((0, 0, sheet.width, 36)))[:, 0]
        return int(rows.max() - rows.min())

    assert 8 <= title(1) <= title(3) < title(6) == title(12) <= 24


def test_labels_and_titles_fit() -> None:
    tile = Tile(Image.new("RGB", (8, 8), "white"), ["a long caption of a tile that is as long as a sentence"])
    sheet = draw_sheet("RGB", ["a title that is longer than the row of one tile " * 3], [("a label, layer 12", [tile])])
    found = ink(sheet)[:, 1]
    assert found.min() > 0
    assert found.max() < sheet.width - 1
