"""Pictures: read as people see them, cut by one rule, and refused in one line where they are of no use."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaspa_cli.errors import ConfigError
from adaspa_cli.files import pictures
from adaspa_cli.files.pictures import Picture


def save(path: Path, image: Image.Image, **options: object) -> str:
    image.save(path, **options)
    return str(path)


def thirds(wide: int, high: int) -> Image.Image:
    """Red, green and blue bars from left to right."""
    image = Image.new("RGB", (wide, high), "lime")
    image.paste("red", (0, 0, wide // 3, high))
    image.paste("blue", (wide - wide // 3, 0, wide, high))
    return image


def test_what_stands_over_is_cropped_on_either_side(tmp_path: Path) -> None:
    picture = Picture.read(save(tmp_path / "bars.png", thirds(96, 32)), "image")
    fitted = picture.fitted(height=64, width=64)
    assert fitted.size == (64, 64)
    assert np.asarray(fitted)[:, 8:-8].reshape(-1, 3).tolist() == [[0, 255, 0]] * 64 * 48
    assert picture.note(64, 64) == (
        "bars.png, 96 x 32: 64 pixels of its width cropped, half on each side, scaled by 2 to 64 x 64"
    )


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path: Path) -> None:
    image = thirds(48, 32)
    picture = Picture.read(save(tmp_path / "bars.png", image), "image")
    assert np.array_equal(np.asarray(picture.fitted(32, 48)), np.asarray(image))
    assert picture.note(32, 48) == "bars.png, 48 x 32: nothing cropped"


def test_a_tall_picture_loses_height(tmp_path: Path) -> None:
    picture = Picture.read(save(tmp_path / "tall.png", Image.new("RGB", (32, 64))), "image")
    assert "48 pixels of its height cropped" in picture.note(16, 32)


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "bars.png", thirds(48, 32))
    assert Picture.read(path, "image").sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_exif_turns_the_picture_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    path = save(tmp_path / "turned.png", thirds(48, 32), exif=exif)
    upright = Picture.read(path, "image").image
    assert upright.size == (32, 48)
    assert upright.getpixel((16, 2)) == (255, 0, 0), "what was left is at the top"


def test_transparent_parts_become_white_and_that_is_said(tmp_path: Path) -> None:
    picture = Picture.read(save(tmp_path / "clear.png", Image.new("RGBA", (32, 32), (0, 0, 0, 0))), "image")
    assert picture.image.getpixel((0, 0)) == (255, 255, 255)
    assert "transparent parts made white" in picture.note(32, 32)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "picture.tiff", Image.new(mode, (32, 32)))
    assert Picture.read(path, "image").image.mode == "RGB"


def test_of_a_moving_picture_the_first_frame_is_taken_and_that_is_said(tmp_path: Path) -> None:
    path = save(tmp_path / "moving.gif", thirds(48, 32), save_all=True, append_images=[Image.new("RGB", (48, 32))])
    assert "the first of its 2 frames" in Picture.read(path, "image").note(32, 48)


def test_a_missing_file_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read last_image .*none.png: No such file"):
        Picture.read(str(tmp_path / "none.png"), "last_image")
    with pytest.raises(ConfigError, match="Is a directory"):
        Picture.read(str(tmp_path), "image")


def test_what_is_no_picture_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ConfigError, match=r"image .*text.png is not a picture"):
        Picture.read(str(tmp_path / "text.png"), "image")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_that_is_cut_off_gives_one_line(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ConfigError, match="is damaged"):
        Picture.read(str(path), "image")


def test_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "deep.png", Image.fromarray(np.zeros((32, 32), dtype=np.uint16)))
    with pytest.raises(ConfigError, match="not of 8 bits a channel"):
        Picture.read(path, "image")


def test_huge_pictures_are_refused_by_their_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "long.png", Image.new("1", (20_001, 2)))
    with pytest.raises(ConfigError, match="has 20001 x 2 pixels"):
        Picture.read(path, "image")
    monkeypatch.setattr(pictures, "MOST_BYTES", 10)
    with pytest.raises(ConfigError, match="has more than"):
        Picture.read(path, "image")


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "bomb.png", Image.new("1", (19_000, 19_000)))
    with pytest.raises(ConfigError, match="pixels"):
        Picture.read(path, "image")
