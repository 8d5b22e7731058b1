"""Pipelines of a model's real size with random weights: what a machine would take for it, without a download.

Weights are drawn where the model will run, in its final dtype; with offloading each then goes to the CPU. Text encoders
are left out: random embeddings of the same shape stand for theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor

from adaspa_cli.config.architecture import Architecture
from adaspa_cli.models.registry import heavy


def random_pipeline(
    architecture: Architecture,
    dtype: torch.dtype,
    device: torch.device,
    *,
    decode: bool,
    held: torch.device | None = None,
) -> Any:
    """Build a pipeline of diffusers; the same one each time.

    Args:
        device: where the weights are drawn: billions take seconds on a GPU, and minutes on a CPU.
        decode: build a VAE too; without one the pipeline ends in latents, unless it makes videos from pictures.
        held: where they are kept, if not on ``device``.
    """
    import diffusers

    family = heavy(architecture.facts)
    classes, random, held = family.classes(), torch.Generator(device).manual_seed(0), held or device
    scheduler = dict(architecture.parts["scheduler"])
    needs_vae = decode or family.facts.images or family.facts.asks_vae  # pictures are encoded
    vae = _build(classes.vae, architecture.parts["vae"], dtype, random, held) if needs_vae else None
    transformers = {
        name: _build(classes.transformer, config, dtype, random, held)
        for name, config in architecture.transformers.items()
    }
    pipe = classes.pipeline(
        **dict.fromkeys((*family.absent, *family.facts.transformers)) | transformers,
        vae=vae,
        scheduler=getattr(diffusers, scheduler["_class_name"]).from_config(scheduler),
        **family.made_parts(),
        **architecture.arguments,
    )
    if vae is None:
        # Without one to ask, a pipeline takes the scale of the first VAE that its family had.
        scale = family.facts.vae_scale(architecture.parts.get("vae", {}))
        pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial = scale
    for name, stand_in in family.stand_ins(pipe).items():
        setattr(pipe, name, stand_in)
    return pipe


def _build(kind: Any, config: Any, dtype: torch.dtype, random: torch.Generator, held: torch.device) -> Any:
    """A model whose parameters are drawn one by one; buffers, such as position tables, are real."""
    with init_empty_weights(include_buffers=False):
        model = kind.from_config(dict(config))
    for path, parameter in list(model.named_parameters()):
        value = _random_parameter(path, parameter.shape, dtype, random)
        set_module_tensor_to_device(model, path, held, value=value, dtype=dtype)
    return model.to(held).requires_grad_(False).eval()


def _random_parameter(path: str, shape: torch.Size, dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """Weights that keep the scale of what they multiply, so that a deep stack stays finite; norms do nothing."""
    value = torch.empty(shape, dtype=dtype, device=random.device)
    if len(shape) < 2:
        return value.fill_(0.0 if path.endswith("bias") else 1.0)
    return value.normal_(0.0, shape[1:].numel() ** -0.5, generator=random)
