"""Videos of a bench, scaled down for its page: strips of frames, videos that play, and players that compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adaspa_cli.bench.schema import Bench, BenchRow
from adaspa_cli.files.videos import read_frames
from adaspa_cli.jobs.places import lossless_path
from adaspa_cli.quality.by_frame import by_frame
from adaspa_cli.report.media import small, strip, video
from adaspa_cli.report.player import Clip, Player

STRIP_FRAMES = 5
_STRIP_HEIGHT = 112  # pixels of a frame of a strip
_HEIGHT = 240  # and of a video
_SHOWN = 2  # prompts


@dataclass(frozen=True)
class Picture:
    """A run's video: data URIs of a strip of frames and of a small video.

    Attributes:
        id: of the video's element on the page.
        row, reference: names of the run's row, and of the row that it is compared with.
        shape: frames, height and width of the small video.
        curves: PSNR and SSIM of each frame against the reference; empty where there is none.
    """

    id: str
    row: str
    reference: str | None
    strip: str
    video: str
    fps: int
    shape: tuple[int, int, int]
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)


def pictures(bench: Bench, out: Path) -> dict[str, list[Picture]]:
    """Pictures of the first prompts with the first seed, by prompt, the rows in order."""
    shown: dict[str, list[Picture]] = {}
    for number, prompt in enumerate(bench.prompts[:_SHOWN]):
        videos = {row.name: path for row in bench.rows if (path := _video(row, prompt, bench.seeds[0], out))}
        for at, row in enumerate(bench.rows):
            if row.name in videos:
                shown.setdefault(prompt, []).append(_picture(row, f"video-{number}-{at}", videos))
    return shown


def _video(row: BenchRow, prompt: str, seed: int, out: Path) -> Path | None:
    found = (run.video for run in row.runs if run.prompt == prompt and run.seed == seed and run.video)
    return next((out / name for name in found), None)


def _picture(row: BenchRow, name: str, videos: Mapping[str, Path]) -> Picture:
    frames = _frames(videos[row.name])
    fps, curves = row.settings["fps"], {}
    dense = videos.get(row.reference) if row.reference and row.reference != row.name else None
    if dense is not None:
        try:
            curves = by_frame(frames, _frames(dense))
        except (RuntimeError, ValueError):  # the tables say why there is no figure
            curves = {}
    shown = small(frames, _HEIGHT)
    return Picture(
        id=name,
        row=row.name,
        reference=row.reference,
        strip=strip(small(frames, _STRIP_HEIGHT), STRIP_FRAMES),
        video=video(shown, fps, row.random_weights),
        fps=fps,
        shape=(len(shown), shown.shape[1], shown.shape[2]),
        curves={key: [round(value, 4) for value in values] for key, values in curves.items()},
    )


def _frames(path: Path) -> NDArray[np.uint8]:
    """Frames of a video, from its lossless copy where there is one."""
    lossless = lossless_path(path)
    return read_frames(lossless if lossless.is_file() else path)


def players(shown: Mapping[str, Sequence[Picture]]) -> dict[str, Player]:
    """A player for each prompt: its first reference, and the rows of the same size that are compared with it."""
    found = {}
    for prompt, rows in shown.items():
        by_name = {row.row: row for row in rows}
        reference = next((by_name[p.reference] for p in rows if p.reference in by_name and p.reference != p.row), None)
        if reference is None:
            continue
        compared = [row for row in rows if row.reference == reference.row and row.shape == reference.shape]
        played = [reference, *(row for row in compared if row is not reference)]
        if len(played) > 1:
            frames, height, width = reference.shape
            clips = [Clip(row.row, row.video, row.fps, row.curves) for row in played]
            found[prompt] = Player(clips, 0, frames, height, width, [row.id for row in played])
    return found
