"""Video files: H.264 that every browser plays, and frames kept bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaspa_cli.errors import OutputError
from adaspa_cli.files.whole import whole_file


def write_video(path: Path, frames: NDArray[np.uint8], fps: int, comment: str | None = None) -> None:
    """Write frames [F, H, W, 3] as H.264 in yuv420p, which every browser plays; ``comment`` becomes metadata.

    Raises:
        OutputError: the file cannot be written.
    """
    metadata = ["-metadata", f"comment={comment}"] if comment else []
    _encode(path, frames, fps, codec="libx264", pixelformat="yuv420p", quality=8, output_params=metadata)


def write_lossless(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    """Write frames [F, H, W, 3] so that :func:`read_frames` gives them back bit by bit.

    Raises:
        OutputError: the file cannot be written.
    """
    _encode(path, frames, fps, codec="libx264rgb", pixelformat="rgb24", quality=None, output_params=["-qp", "0"])


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


def _encode(path: Path, frames: NDArray[np.uint8], fps: int, **settings: Any) -> None:
    import imageio.v2 as imageio

    try:
        with whole_file(path) as partial:
            imageio.mimwrite(partial, list(frames), fps=fps, macro_block_size=2, **settings)
    except OSError as error:
        reason = " ".join(str(error).split())[:300]  # ffmpeg says much
        raise OutputError(f"cannot write {path}: {reason}") from error
