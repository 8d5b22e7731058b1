"""The judge against clips whose scene is known."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scripts.clip_judge import ATTRIBUTES, NOTHING, Scene, Verdict, judge_clip
from scripts.train_tiny.captions import all_scenes
from scripts.train_tiny.clips import draw, plan_scenes, to_uint8


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
