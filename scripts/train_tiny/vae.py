"""Trains the video autoencoder: 33x256x256 pixels <-> 8 channels of 9x32x32 latents.

- Both small and full clips are seen (the last quarter of the schedule is full size), because the GroupNorms average
  over a whole clip and so depend on its extent. The model always sees a clip in one piece: framewise encoding and
  decoding stay off, here and wherever the model is used.
- The GroupNorms have one group. With several, and only 8 channels at full resolution, a clip that is nearly one colour
  is divided by its own brightness, and the colour is lost for good (PSNR stayed at 11 dB).
- Early clips are crowded: four more objects each. A lone object is a few percent of the pixels, and a model that saw
  only such clips would learn the background and stop there for long.
- Objects are small and matter most: their pixels and the rim around them weigh more.
- The decoder sees latents with up to 15 % of noise (rising), relative to the spread of the latents. It learns to
  shrug off the error of a few sampling steps, and the encoder to put what matters well above that noise. A slight KL
  keeps the latents centred.
- Diffusion wants every latent channel at the same scale, but a checkpoint has one scaling factor only. After
  training, centre and spread of each channel are folded into the 1x1x1 convolutions on either side of the latents,
  which changes nothing of what the autoencoder computes.

Shapes: B clips, C latent channels.
"""

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor, nn

from scripts.train_tiny.captions import held_out_scenes
from scripts.train_tiny.checkpoint import generator_at, seed_at
from scripts.train_tiny.clips import Plan, draw, draw_crowd, plan_clips, plan_scenes
from scripts.train_tiny.fast_vae import speed_up
from scripts.train_tiny.loop import Loop, LoopConfig

_OBJECT_WEIGHT = 3.0
_KL_WEIGHT = 3e-4
_CROWD = 4
_LATENT_NOISE = 0.15
_FIRST_LOG_VARIANCE = -6.0


@dataclass(frozen=True)
class VaeConfig:
    """Size of the autoencoder and of the clips it is trained on (pixels)."""

    latent_channels: int = 8
    channels: tuple[int, ...] = (8, 16, 64, 64)
    layers: int = 1
    groups: int = 1
    frames: int = 33
    small: int = 128
    full: int = 256


def build_vae(config: VaeConfig) -> AutoencoderKLHunyuanVideo:
    """A randomly initialised autoencoder that treats clips in one piece."""
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=config.latent_channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        norm_num_groups=config.groups,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    _widen(vae)
    # Latents start almost without noise: with the default log-variance of about 0 they would be little else, and the
    # decoder would spend its first hundreds of steps learning to ignore them.
    with torch.no_grad():
        vae.quant_conv.weight[config.latent_channels :] *= 0.1
        vae.quant_conv.bias[config.latent_channels :] = _FIRST_LOG_VARIANCE
    return in_one_piece(vae)


def in_one_piece(vae: AutoencoderKLHunyuanVideo) -> AutoencoderKLHunyuanVideo:
    """Switch off everything that cuts clips up. The saved config has no field for framewise coding."""
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    vae.use_tiling = vae.use_slicing = False
    return vae


