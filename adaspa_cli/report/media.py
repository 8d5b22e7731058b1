"""Videos and pictures made part of a page: data URIs, frames made small, strips of frames."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adaspa_cli.files.videos import write_video

_GAP = 3  # pixels between frames


def data_uri(kind: str, content: bytes) -> str:
    """A file of a media type as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def small(frames: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    """Frames [F, H, W, 3] at most ``height`` high, with even sides; never larger than they are."""
    height = min(height, frames.shape[1])
    width = max(2, round(frames.shape[2] * height / frames.shape[1] / 2) * 2)
    resized = [Image.fromarray(frame).resize((width, height - height % 2)) for frame in frames]
    return np.stack([np.asarray(image) for image in resized])


def strip(frames: NDArray[np.uint8], count: int) -> str:
    """``count`` frames spread evenly over the video, side by side, as a JPEG in a data URI."""
    chosen = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    framed = np.pad(frames[chosen], ((0, 0), (0, 0), (0, _GAP), (0, 0)), constant_values=255)
    return jpeg(np.concatenate(list(framed), axis=1))


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def jpeg(picture: NDArray[np.uint8]) -> str:
    """A picture [H, W, 3] as a JPEG in a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=88)
    return data_uri("image/jpeg", buffer.getvalue())


def video(frames: NDArray[np.uint8], fps: int, comment: str | None) -> str:
    """Frames [F, H, W, 3] as a video in a data URI."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.mp4"
        write_video(path, frames, fps, comment)
        return data_uri("video/mp4", path.read_bytes())
