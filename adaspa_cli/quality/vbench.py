"""VBench, run as the command of its own environment: it pins versions that adaspa cannot share (numpy below 2).

Only the dimensions that VBench has for videos of one's own are scored. Their mean is not the total score of papers,
which needs VBench's prompts and all its dimensions.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What VBench scores without knowing the prompt (its mode `custom_input`).
DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)

_FULL_MARKS = {"imaging_quality": 100}  # of one video; VBench divides only the mean of all


class VBenchError(Exception):
    """Why there are no scores."""


def available() -> str | None:
    """Return why VBench cannot be run, or None if it can."""
    if shutil.which("vbench") is None:
        return "no command `vbench` on the path; it needs an environment of its own: pipx install vbench"
    return None


def score(videos: Sequence[Path]) -> list[dict[str, float]]:
    """Score video files: per video the dimensions by name, from 0 to 1.

    Raises:
        VBenchError: the command is not there, or it gave no scores.
    """
    if reason := available():
        raise VBenchError(reason)
    with tempfile.TemporaryDirectory(prefix="adaspa-vbench-") as folder:
        # VBench hands paths to a shell without quoting them: it gets short ones.
        links = Path(folder) / "videos"
        links.mkdir()
        for number, video in enumerate(videos):
            (links / f"{number}.mp4").symlink_to(video.resolve())
        command = ["vbench", "evaluate", "--mode", "custom_input", "--videos_path", str(links)]
        command += ["--dimension", " ".join(DIMENSIONS), "--output_path", f"{folder}/results"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        results = sorted(Path(folder).glob("results/*_eval_results.json"))
        if not results:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise VBenchError(f"vbench gave no scores; it said: {said[:200]}")
        return _by_video(json.loads(results[-1].read_text(encoding="utf-8")), len(videos))


def _by_video(content: dict[str, Any], videos: int) -> list[dict[str, float]]:
    """From ``{dimension: [mean, [{video_path, video_results}, ...]]}`` to the dimensions of each video."""
    found: list[dict[str, float]] = [{} for _ in range(videos)]
    for dimension, (_, entries) in content.items():
        for entry in entries:
            value = float(entry["video_results"])
            found[int(Path(entry["video_path"]).stem)][dimension] = value / _FULL_MARKS.get(dimension, 1)
    return found