def load_vae(folder: Path, device: torch.device) -> AutoencoderKLHunyuanVideo:
    """The frozen autoencoder that ``train_vae`` or a bundle left in ``folder``."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no trained VAE in {folder}: run the stage 'vae' first, or start from a bundle")
    vae = AutoencoderKLHunyuanVideo.from_pretrained(folder, low_cpu_mem_usage=False, dtype=torch.float32)
    speed_up(vae)
    return in_one_piece(vae).to(device).eval().requires_grad_(False)


def train_vae(config: VaeConfig, loop_config: LoopConfig, work: Path, device: torch.device) -> bool:
    """Train, resuming what ``work/vae`` holds; when the schedule is done, leave the model in ``work/vae/model``.

    Returns:
        True if the schedule came to its end.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(loop_config.seed)
        vae = build_vae(config).to(device)
    speed_up(vae)
    averaged = copy.deepcopy(vae).requires_grad_(False)
    loop = Loop({"vae": vae}, {"vae": averaged}, loop_config, work / "vae", {"vae": asdict(config)})
    loop.resume()

    def loss_at(step: int) -> Tensor:
        progress = loop.progress()
        small = progress < 0.75
        batch, size = (loop_config.batch, config.small) if small else (max(1, loop_config.batch // 4), config.full)
        clips, cover = draw_crowd(*_plans(loop_config.seed, step, batch, progress), config.frames, size, size, device)
        noise = _LATENT_NOISE * min(1.0, 0.2 + 2.0 * progress)
        return vae_loss(vae, clips, cover, noise, generator_at(loop_config.seed, step, "vae noise", device))

    done = loop.run(loss_at)
    if done:
        finish(averaged, config, work / "vae" / "model", loop.state())
    return done


def finish(
    vae: AutoencoderKLHunyuanVideo, config: VaeConfig, folder: Path, state: dict[str, Any], clips: int = 256
) -> None:
    """Normalise the latents, measure, save model and ``metrics.json``."""
    vae = in_one_piece(copy.deepcopy(vae)).eval()
    before = _latents_of(vae, config, clips)
    deviation = before.std(dim=(0, 2, 3, 4))
    typical = deviation.square().mean().sqrt()
    # A channel that carries next to nothing must not be blown up to the size of the others.
    fold_normalisation(vae, before.mean(dim=(0, 2, 3, 4)), deviation.clamp(min=0.4 * float(typical)))
    after = _latents_of(vae, config, clips)
    vae.register_to_config(scaling_factor=float(1.0 / after.std()))
    metrics = {
        "psnr_db": round(psnr(vae, config, noise=0.0), 2),
        "psnr_db_noisy_latents": round(psnr(vae, config, noise=0.1), 2),
        "scaling_factor": vae.config.scaling_factor,
        "channel_std": [round(v, 3) for v in (after.std(dim=(0, 2, 3, 4)) * vae.config.scaling_factor).tolist()],
        "steps": state["step"],
        "batch": state["batch"],
        "minutes": round(state["seconds"] / 60.0, 1),
    }
    vae.save_pretrained(folder)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(f"vae done: {metrics}", flush=True)


@torch.no_grad()
def fold_normalisation(vae: AutoencoderKLHunyuanVideo, centre: Tensor, spread: Tensor) -> None:
    """Make (z - centre) / spread the new latents [C] by rewriting the convolutions next to them."""
    channels = len(centre)
    encode, decode = vae.quant_conv, vae.post_quant_conv
    decode.bias += decode.weight.flatten(1) @ centre
    decode.weight *= spread.view(1, -1, 1, 1, 1)
    encode.weight[:channels] /= spread.view(-1, 1, 1, 1, 1)
    encode.bias[:channels] = (encode.bias[:channels] - centre) / spread
    encode.bias[channels:] -= 2.0 * spread.log()  # the log-variances


@torch.no_grad()
def encode(vae: AutoencoderKLHunyuanVideo, clips: Tensor) -> Tensor:
    """Most likely latents of clips [B, 3, F, H, W], scaled to unit spread as the transformer sees them."""
    with half_precision(clips.device):
        return vae.encode(clips).latent_dist.mode() * vae.config.scaling_factor


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 autocast on a GPU; on a CPU, where it may be emulated, nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


@torch.no_grad()
def psnr(vae: AutoencoderKLHunyuanVideo, config: VaeConfig, noise: float, clips: int = 64) -> float:
    """Mean PSNR in dB over held-out scenes at full size, with noise of that many standard deviations on latents."""
    device = vae.device
    plan_all = held_out_scenes()[:clips]
    values = []
    for start in range(0, len(plan_all), 4):
        plan = plan_scenes(plan_all[start : start + 4], seed=start)
        x, _ = draw(plan, config.frames, config.full, config.full, device)
        z = encode(vae, x)
        z = z + noise * torch.randn(z.shape, generator=generator_at(start, 0, "psnr", device), device=device)
        with half_precision(device):
            y = vae.decode(z / vae.config.scaling_factor).sample.float().clamp(-1.0, 1.0)
        values.append(-10.0 * torch.log10(((x - y) / 2.0).square().mean(dim=(1, 2, 3, 4))))
    return float(torch.cat(values).mean())


def _plans(seed: int, step: int, batch: int, progress: float) -> tuple[Plan, list[Plan]]:
    """The clips of a step and what crowds them: always at first, then every other step, at last every fourth."""
    plan = plan_clips(batch, seed_at(seed, step, "vae clips"), pair_share=0.3)
    every = 1 if progress < 0.4 else 2 if progress < 0.75 else 4
    if step % every:
        return plan, []
    seeds = (seed_at(seed, step, f"vae crowd {index}") for index in range(_CROWD))
    return plan, [plan_clips(batch, other, pair_share=0.0) for other in seeds]


@torch.no_grad()
def _widen(vae: AutoencoderKLHunyuanVideo) -> None:
    """Weights that keep the size of what passes. torch's own shrink it at each of the many convolutions in a row, and
    where an object is would hardly reach the latents."""
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv3d) and "quant" not in name:
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if name.endswith("conv2.conv"):  # the end of a residual branch
                module.weight *= 0.3


def vae_loss(
    vae: AutoencoderKLHunyuanVideo,
    clips: Tensor,
    cover: Tensor,
    noise: float,
    generator: torch.Generator,
    *,
    moving_weight: float = 0.0,
) -> Tensor:
    """Reconstruction error of clips [B, 3, F, H, W], with an object's coverage [B, 1, F, H, W], and the slight KL.

    ``moving_weight``: what pixels weigh besides that an object's edge moves across within three frames.
    """
    device = clips.device
    with half_precision(device):
        posterior = vae.encode(clips).latent_dist
        z = posterior.sample(generator=generator).float()
        level = torch.rand(len(z), 1, 1, 1, 1, generator=generator, device=device) * noise
        z = z + level * z.detach().std() * torch.randn(z.shape, generator=generator, device=device)
        decoded = vae.decode(z).sample
    error = decoded.float() - clips
    rim = F.max_pool3d(cover, (1, 7, 7), stride=1, padding=(0, 3, 3))
    weight = 1.0 + _OBJECT_WEIGHT * rim
    if moving_weight:
        weight = weight + moving_weight * change(cover)
    reconstruction = (weight * (error.abs() + error.square())).mean()
    kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1.0 - posterior.logvar.float()).mean()
    return reconstruction + _KL_WEIGHT * kl


def change(cover: Tensor) -> Tensor:
    """Greatest difference of coverage [B, 1, F, H, W] within three frames."""
    window, padding = (3, 1, 1), (1, 0, 0)
    most = F.max_pool3d(cover, window, stride=1, padding=padding)
    least = -F.max_pool3d(-cover, window, stride=1, padding=padding)
    return most - least


def _latents_of(vae: AutoencoderKLHunyuanVideo, config: VaeConfig, clips: int) -> Tensor:
    """Latents [B, C, f, h, w] of full-size clips."""
    parts = []
    for start in range(0, clips, 8):
        clip, _ = draw(plan_clips(8, seed=90_000 + start), config.frames, config.full, config.full, vae.device)
        parts.append(encode(vae, clip).float())
    return torch.cat(parts)
