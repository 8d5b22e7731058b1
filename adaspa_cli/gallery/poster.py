"""A small picture of a video, for its tile: seen before the video is loaded."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

_HEIGHT = 240  # pixels at most
_SECONDS = 10  # after which a file that gives no frame is given up


def poster(video: Path, at: float = 0.0) -> str | None:
    """A frame as a JPEG in a data URI; None of a file of which ffmpeg gives no frame there.

    Takes about 30 ms: one frame is read, by ffmpeg itself, so that nothing heavy is imported.

    Args:
        at: seconds from the beginning.
    """
    import imageio_ffmpeg

    source = ["-ss", f"{at:.3f}", "-i", f"file:{video}", "-frames:v", "1", "-vf", f"scale=-2:min(ih\\,{_HEIGHT})"]
    try:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, "-c:v", "mjpeg", "-q:v", "5"]
        done = subprocess.run(
            [*command, "-f", "image2pipe", "-"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, RuntimeError, subprocess.TimeoutExpired):  # RuntimeError: there is no ffmpeg
        return None
    if done.returncode or not done.stdout:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(done.stdout).decode('ascii')}"
