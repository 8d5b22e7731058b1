"""The model that comes with adaspa makes what it is asked for, offline, with the method's defaults but fewer steps."""

import json
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from adaspa_cli.config import resolve
from scripts.judge_tiny.judge import judge_clip
from tests.pipelines import Listener, make_reports

STEPS = 8  # of 14: enough for the right object, which half the frames are not
PROMPT = "a red circle moves left on a blue background"


def run(out: Path, **flags: Any) -> tuple[Any, dict[str, Any]]:
    """Frames uint8 [F, H, W, 3] and report of a default run but for ``flags``."""
    list(make_reports(resolve({"prompt": [PROMPT], "out": str(out), "steps": STEPS, **flags}), Listener()))
    (video,), (report,) = out.glob("*.mp4"), out.glob("*.report.json")
    return np.stack(imageio.mimread(video)), json.loads(report.read_text())


@pytest.mark.slow
def test_it_makes_what_it_is_asked_for_close_to_the_dense_video(tmp_path: Path) -> None:
    frames, report = run(tmp_path / "adaspa")
    _check_that_a_red_circle_moves_left(frames)
    _check_two_searches_and_sparse_steps_between(report)
    dense, dense_report = run(tmp_path / "full", method="full")
    assert {step["phase"] for step in dense_report["steps"]} == {"dense"}
    assert report["seed"] == dense_report["seed"]
    error = np.square(frames.astype(np.float64) - dense).mean()
    assert 10 * np.log10(255**2 / error) > 25  # docs/tiny-model.md, in 14 steps: 30 dB, 28.7 in the lowest quarter


def _check_that_a_red_circle_moves_left(frames: Any) -> None:
    assert frames.shape == (33, 256, 256, 3)
    verdict = judge_clip(frames)
    assert (verdict.color, verdict.shape, verdict.background, verdict.motion) == ("red", "circle", "blue", "left")


def _check_two_searches_and_sparse_steps_between(report: dict[str, Any]) -> None:
    phases = ["dense", "search", "sparse", "sparse", "cached search", "sparse", "sparse", "sparse"]
    assert [step["phase"] for step in report["steps"]] == phases
    # 80 % of 144 video blocks are left out, the text block is not: 30 of 145 blocks on average, and 145 in its own row.
    densities = [step["density"] for step in report["steps"] if step["phase"] == "sparse"]
    assert densities == pytest.approx([(144 * 30 + 145) / 145**2] * 5, abs=0.01)
    recalls = [recall for search in report["searches"] for recall in search["recall"]]
    assert len(recalls) == 2 * 8 * 4
    # A mask without any knowledge would recall what it keeps, a fifth.
    assert np.mean(recalls) > 0.5
