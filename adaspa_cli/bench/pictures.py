"""Videos of a bench made small enough to stand in its page: strips of frames, and videos that play."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adaspa_cli.bench.schema import Bench
from adaspa_cli.files.videos import read_frames
from adaspa_cli.report.media import small, strip, video

STRIP_FRAMES = 5
_HEIGHT = 112  # pixels of a frame in the page
_SHOWN = 2  # prompts


@dataclass(frozen=True)
class Picture:
    """A run's video: data URIs of a strip of frames and of a small video."""

    row: str
    strip: str
    video: str


def pictures(bench: Bench, out: Path) -> dict[str, list[Picture]]:
    """Pictures of the first prompts with the first seed, by prompt, the rows in order."""
    shown: dict[str, list[Picture]] = {}
    for prompt in bench.prompts[:_SHOWN]:
        for row in bench.rows:
            for run in row.runs:
                if run.prompt == prompt and run.seed == bench.seeds[0] and run.video:
                    frames = small(read_frames(out / run.video), _HEIGHT)
                    fps = row.settings["fps"]
                    picture = Picture(row.name, strip(frames, STRIP_FRAMES), video(frames, fps, row.random_weights))
                    shown.setdefault(prompt, []).append(picture)
                    break
    return shown
