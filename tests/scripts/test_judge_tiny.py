"""The judge of the bundled model, on clips whose scene is known, on folders of videos, and on a model's samples."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adaspa_cli.files.videos import write_video
from adaspa_cli.jobs.places import report_path
from scripts.judge_tiny import evaluate as evaluation
from scripts.judge_tiny.__main__ import main
from scripts.judge_tiny.captions import all_scenes, held_out_captions, held_out_scenes, standard_caption
from scripts.judge_tiny.clips import draw, plan_scenes, to_uint8
from scripts.judge_tiny.judge import ATTRIBUTES, NOTHING, Scene, Verdict, judge_clip
from scripts.train_world.pool import Geometry


def blurred(clips: torch.Tensor, factor: int) -> torch.Tensor:
    small = F.avg_pool3d(clips, (1, factor, factor))
    return F.interpolate(small, size=clips.shape[2:], mode="trilinear")


def right(scenes: list[Scene], size: int, blur: int = 1, noise: float = 0.0) -> dict[str, float]:
    hits: Counter[str] = Counter()
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(scenes), 16):
        part = scenes[start : start + 16]
        clips, _ = draw(plan_scenes(part, seed=start), 33, size, size, "cpu")
        clips = blurred(clips, blur) if blur > 1 else clips
        if noise:
            clips = clips + noise * torch.randn(clips.shape, generator=generator)
        for scene, frames in zip(part, to_uint8(clips).numpy(), strict=True):
            hits.update(name for name, hit in judge_clip(frames).hits(scene).items() if hit)
    return {name: hits[name] / len(scenes) for name in ATTRIBUTES}


@pytest.mark.parametrize(
    ("count", "size", "blur", "noise"),
    [(80, 96, 1, 0.0), (40, 96, 4, 0.0), (24, 96, 1, 0.06), (12, 192, 1, 0.0), (12, 192, 8, 0.0)],
)
def test_drawn_clips_are_judged_right(count: int, size: int, blur: int, noise: float) -> None:
    scenes = random.Random(size + blur).sample(all_scenes(), count)
    shares = right(scenes, size, blur, noise)
    assert min(shares.values()) >= 0.98, shares


def test_empty_clip_shows_nothing() -> None:
    frames = np.full((9, 64, 64, 3), 128, dtype=np.uint8)
    assert judge_clip(frames) == Verdict(NOTHING, "gray", NOTHING, NOTHING)


def test_noise_is_no_error() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    judge_clip(frames)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((9, 64, 64), np.uint8),
        np.zeros((9, 64, 64, 3), np.float32),
        np.zeros((2, 64, 64, 3), np.uint8),
    ],
)
def test_other_input_is_refused(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be uint8|at least 5 frames"):
        judge_clip(frames)


def test_scene_refuses_unknown_words() -> None:
    with pytest.raises(ValueError, match="shape is 'hexagon'"):
        Scene("hexagon", "red", "black", "still")


def write(folder: Path, name: str, drawn: int, prompt: str) -> None:
    clip, _ = draw(plan_scenes([held_out_scenes()[drawn]], seed=1), 17, 96, 96, "cpu")
    write_video(folder / f"{name}.mp4", to_uint8(clip)[0].numpy(), fps=8)
    report_path(folder / f"{name}.mp4").write_text(json.dumps({"prompt": prompt}))


def test_right_and_wrong_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = [standard_caption(scene) for scene in held_out_scenes()]
    write(tmp_path, "right", 0, captions[0])
    write(tmp_path, "wrong", 8, captions[0])  # moves right where left was asked for
    main(["videos", str(tmp_path)])
    wrong, summary = capsys.readouterr().out.splitlines()
    assert wrong.startswith(f"{captions[0]}: ")
    assert "motion right" in wrong
    assert "2 videos" in summary
    assert "motion 1" in summary


def test_an_unknown_prompt_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "other", 0, "a cat")
    with pytest.raises(SystemExit, match="'a cat' is no held-out caption"):
        main(["videos", str(tmp_path)])


def test_what_a_model_makes_is_judged_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model whose samples are the clips that its captions describe."""
    drawn = {standard_caption(scene): scene for scene in held_out_scenes()}

    def sampled(_pipe: object, captions: list[str], _geometry: object, *, steps: int, seed: int) -> np.ndarray:
        assert (steps, seed) == (1, 0)
        clips, _ = draw(plan_scenes([drawn[caption] for caption in captions], seed=1), 17, 96, 96, "cpu")
        return to_uint8(clips).numpy()

    monkeypatch.setattr(evaluation, "sample_captions", sampled)
    report = evaluation.evaluate(None, Geometry(), tmp_path, steps=1, limit=2)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == report
    assert [record["caption"] for record in report["records"]] == held_out_captions()[:2]
    assert report["accuracy"]["all"] == 1.0
    assert (tmp_path / "sheet-0.png").stat().st_size > 0
