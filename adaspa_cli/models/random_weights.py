"""Pipelines of a model's real size with random weights: what a machine would take for it, without a download.

Weights are drawn where the model will run, in its final dtype; with offloading each then goes to the CPU. Text encoders
are left out: random embeddings of the same shape stand for theirs, with as many real tokens as the prompt would about
have.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor

from adaspa_cli.config.architecture import Architecture

Encode = Callable[..., tuple[Any, ...]]


@dataclass(frozen=True)
class _Family:
    """Classes of diffusers, the parts that are left out, and what stands for the text encoders."""

    transformer: str
    vae: str
    absent: tuple[str, ...]
    encoder: Callable[[Any], Encode]


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
        decode: build a VAE too; without one the pipeline ends in latents.
        held: where they are kept, if not on ``device``.
    """
    import diffusers

    family = _FAMILIES[architecture.pipeline]
    random = torch.Generator(device).manual_seed(0)
    scheduler = dict(architecture.parts["scheduler"])
    held = held or device
    vae = _build(family.vae, architecture.parts["vae"], dtype, random, held) if decode else None
    pipe = getattr(diffusers, architecture.pipeline)(
        transformer=_build(family.transformer, architecture.parts["transformer"], dtype, random, held),
        vae=vae,
        scheduler=getattr(diffusers, scheduler["_class_name"]).from_config(scheduler),
        **dict.fromkeys(family.absent),
    )
    pipe.encode_prompt = family.encoder(pipe)
    return pipe


def _build(name: str, config: Any, dtype: torch.dtype, random: torch.Generator, held: torch.device) -> Any:
    """A model whose parameters are drawn one by one; buffers, such as position tables, are real."""
    import diffusers

    with init_empty_weights(include_buffers=False):
        model = getattr(diffusers, name).from_config(dict(config))
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


def text_tokens(prompt: str, longest: int) -> int:
    """About how many tokens a prompt has: four for three words, and two around them."""
    return min(longest, len(prompt.split()) * 4 // 3 + 2)


def _noise(text: str, shape: tuple[int, ...], pipe: Any) -> Tensor:
    random = torch.Generator("cpu").manual_seed(zlib.crc32(text.encode()))
    return torch.randn(shape, generator=random).to(pipe._execution_device, pipe.transformer.dtype)


def _hunyuan_encoder(pipe: Any) -> Encode:
    def encode_prompt(prompt: str, *, max_sequence_length: int = 256, **_ignored: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [1, T, C], pooled embeddings [1, P], mask [1, T]."""
        config = pipe.transformer.config
        embeddings = _noise(prompt, (1, max_sequence_length, config.text_embed_dim), pipe)
        pooled = _noise(prompt, (1, config.pooled_projection_dim), pipe)
        mask = torch.zeros(1, max_sequence_length, dtype=torch.long, device=embeddings.device)
        mask[:, : text_tokens(prompt, max_sequence_length)] = 1
        return embeddings, pooled, mask

    return encode_prompt


def _cogvideox_encoder(pipe: Any) -> Encode:
    def encode_prompt(
        prompt: str,
        negative_prompt: str | None = None,
        do_classifier_free_guidance: bool = True,
        *,
        max_sequence_length: int = 226,
        **_ignored: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings [1, T, C] of the prompt, and of the negative prompt where there is guidance."""
        shape = (1, max_sequence_length, pipe.transformer.config.text_embed_dim)
        negative = _noise(negative_prompt or "", shape, pipe) if do_classifier_free_guidance else None
        return _noise(prompt, shape, pipe), negative

    return encode_prompt


_FAMILIES = {
    "HunyuanVideoPipeline": _Family(
        "HunyuanVideoTransformer3DModel",
        "AutoencoderKLHunyuanVideo",
        ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        _hunyuan_encoder,
    ),
    "CogVideoXPipeline": _Family(
        "CogVideoXTransformer3DModel",
        "AutoencoderKLCogVideoX",
        ("text_encoder", "tokenizer"),
        _cogvideox_encoder,
    ),
}
