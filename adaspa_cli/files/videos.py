"""Video files: H.264 that every browser plays, and frames kept bit by bit."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adaspa_cli.errors import OutputError
from adaspa_cli.files.whole import cannot_write, whole_file


def write_video(path: Path, frames: NDArray[np.uint8], fps: int, comment: str | None = None) -> None:
    """Write frames [F, H, W, 3] as H.264 in yuv420p, which every browser plays; ``comment`` becomes metadata.

    Odd sizes are scaled up by a pixel, because yuv420p has none.

    Raises:
        OutputError: the file cannot be written.
        DiskFullError: the disk is full.
    """
    height, width = frames.shape[1:3]
    odd = ["-vf", f"scale={width + width % 2}:{height + height % 2}"] if width % 2 or height % 2 else []
    metadata = ["-metadata", f"comment={comment}"] if comment else []
    _encode(path, frames, fps, "-vcodec", "libx264", "-pix_fmt", "yuv420p", "-crf", "10", *odd, *metadata)


def write_lossless(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    """Write frames [F, H, W, 3] so that :func:`read_frames` gives them back bit by bit.

    Raises:
        OutputError: the file cannot be written.
        DiskFullError: the disk is full.
    """
    _encode(path, frames, fps, "-vcodec", "libx264rgb", "-pix_fmt", "rgb24", "-qp", "0")


def read_frames(path: Path) -> NDArray[np.uint8]:
    """Read the frames [F, H, W, 3] of a video file.

    Raises:
        OutputError: the file cannot be read.
    """
    import imageio.v2 as imageio

    try:
        return np.stack(imageio.mimread(path, memtest=False, pixelformat="rgb24"))
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read {path}: {' '.join(str(error).split())[:300]}") from error


def _encode(path: Path, frames: NDArray[np.uint8], fps: int, *settings: str) -> None:
    """Encode with ffmpeg itself: imageio's writer does not tell whether ffmpeg came to its end."""
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-", "-an"]
    try:
        with whole_file(path) as partial:
            command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *source, *settings, str(partial)]
            content = np.ascontiguousarray(frames).reshape(-1).data
            # In a session of its own, so that Ctrl-C in a terminal reaches this process alone.
            done = subprocess.run(command, input=content, capture_output=True, start_new_session=True, check=False)
            if done.returncode:
                raise OSError(done.stderr.decode(errors="replace") or _ended(done.returncode))
    except OSError as error:
        raise cannot_write(path, error) from error


def _ended(code: int) -> str:
    """Why ffmpeg, which said nothing, ended with a code other than 0."""
    if code == -signal.SIGXFSZ:
        return "the file exceeds the size limit (ulimit -f)"
    return f"ffmpeg ended with {code}" if code > 0 else f"ffmpeg was killed by {signal.Signals(-code).name}"
