"""Where the files of a video lie: names that say what it shows and collide with nothing."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection
from pathlib import Path


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
        if resume and (video.exists() or not decodes) and _fingerprint_of(report) == fingerprint:
            return video, True


def _fingerprint_of(report: Path) -> str | None:
    try:
        return str(json.loads(report.read_text(encoding="utf-8")).get("fingerprint"))
    except (OSError, ValueError, AttributeError):
        return None
