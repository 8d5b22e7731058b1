"""Sampling of judged clips with the real pipeline, in training and afterwards."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline
from torch import nn

from scripts.clip_judge import ATTRIBUTES, Scene, Verdict, judge_clip
from scripts.train_tiny.captions import standard_caption
from scripts.train_tiny.pool import Geometry
from scripts.train_tiny.text import Text
from scripts.train_tiny.vae import half_precision


@dataclass(frozen=True)
class Judged:
    """A scene that was asked for, the clip that came (uint8 [F, H, W, 3]), and what the judge saw in it."""

    scene: Scene
    frames: Any
    verdict: Verdict


def assemble_pipeline(
    modules: Mapping[str, nn.Module], text: Text, vae: AutoencoderKLHunyuanVideo, shift: float
) -> HunyuanVideoPipeline:
    """The diffusers pipeline around these very modules."""
    pipe = HunyuanVideoPipeline(
        text_encoder=modules["text_encoder"],
        tokenizer=text.tokenizer,
        transformer=modules["transformer"],
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        text_encoder_2=modules["text_encoder_2"],
        tokenizer_2=text.tokenizer_2,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample_captions(
    pipe: HunyuanVideoPipeline, captions: Sequence[str], geometry: Geometry, *, steps: int, seed: int
) -> Any:
    """Clips uint8 [B, F, H, W, 3] of captions; each has a seed of its own, whatever the size of the batch."""
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(captions))]
    with torch.no_grad(), half_precision(pipe.device):
        video = pipe(
            prompt=list(captions),
            num_frames=geometry.frames,
            height=geometry.height,
            width=geometry.width,
            num_inference_steps=steps,
            generator=generators,
            output_type="np",
        ).frames
    return (np.asarray(video, dtype=np.float32) * 255.0).round().clip(0, 255).astype(np.uint8)


def sample_scenes(
    pipe: HunyuanVideoPipeline,
    scenes: Sequence[Scene],
    geometry: Geometry,
    *,
    steps: int,
    batch: int,
    seed: int = 0,
) -> Iterator[Judged]:
    """Sample the standard caption of each scene and judge the clip."""
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        captions = [standard_caption(scene) for scene in part]
        clips = sample_captions(pipe, captions, geometry, steps=steps, seed=seed + start)
        for scene, frames in zip(part, clips, strict=True):
            yield Judged(scene, frames, judge_clip(frames))


def accuracy(results: Sequence[Judged]) -> dict[str, float]:
    """Share of clips that are right, for each attribute and for all of them together."""
    hits = [result.verdict.hits(result.scene) for result in results]
    shares = {name: sum(hit[name] for hit in hits) / len(hits) for name in ATTRIBUTES}
    return {**shares, "all": sum(all(hit.values()) for hit in hits) / len(hits)}
