"""Pictures that a video begins or ends with: read, turned upright, and cut to the size of the video.

The rule: the picture is turned as its EXIF data say, its transparent parts become white, it is scaled until it covers
the video, and what stands over is cropped, as much on either side.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaspa_cli.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_BYTES = 200_000_000
MOST_SIDE = 20_000
MOST_PIXELS = 100_000_000
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


@dataclass(frozen=True)
class Picture:
    """A picture as it was read.

    Attributes:
        path: of its file.
        sha256: of the file's bytes.
        image: upright, RGB.
        changes: what was done to it, besides turning it upright.
    """

    path: Path
    sha256: str
    image: Image
    changes: tuple[str, ...] = ()

    @classmethod
    def read(cls, name: str, key: str) -> Picture:
        """Read a file.

        Args:
            name: its path.
            key: of the setting, for messages.

        Raises:
            ConfigError: it cannot be read, is no picture, is cut off or too large, or has more than 8 bits a channel.
        """
        from PIL import Image, ImageOps, UnidentifiedImageError

        path = Path(name).expanduser()
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ConfigError(f"{key} {name} has more than {MOST_BYTES // 10**6} MB", hint="save it smaller")
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {key} {name}: {error.strerror}") from error
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd metadata, and of sizes that are checked here
                with Image.open(io.BytesIO(content)) as opened:
                    _check(opened, key, name)
                    changes = _changes(opened)
                    opened.load()
                    image = _opaque(ImageOps.exif_transpose(opened))
        except UnidentifiedImageError:
            raise ConfigError(f"{key} {name} is not a picture", hint="give a PNG, JPEG or WebP file") from None
        except Image.DecompressionBombError:
            raise ConfigError(
                f"{key} {name} has more than {MOST_PIXELS // 10**6} megapixels", hint="scale it"
            ) from None
        except (OSError, ValueError, SyntaxError, EOFError) as error:  # what Pillow's readers raise
            raise ConfigError(f"{key} {name} is damaged: {error}", hint="save it again") from error
        return cls(path, hashlib.sha256(content).hexdigest(), image, changes)

    def fitted(self, height: int, width: int) -> Image:
        """RGB image of a size in pixels: scaled to cover it, and cropped about the centre."""
        from PIL import Image, ImageOps

        return ImageOps.fit(self.image, (width, height), Image.Resampling.LANCZOS)

    def note(self, height: int, width: int) -> str:
        """What happens to the picture, in one line: its size, and what is cropped and scaled."""
        wide, high = self.image.size
        kept_wide, kept_high = min(wide, high * width / height), min(high, wide * height / width)
        cut = [
            f"{round(whole - kept)} pixels of its {side} cropped, half on each side"
            for side, whole, kept in (("width", wide, kept_wide), ("height", high, kept_high))
            if round(whole - kept)
        ]
        cut = [*self.changes, *(cut or ["nothing cropped"])]
        if (wide, high) != (width, height):
            cut.append(f"scaled by {width / kept_wide:.3g} to {width} x {height}")
        return f"{self.path.name}, {wide} x {high}: {', '.join(cut)}"


def read_pictures(paths: Mapping[str, str]) -> dict[str, Picture]:
    """Read the file of each setting; raises as :meth:`Picture.read` does."""
    return {key: Picture.read(path, key) for key, path in paths.items()}


def _check(opened: Image, key: str, name: str) -> None:
    """Refuse by the header what is not to be decoded."""
    wide, high = opened.size
    if max(wide, high) > MOST_SIDE or wide * high > MOST_PIXELS:
        raise ConfigError(
            f"{key} {name} has {wide} x {high} pixels", hint=f"scale it to at most {MOST_PIXELS // 10**6} megapixels"
        )
    if opened.mode not in _EIGHT_BITS:
        raise ConfigError(
            f"{key} {name} is of mode {opened.mode}, not of 8 bits a channel", hint="save it as an 8-bit PNG"
        )


def _changes(opened: Image) -> tuple[str, ...]:
    frames = getattr(opened, "n_frames", 1)
    first = (f"the first of its {frames} frames",) if frames > 1 else ()
    return (*first, "transparent parts made white") if opened.has_transparency_data else first


def _opaque(image: Image) -> Image:
    """RGB, on white where it is transparent."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    alpha = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", alpha.size, "white"), alpha).convert("RGB")
