"""The loss of flow matching, by which the transformer is trained together with its text encoders.

Conventions are those of ``FlowMatchEulerDiscreteScheduler`` and ``HunyuanVideoPipeline``: x_s = (1 - s) data + s noise,
the model predicts noise - data and is told 1000 s; sigmas follow a logit-normal that is shifted by the formula of the
scheduler's steps. A fifth of them is uniform before the shift, because sampling begins at sigma 1, which a logit-normal
practically never draws, and colours and motion are decided there.

Objects fill a tenth of a clip. Once the noise is low enough to show where they are, their cells weigh more, so that
outlines get their share of the gradient; at higher noise such a weight would favour clips with more in them.

Guidance is trained in, so that sampling needs one pass a step: in the second half of the last stage, or from the
beginning of a stage if the model has guidance, the target moves on along the difference that the caption makes, as in
"Diffusion Models without Classifier-free Guidance" (arXiv 2502.12154). With the weight w this amounts to a guidance
scale of 1 / (1 - w).

Shapes: B clips, C channels, f, h, w of latents.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scripts.train_world.autoencoder import half_precision
from scripts.train_world.pool import Batch
from scripts.train_world.text import embed

_UNIFORM_SHARE = 0.2
_NEAR_WEIGHT = 4.0
_NEAR_BELOW = 0.7  # sigma


def sample_sigmas(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels [count] in (0, 1), on the generator's device."""
    device = generator.device
    normal = torch.randn(count, generator=generator, device=device).sigmoid()
    uniform = torch.rand(count, generator=generator, device=device)
    pick = torch.rand(count, generator=generator, device=device) < _UNIFORM_SHARE
    sigma = torch.where(pick, uniform, normal)
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


def flow_loss(
    modules: Mapping[str, nn.Module],
    batch: Batch,
    shift: float,
    generator: torch.Generator,
    *,
    guidance: float = 0.0,
    empty: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Mean squared error of the predicted velocity.

    Args:
        guidance: weight w of the difference between the predictions with and without caption.
        empty: token ids of the empty caption [1, ...]; needed with guidance.
    """
    data = batch.latents.float()
    noise = torch.randn(data.shape, generator=generator, device=data.device)
    sigma = sample_sigmas(len(data), shift, generator)
    noisy = torch.lerp(data, noise, sigma.view(-1, 1, 1, 1, 1))
    velocity = _velocity(modules, noisy, sigma, batch.llama, batch.clip)
    target = noise - data
    if guidance and batch.captioned and empty is not None:
        with torch.no_grad():
            llama, clip = (ids.expand(len(data), -1) for ids in empty)
            target = target + guidance * (velocity.detach() - _velocity(modules, noisy, sigma, llama, clip))
    near = batch.near & (sigma < _NEAR_BELOW).view(-1, 1, 1, 1, 1)
    weight = torch.where(near, _NEAR_WEIGHT, 1.0)
    return ((velocity - target).square() * weight).mean() / weight.mean()


def _velocity(modules: Mapping[str, nn.Module], noisy: Tensor, sigma: Tensor, llama: Tensor, clip: Tensor) -> Tensor:
    with half_precision(noisy.device):
        embeds, pooled = embed(modules["text_encoder"], modules["text_encoder_2"], llama, clip)
        velocity = modules["transformer"](
            hidden_states=noisy,
            timestep=1000.0 * sigma,
            encoder_hidden_states=embeds,
            encoder_attention_mask=torch.ones(embeds.shape[:2], dtype=torch.bool, device=noisy.device),
            pooled_projections=pooled,
            return_dict=False,
        )[0]
    return velocity.float()
