"""Files of a run: names that collide with nothing, and writing that leaves nothing half-done."""

from __future__ import annotations

import contextlib
import json
import os
import re
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaspa_cli.errors import OutputError

_PARTIAL = ".partial"


def check_folder(out: str) -> Path:
    """The output folder, after a look whether it could be made and written; makes nothing.

    Raises:
        OutputError: it could not.
    """
    folder = Path(out).expanduser()
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror}", hint="choose another folder with --out"
        ) from error
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "is not a folder" if not existing.is_dir() else "is not writable"
        raise OutputError(f"cannot write to {folder}: {existing} {reason}", hint="choose another folder with --out")
    return folder


def prepare_folder(out: str) -> Path:
    """Make the output folder and prove that it can be written.

    Raises:
        OutputError: it cannot.
    """
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{_PARTIAL}.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror}", hint="choose another folder with --out"
        ) from error
    return folder


def video_name(prompt: str, seed: int) -> str:
    """A file name, without suffix, that says what the video shows."""
    ascii_text = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")[:60].strip("-")
    return f"{slug or 'video'}-seed{seed}"


def report_path(video: Path) -> Path:
    """The report that belongs to a video."""
    return video.with_name(f"{video.stem}.report.json")


def page_path(video: Path) -> Path:
    """The report as a page."""
    return video.with_name(f"{video.stem}.report.html")


def lossless_path(video: Path) -> Path:
    """The frames of a video as they were before compression."""
    return video.with_name(f"{video.stem}.lossless.mkv")


def find_place(
    folder: Path, name: str, fingerprint: str, *, resume: bool, decodes: bool = True, taken: Collection[Path] = ()
) -> tuple[Path, bool]:
    """Find where a video goes: the first free name, or with ``resume`` a complete video of the same settings.

    A report is written after its video, so a video with a report is complete. Nothing is ever overwritten.

    Args:
        decodes: whether the run makes a video; a run that ends in latents is complete with its report.
        taken: places given to other videos of the same run.

    Returns:
        The video's path, and whether it is complete already.
    """
    number = 1
    while True:
        video = folder / (f"{name}.mp4" if number == 1 else f"{name}-{number}.mp4")
        report = report_path(video)
        number += 1
        if video in taken:
            continue
        if not video.exists() and not report.exists():
            return video, False
        if resume and (video.exists() or not decodes) and _fingerprint(report) == fingerprint:
            return video, True


def _fingerprint(report: Path) -> str | None:
    try:
        return str(json.loads(report.read_text(encoding="utf-8")).get("fingerprint"))
    except (OSError, ValueError, AttributeError):
        return None


@contextlib.contextmanager
def whole_file(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what is written there takes the name when the block succeeds.

    Args:
        replace: take the place of a file that is there, as what is made from other files may.

    Raises:
        FileExistsError: without ``replace``, another process took the name meanwhile; its file is left as it is.
    """
    partial = path.with_name(f"{path.stem}{_PARTIAL}{os.getpid()}{path.suffix}")
    try:
        yield partial
        if not replace:
            path.touch(exist_ok=False)  # a rename alone would replace what is there
        partial.replace(path)
    finally:  # Ctrl-C too must not leave a broken file
        partial.unlink(missing_ok=True)


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


def write_json(path: Path, content: dict[str, Any], *, replace: bool = False) -> None:
    """Write a JSON file.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", replace=replace)


def write_text(path: Path, text: str, *, replace: bool = False) -> None:
    """Write a text file.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        with whole_file(path, replace=replace) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
