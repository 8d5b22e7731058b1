"""The video autoencoder and its loss: 33x256x256 pixels <-> C channels of 9x32x32 latents.

- The model always sees a clip in one piece: framewise encoding and decoding stay off, here and wherever the model is
  used. Its GroupNorms average over a whole clip.
- They have one group. With several, and few channels at full resolution, a clip that is nearly one colour is divided by
  its own brightness, and the colour is lost for good (PSNR stayed at 11 dB).
- Objects are small and matter most: their pixels and the rim around them weigh more.
- The decoder sees latents with some noise (rising), relative to the spread of the latents. It learns to
  shrug off the error of a few sampling steps, and the encoder to put what matters well above that noise. A slight KL
  keeps the latents centred.
- Diffusion wants every latent channel at the same scale, but a checkpoint has one scaling factor only. After
  training, centre and spread of each channel are folded into the 1x1x1 convolutions on either side of the latents,
  which changes nothing of what the autoencoder computes.

Shapes: B clips, C latent channels.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor, nn

from scripts.train_world.fast_vae import speed_up

_OBJECT_WEIGHT = 3.0
_KL_WEIGHT = 3e-4
_FIRST_LOG_VARIANCE = -6.0


@dataclass(frozen=True)
class VaeConfig:
    """Size of the autoencoder."""

    latent_channels: int = 8
    channels: tuple[int, ...] = (8, 16, 64, 64)
    layers: int = 1
    groups: int = 1


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
    """The frozen autoencoder that training or an export left in ``folder``."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no trained VAE in {folder}: run the stage 'vae' first, or start from a model")
    vae = AutoencoderKLHunyuanVideo.from_pretrained(folder, low_cpu_mem_usage=False, dtype=torch.float32)
    speed_up(vae)
    return in_one_piece(vae).to(device).eval().requires_grad_(False)


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
    decoder_only: bool = False,
) -> Tensor:
    """Reconstruction error of clips [B, 3, F, H, W], with an object's coverage [B, 1, F, H, W], and the slight KL.

    Args:
        moving_weight: what pixels weigh besides that an object's edge moves across within three frames.
        decoder_only: of the most likely latents, and without KL; for an encoder that is frozen.
    """
    device = clips.device
    with half_precision(device):
        posterior = vae.encode(clips).latent_dist
    z = (posterior.mode() if decoder_only else posterior.sample(generator=generator)).float()
    level = torch.rand(len(z), 1, 1, 1, 1, generator=generator, device=device) * noise
    z = z + level * z.detach().std() * torch.randn(z.shape, generator=generator, device=device)
    with half_precision(device):
        decoded = vae.decode(z).sample
    error = decoded.float() - clips
    rim = F.max_pool3d(cover, (1, 7, 7), stride=1, padding=(0, 3, 3))
    weight = 1.0 + _OBJECT_WEIGHT * rim
    if moving_weight:
        weight = weight + moving_weight * change(cover)
    reconstruction = (weight * (error.abs() + error.square())).mean()
    if decoder_only:
        return reconstruction
    kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1.0 - posterior.logvar.float()).mean()
    return reconstruction + _KL_WEIGHT * kl


def change(cover: Tensor) -> Tensor:
    """Greatest difference of coverage [B, 1, F, H, W] within three frames."""
    window, padding = (3, 1, 1), (1, 0, 0)
    most = F.max_pool3d(cover, window, stride=1, padding=padding)
    least = -F.max_pool3d(-cover, window, stride=1, padding=padding)
    return most - least
