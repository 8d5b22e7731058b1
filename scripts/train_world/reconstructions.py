"""What the judge still reads right once an autoencoder has encoded and decoded true clips: no transformer on it can do
better."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor

from scripts.tiny_world.draw import draw, to_uint8
from scripts.tiny_world.judge import judge
from scripts.tiny_world.plan import extent_of, held_out_scenes, plan_scenes, spread
from scripts.train_world.autoencoder import encode, half_precision
from scripts.train_world.evaluate import counted, halved
from scripts.train_world.pool import Geometry


def remake(vae: AutoencoderKLHunyuanVideo, clips: Tensor) -> Tensor:
    """Clips [B, 3, F, H, W] in [-1, 1], encoded and decoded."""
    with torch.no_grad(), half_precision(vae.device):
        return vae.decode(encode(vae, clips) / vae.config.scaling_factor).sample.float()


def judged_reconstructions(
    remade: Callable[[Tensor], Tensor], geometry: Geometry, clips: int, device: torch.device
) -> dict[str, tuple[int, int]]:
    """Category -> right, of how many, for held-out scenes that ``remade`` was given as clips [1, 3, F, H, W]."""
    extent, hits = extent_of(geometry.height, geometry.width), []
    for number, scene in enumerate(spread(held_out_scenes(), clips)):
        clip, _ = draw(plan_scenes([scene], number, extent), geometry.frames, geometry.height, geometry.width, device)
        hits.append(judge(halved(to_uint8(remade(clip))[0].cpu().numpy())).hits(scene))
    return counted(hits)
