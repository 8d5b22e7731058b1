"""The model families that adaspa knows: one entry each, by the name of their pipeline class in diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adaspa_cli.config.schema import SamplingConfig
from adaspa_cli.errors import ConfigError, ModelError
from adaspa_cli.models.attachment import Attachment, Attend


@dataclass(frozen=True)
class Family:
    """What differs between pipelines, besides their attention.

    Attributes:
        attach: put adaspa's processors on a pipeline instance.
        call_arguments: the arguments of the pipeline's call that not every family has.
        check_size: raise ConfigError for a size that the model cannot make.
        size_multiple: height and width must be multiples of it.
        frame_period: the model makes a multiple of it, and one more frame.
    """

    attach: Callable[[Any, Attend], Attachment]
    call_arguments: Callable[[SamplingConfig], dict[str, Any]]
    check_size: Callable[[Any, SamplingConfig], None]
    size_multiple: Callable[[Any], int]
    frame_period: Callable[[Any], int]


def _attach_hunyuan(pipe: Any, attend: Attend) -> Attachment:
    from adaspa_cli.models.families.hunyuan_video import HunyuanVideoAttachment

    return HunyuanVideoAttachment(pipe, attend)


def _attach_cogvideox(pipe: Any, attend: Attend) -> Attachment:
    from adaspa_cli.models.families.cogvideox import CogVideoXAttachment

    return CogVideoXAttachment(pipe, attend)


def _hunyuan_arguments(sampling: SamplingConfig) -> dict[str, Any]:
    if sampling.negative_prompt and sampling.true_cfg_scale <= 1:
        raise ConfigError(
            "a negative prompt has no effect on this model without true classifier-free guidance",
            hint="add --true-cfg-scale 6 (two passes a step), or drop --negative-prompt",
        )
    return {"guidance_scale": sampling.guidance_scale, "true_cfg_scale": sampling.true_cfg_scale}


def _cogvideox_arguments(sampling: SamplingConfig) -> dict[str, Any]:
    if sampling.true_cfg_scale > 1:
        raise ConfigError("true_cfg_scale is HunyuanVideo's; CogVideoX guides by --guidance-scale")
    return {"guidance_scale": sampling.guidance_scale}


def _cogvideox_limits(pipe: Any, sampling: SamplingConfig) -> None:
    """Position tables that do not grow with the video: beyond them diffusers fails deep inside the model."""
    config, scale = pipe.transformer.config, pipe.vae_scale_factor_spatial
    largest = (config.sample_height * scale, config.sample_width * scale)
    size = (sampling.height, sampling.width)
    if config.use_rotary_positional_embeddings and config.patch_size_t is not None:
        if size[0] > largest[0] or size[1] > largest[1]:
            raise ConfigError(
                f"this CogVideoX makes at most {largest[0]} x {largest[1]} pixels, got {size[0]} x {size[1]}"
            )
    elif config.use_learned_positional_embeddings and size != largest:
        raise ConfigError(f"this CogVideoX makes {largest[0]} x {largest[1]} pixels alone, got {size[0]} x {size[1]}")


def _patch_multiple(pipe: Any) -> int:
    return int(pipe.vae_scale_factor_spatial * pipe.transformer.config.patch_size)


FAMILIES: dict[str, Family] = {
    # The pipeline itself insists on multiples of 16, whatever its model's patches are.
    "HunyuanVideoPipeline": Family(
        attach=_attach_hunyuan,
        call_arguments=_hunyuan_arguments,
        check_size=lambda _pipe, _sampling: None,
        size_multiple=lambda pipe: math.lcm(16, _patch_multiple(pipe)),
        frame_period=lambda pipe: int(pipe.vae_scale_factor_temporal),
    ),
    "CogVideoXPipeline": Family(
        attach=_attach_cogvideox,
        call_arguments=_cogvideox_arguments,
        check_size=_cogvideox_limits,
        size_multiple=_patch_multiple,
        # The VAE decodes latent frames in pairs after the first, and makes other counts longer than they were asked.
        frame_period=lambda pipe: 2 * int(pipe.vae_scale_factor_temporal),
    ),
}


def family_of(pipe: Any) -> Family:
    """Return the family of a pipeline instance.

    Raises:
        ModelError: adaspa has no adapter for its class.
    """
    name = type(pipe).__name__
    if name not in FAMILIES:
        raise ModelError(f"no adapter for {name}", hint=f"known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def check_sampling(pipe: Any, sampling: SamplingConfig) -> None:
    """Refuse a size, a number of frames or a kind of guidance that the model does not have.

    Raises:
        ConfigError: with the nearest valid value.
    """
    family = family_of(pipe)
    multiple = family.size_multiple(pipe)
    for key in ("height", "width"):
        value = getattr(sampling, key)
        if value % multiple:
            valid = max(multiple, round(value / multiple) * multiple)
            raise ConfigError(f"{key} must be a multiple of {multiple}, got {value}", hint=f"nearest: {valid}")
    period = family.frame_period(pipe)
    if (sampling.frames - 1) % period:
        valid = max(0, round((sampling.frames - 1) / period)) * period + 1
        raise ConfigError(f"the model makes {period}k + 1 frames, got {sampling.frames}", hint=f"nearest: {valid}")
    family.check_size(pipe, sampling)
    family.call_arguments(sampling)
