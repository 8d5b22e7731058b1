"""Compiles the blocks of the stages before they are needed, while the autoencoder is trained.

torch keeps what it compiled on the disk, by the shapes and the device that it was compiled for. So this runs beside the
training with as many processes, each on the same GPU, and a stage that begins later finds its blocks compiled.
"""

import time

import torch

from scripts.train_world.autoencoder import VaeConfig
from scripts.train_world.checkpoint import generator_at
from scripts.train_world.flow import flow_loss
from scripts.train_world.network import TransformerConfig, build_modules
from scripts.train_world.parallel import rank, share
from scripts.train_world.pool import Batch, Geometry
from scripts.train_world.recipe import WorldStage
from scripts.train_world.text import CLIP_TOKENS, TEMPLATE_TOKENS
from scripts.train_world.transformer import attending, prepared

# Two lengths, because torch would take one for constant, and two that are multiples of 8: inductor compiles attention
# anew for those, and each process would wait for all others when it comes across its first.
_CAPTION_TOKENS = (9, 14, 16, 24)


def warm(config: TransformerConfig, vae: VaeConfig, stage: WorldStage, batch: int, device: torch.device) -> None:
    """Take steps of a stage on random latents of each of its sizes, without an optimiser.

    Args:
        batch: of all processes together.
    """
    began = time.monotonic()
    torch._dynamo.reset()
    modules, _ = build_modules(config, 0)
    prepared(modules, stage, device)
    empty = _ids(1, 1, device)
    with attending(stage.attention):
        for step, size in enumerate(stage.sizes):
            for length in _CAPTION_TOKENS:
                clips = _batch(size.geometry, share(batch), length, vae.latent_channels, device)
                generator = generator_at(0, step, "warm", device)
                flow_loss(modules, clips, stage.shift, generator, guidance=stage.guidance, empty=empty).backward()
    if rank() == 0:
        print(f"{stage.name}: compiled in {time.monotonic() - began:.0f} s", flush=True)


def _batch(geometry: Geometry, clips: int, length: int, channels: int, device: torch.device) -> Batch:
    """Random latents with captions of ``length`` tokens."""
    grid = ((geometry.frames - 1) // 4 + 1, geometry.height // 8, geometry.width // 8)
    latents = torch.randn(clips, channels, *grid, device=device)
    llama, clip = _ids(clips, length, device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # as the pools hold them
    near = torch.zeros(clips, 1, *grid, dtype=torch.bool, device=device)
    return Batch(latents.to(dtype), near, llama, clip, captioned=True)


def _ids(clips: int, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of captions: any word will do."""
    llama = torch.full((clips, TEMPLATE_TOKENS + length), 7, dtype=torch.long, device=device)
    return llama, torch.full((clips, CLIP_TOKENS), 7, dtype=torch.long, device=device)
