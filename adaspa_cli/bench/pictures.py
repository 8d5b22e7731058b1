"""Videos of a bench made small enough to stand in its page: strips of frames, and videos that play."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adaspa_cli.sampling.outputs import read_frames, write_video

STRIP_FRAMES = 5
_HEIGHT = 112  # pixels of a frame in the page
_GAP = 3  # pixels between frames
_SHOWN = 2  # prompts


@dataclass(frozen=True)
class Picture:
    """A run's video: data URIs of a strip of frames and of a small video."""

    row: str
    strip: str
    video: str


def pictures(bench: Mapping[str, Any], out: Path) -> dict[str, list[Picture]]:
    """Pictures of the first prompts with the first seed, by prompt, the rows in order."""
    shown: dict[str, list[Picture]] = {}
    for prompt in bench["prompts"][:_SHOWN]:
        for row in bench["rows"]:
            for run in row["runs"]:
                if run["prompt"] == prompt and run["seed"] == bench["seeds"][0] and run["video"]:
                    frames = _small(read_frames(out / run["video"]))
                    fps = row["settings"]["fps"]
                    picture = Picture(row["name"], _strip(frames), _video(frames, fps, row["random_weights"]))
                    shown.setdefault(prompt, []).append(picture)
                    break
    return shown


def _small(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames [F, H, W, 3] in the height that the page shows; never larger than they are."""
    height = min(_HEIGHT, frames.shape[1])
    width = max(2, round(frames.shape[2] * height / frames.shape[1] / 2) * 2)
    resized = [Image.fromarray(frame).resize((width, height - height % 2)) for frame in frames]
    return np.stack([np.asarray(image) for image in resized])


def _strip(frames: NDArray[np.uint8]) -> str:
    """Frames spread evenly over the video, side by side."""
    chosen = np.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames))).round().astype(int)
    buffer = io.BytesIO()
    framed = np.pad(frames[chosen], ((0, 0), (0, 0), (0, _GAP), (0, 0)), constant_values=255)
    Image.fromarray(np.concatenate(list(framed), axis=1)).save(buffer, "JPEG", quality=88)
    return _data_uri("image/jpeg", buffer.getvalue())


def _video(frames: NDArray[np.uint8], fps: int, comment: str | None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.mp4"
        write_video(path, frames, fps, comment)
        return _data_uri("video/mp4", path.read_bytes())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
