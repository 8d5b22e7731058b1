"""The model that comes with adaspa makes what it is asked for, offline, with the method's defaults."""

import json
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from adaspa_cli.config import resolve
from adaspa_cli.quality.clip_judge import judge_clip
from adaspa_cli.sampling.run import generate
from tests.pipelines import Listener


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a default run."""
    torch.set_num_threads(2)  # unlike the random models of the other tests, this one has work for a second thread
    out = tmp_path_factory.mktemp("bundled")
    flags = {"prompt": ["a red circle moves left on a blue background"], "out": str(out)}
    list(generate(resolve(flags), Listener()))
    torch.set_num_threads(1)
    return out


@pytest.mark.slow
def test_the_asked_colour_moves_in_the_asked_direction(made: Path) -> None:
    (video,) = made.glob("*.mp4")
    frames = np.stack(imageio.mimread(video))
    assert frames.shape == (33, 256, 256, 3)
    verdict = judge_clip(frames)
    assert (verdict.color, verdict.background, verdict.motion) == ("red", "blue", "left")


@pytest.mark.slow
def test_its_report_shows_two_searches_and_sparse_steps_between(made: Path) -> None:
    (path,) = made.glob("*.report.json")
    report = json.loads(path.read_text())
    phases = ["dense"] * 2 + ["search"] + ["sparse"] * 4 + ["cached search"] + ["sparse"] * 4
    assert [step["phase"] for step in report["steps"]] == phases
    # 80 % of 81 video blocks are left out, the text block is not: 17 of 82 blocks on average, and 82 in its own row.
    densities = [step["density"] for step in report["steps"] if step["phase"] == "sparse"]
    assert densities == pytest.approx([(81 * 17 + 82) / 82**2] * 8, abs=0.01)
    recalls = [recall for search in report["searches"] for recall in search["recall"]]
    assert len(recalls) == 2 * 8 * 4
    # A mask without any knowledge would recall what it keeps, a fifth.
    assert np.mean(recalls) > 0.4
