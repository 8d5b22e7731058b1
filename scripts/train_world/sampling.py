"""Sampling with the real pipeline, in training and afterwards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline
from torch import nn

from scripts.train_world.autoencoder import half_precision, in_one_piece
from scripts.train_world.pool import Geometry
from scripts.train_world.text import Text


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


def load_folder(folder: Path, device: torch.device) -> HunyuanVideoPipeline:
    """An exported pipeline, in float32."""
    pipe = HunyuanVideoPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    in_one_piece(pipe.vae)
    pipe.set_progress_bar_config(disable=True)
    return pipe
