"""Trains the video autoencoder on clips of the drawn world; ``autoencoder`` says why it is built as it is.

The last part of the schedule has full clips, because the GroupNorms average over a whole clip and so depend on its
extent.

Shapes: B clips, F frames, H height, W width.
"""

import copy
import dataclasses
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor, nn

from scripts.tiny_world.draw import draw
from scripts.tiny_world.plan import Plan, extent_of, held_out_scenes, plan_clips, plan_scenes, spread
from scripts.train_world.autoencoder import (
    build_vae,
    change,
    encode,
    fold_normalisation,
    half_precision,
    in_one_piece,
    load_vae,
    vae_loss,
)
from scripts.train_world.checkpoint import generator_at, read_json, seed_at
from scripts.train_world.earlier import vae_folder
from scripts.train_world.fast_vae import speed_up
from scripts.train_world.loop import Loop, LoopConfig
from scripts.train_world.parallel import barrier, rank, share, stream
from scripts.train_world.pool import Geometry
from scripts.train_world.recipe import VaeStage

_MEASURED = 128  # held-out clips
_LATENT_NOISE = 0.10  # with 16 channels the decoder has less to shrug off than with 8


def train_vae(stage: VaeStage, loop_config: LoopConfig, work: Path, device: torch.device) -> bool:
    """Train, resuming what ``work/<stage>`` holds, or starting from the earlier autoencoder if there is one; when the
    schedule is done, leave the model in ``work/<stage>/model``.

    Returns:
        True if the schedule came to its end.

    Raises:
        FileNotFoundError: the decoder is to be trained, and there is no autoencoder.
        FileExistsError: an encoder is to be trained, and its decoder was trained on.
    """
    own = work / stage.name
    vae = _beginning(stage, work, loop_config.seed, device)
    averaged = copy.deepcopy(vae).requires_grad_(False)
    parts = _trained(stage, vae), _trained(stage, averaged)
    loop = Loop(*parts, loop_config, own, {} if stage.decoder_only else {"vae": asdict(stage.model)})
    loop.resume()
    if stage.decoder_only and loop.step == 0 and rank() == 0:
        print(f"{stage.name} begins with {measure(averaged, stage.full[0], _MEASURED)}", flush=True)
    if not stage.decoder_only and loop.progress() < 1.0 and (work / "decoder").exists():
        raise FileExistsError(f"{work / 'decoder'} was trained with this encoder: remove it to train the encoder on")
    batch = share(loop_config.batch)

    def loss_at(step: int) -> Tensor:
        progress = loop.progress()
        small = progress < stage.full_from
        sizes = stage.small if small else stage.full
        geometry = sizes[seed_at(loop_config.seed, step, "vae size") % len(sizes)]
        count = batch if small else max(1, round(batch * stage.full_batch))
        plan = training_plan(
            count, seed_at(loop_config.seed, step, stream("vae clips")), geometry, crowded=step % 3 == 0
        )
        clips, cover = draw(plan, geometry.frames, geometry.height, geometry.width, device)
        noise = _LATENT_NOISE * min(1.0, 0.2 + 2.0 * progress)
        generator = generator_at(loop_config.seed, step, stream("vae noise"), device)
        return vae_loss(
            vae,
            clips,
            cover,
            noise,
            generator,
            moving_weight=stage.moving_weight,
            decoder_only=stage.decoder_only,
        )

    done = loop.run(loss_at)
    folder = own / "model"
    measured = read_json(folder / "metrics.json")
    if done and rank() == 0 and (measured is None or measured["steps"] != loop.step):
        finish(averaged, stage, folder, loop.state())
    barrier()
    return done


def _beginning(stage: VaeStage, work: Path, seed: int, device: torch.device) -> AutoencoderKLHunyuanVideo:
    """The autoencoder as it is before the first step."""
    if stage.decoder_only:
        vae = load_vae(vae_folder(work, but=stage.name), device)
        vae.decoder.requires_grad_(True)
        vae.post_quant_conv.requires_grad_(True)
        return vae
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = build_vae(stage.model).to(device)
    earlier = work / "earlier" / "vae"
    if earlier.is_dir():
        vae.load_state_dict(load_vae(earlier, device).state_dict())
    speed_up(vae)
    return vae


def _trained(stage: VaeStage, vae: AutoencoderKLHunyuanVideo) -> dict[str, nn.Module]:
    """The modules that a stage trains."""
    if stage.decoder_only:
        return {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}
    return {"vae": vae}


