"""The model that comes with adaspa makes what it is asked for, offline, with the method's defaults."""

import json
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from adaspa_cli.config import resolve
from scripts.clip_judge import judge_clip
from tests.pipelines import Listener, make_reports

PROMPT = "a red circle moves left on a blue background"


def run(out: Path, **flags: Any) -> tuple[Any, dict[str, Any]]:
    """Frames uint8 [F, H, W, 3] and report of a default run but for ``flags``."""
    torch.set_num_threads(2)  # unlike the random models of the other tests, this one has work for a second thread
    list(make_reports(resolve({"prompt": [PROMPT], "out": str(out), **flags}), Listener()))
    torch.set_num_threads(1)
    (video,), (report,) = out.glob("*.mp4"), out.glob("*.report.json")
    return np.stack(imageio.mimread(video)), json.loads(report.read_text())


@pytest.mark.slow
def test_it_makes_what_it_is_asked_for_close_to_the_dense_video(tmp_path: Path) -> None:
    """One test, because its videos take both cores: in two workers at one time each takes several times as long."""
    frames, report = run(tmp_path / "adaspa")
    _check_that_a_red_circle_moves_left(frames)
    _check_two_searches_and_sparse_steps_between(report)
    dense, dense_report = run(tmp_path / "full", method="full")
    assert {step["phase"] for step in dense_report["steps"]} == {"dense"}
    assert report["seed"] == dense_report["seed"]
    error = np.square(frames.astype(np.float64) - dense).mean()
    assert 10 * np.log10(255**2 / error) > 25  # docs/tiny-model.md: 30 dB, 28.7 in the lowest quarter


def _check_that_a_red_circle_moves_left(frames: Any) -> None:
    assert frames.shape == (33, 256, 256, 3)
    verdict = judge_clip(frames)
    assert (verdict.color, verdict.shape, verdict.background, verdict.motion) == ("red", "circle", "blue", "left")


def _check_two_searches_and_sparse_steps_between(report: dict[str, Any]) -> None:
    phases = ["dense"] * 2 + ["search"] + ["sparse"] * 5 + ["cached search"] + ["sparse"] * 5
    assert [step["phase"] for step in report["steps"]] == phases
    # 80 % of 144 video blocks are left out, the text block is not: 30 of 145 blocks on average, and 145 in its own row.
    densities = [step["density"] for step in report["steps"] if step["phase"] == "sparse"]
    assert densities == pytest.approx([(144 * 30 + 145) / 145**2] * 10, abs=0.01)
    recalls = [recall for search in report["searches"] for recall in search["recall"]]
    assert len(recalls) == 2 * 8 * 4
    # A mask without any knowledge would recall what it keeps, a fifth.
    assert np.mean(recalls) > 0.5