def training_plan(count: int, seed: int, geometry: Geometry, *, crowded: bool) -> Plan:
    """Clips to draw; crowded ones have the objects of three scenes, because a lone object is a few percent of the
    pixels, and a model that saw such clips alone would learn the background and stop there for long."""
    extent = extent_of(geometry.height, geometry.width)
    plan = plan_clips(count, seed, extent)
    if not crowded:
        return plan
    others = [plan_clips(count, seed + offset, extent).objects for offset in (1, 2)]
    return dataclasses.replace(plan, objects=torch.cat([plan.objects, *others], dim=1))


def finish(vae: AutoencoderKLHunyuanVideo, stage: VaeStage, folder: Path, state: dict[str, Any]) -> None:
    """Normalise the latents, if the encoder was trained, measure on held-out clips, save model and ``metrics.json``."""
    vae = in_one_piece(copy.deepcopy(vae)).eval()
    geometry, clips = stage.full[0], _MEASURED
    latents = _latents_of(vae, geometry, clips)
    if not stage.decoder_only:
        deviation = latents.std(dim=(0, 2, 3, 4))
        typical = deviation.square().mean().sqrt()
        # A channel that carries next to nothing must not be blown up to the size of the others.
        fold_normalisation(vae, latents.mean(dim=(0, 2, 3, 4)), deviation.clamp(min=0.4 * float(typical)))
        latents = _latents_of(vae, geometry, clips)
        vae.register_to_config(scaling_factor=float(1.0 / latents.std()))
        latents *= vae.config.scaling_factor
    metrics = {
        "stage": stage.name,
        **measure(vae, geometry, clips),
        "psnr_db_noisy_latents": measure(vae, geometry, clips // 2, noise=0.1)["psnr_db"],
        "other_sizes": {
            f"{g.frames}x{g.height}x{g.width}": measure(vae, g, clips // 4)["psnr_db"] for g in stage.full[1:]
        },
        "scaling_factor": vae.config.scaling_factor,
        "channel_std": [round(v, 3) for v in latents.std(dim=(0, 2, 3, 4)).tolist()],
        "steps": state["step"],
        "batch": state["batch"],
        "minutes": round(state["seconds"] / 60.0, 1),
    }
    vae.save_pretrained(folder)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(f"{stage.name} done: {metrics}", flush=True)


@torch.no_grad()
def measure(vae: AutoencoderKLHunyuanVideo, geometry: Geometry, clips: int, noise: float = 0.0) -> dict[str, Any]:
    """Errors on held-out clips, in dB below full scale (8 bit).

    Returns:
        ``psnr_db``, the mean over clips, and ``moving_edges_db``: the same of pixels that something moves into or out
        of within three frames, for the first frame and for each of the four frames that share a latent frame.
    """
    scenes = spread(held_out_scenes(), clips)
    whole: list[Tensor] = []
    edges = torch.zeros(5, 2, dtype=torch.float64, device=vae.device)
    extent = extent_of(geometry.height, geometry.width)
    for start in range(0, clips, 4):
        plan = plan_scenes(scenes[start : start + 4], seed=start, extent=extent)
        x, cover = draw(plan, geometry.frames, geometry.height, geometry.width, vae.device)
        z = encode(vae, x)
        z = z + noise * torch.randn(z.shape, generator=generator_at(start, 0, "psnr", vae.device), device=vae.device)
        with half_precision(vae.device):
            y = vae.decode(z / vae.config.scaling_factor).sample.float().clamp(-1.0, 1.0)
        error = ((x - y) / 2.0).square()
        whole.append(-10.0 * torch.log10(error.mean(dim=(1, 2, 3, 4))))
        edges += _edges(error.mean(dim=1), cover[:, 0])
    moving = (-10.0 * torch.log10(edges[:, 0] / edges[:, 1].clamp(min=1.0))).tolist()
    return {"psnr_db": round(float(torch.cat(whole).mean()), 2), "moving_edges_db": [round(v, 2) for v in moving]}


def _edges(error: Tensor, cover: Tensor) -> Tensor:
    """Sum and number of squared errors [B, F, H, W] at moving edges, for the first frame and four phases [5, 2]."""
    moving = (change(cover[:, None])[:, 0] > 0.5).double()
    sums = torch.stack([(error * moving).sum((0, 2, 3)), moving.sum((0, 2, 3))], dim=1)  # [F, 2]
    phases = [sums[:1].sum(0), *(sums[1 + phase :: 4].sum(0) for phase in range(4))]
    return torch.stack(phases).double()


def _latents_of(vae: AutoencoderKLHunyuanVideo, geometry: Geometry, clips: int) -> Tensor:
    """Latents [B, C, f, h, w] of full-size clips."""
    parts = []
    for start in range(0, clips, 8):
        plan = plan_clips(8, 90_000 + start, extent_of(geometry.height, geometry.width))
        clip, _ = draw(plan, geometry.frames, geometry.height, geometry.width, vae.device)
        parts.append(encode(vae, clip).float())
    return torch.cat(parts)
