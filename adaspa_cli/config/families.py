"""What is known of each model family without torch and diffusers: names, defaults, layers, sizes, call arguments.

:data:`FAMILIES` is the one list of families. An entry names the heavy part of its family, a module in
``adaspa_cli/models/families``, and the preset in ``configs/models`` that holds its defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from adaspa_cli.config.linear_weights import (
    cogvideox_weights,
    hunyuan_video15_weights,
    hunyuan_video_weights,
    wan_weights,
)
from adaspa_cli.config.size_rule import SizeRule
from adaspa_cli.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from adaspa_cli.config.caches import CacheConfig
    from adaspa_cli.config.schema import SamplingConfig

Config = Mapping[str, Any]  # of a transformer or a VAE, as diffusers stores it
Grid = tuple[int, int, int]  # frames, height, width in tokens


@dataclass(frozen=True)
class FamilyFacts:
    """The facts about a family that need no torch.

    Attributes:
        module: the heavy part, in ``adaspa_cli/models/families``: it exports one ``FAMILY``.
        pipeline: class of diffusers that runs the family.
        preset: in ``configs/models``: its defaults serve a checkpoint that no preset names.
        other_presets: the presets of a family whose models differ in more than their size, each with a key of
            ``model_index.json`` by which it is known; ``preset`` is for the others.
        layer_keys: keys of a transformer's configuration that count attention layers, in the order of the stack.
        size_rule: from the configurations of the transformer and the VAE; the latter is empty where there is none.
        vae_scale: frames and pixels along a side, of a video, that become one of the latents, from the configuration of
            the VAE, which is empty where there is none.
        token_grid: the token grid of latents of so many frames, rows and columns, from the configuration of the
            transformer.
        call_arguments: the arguments of the pipeline's call that not every family has; raises ConfigError for
            settings that the family does not have.
        guided: whether a run has an unconditional branch beside the conditional one.
        pass_states: peak memory of a pass beside weights and masks, in tensors of the size of the hidden states.
        compiled_states: the same with compiled blocks; both measured on a GPU with dense attention (docs/plan.md).
        word_table: parameters of the text encoder's table of words.
        linear_weights: weights of the linear layers that may multiply in FP8, from the transformer's configuration.
        transformers: parts of the pipeline that are transformers, in the order in which a run uses them. All but the
            first may be absent. Layers are numbered on from one to the next.
        takes_last_image: whether a model takes the picture that a video ends with, of a family of which some do.
        keeps_first_frame: whether the picture is the video's first frame as it is, by the transformer's configuration.
        variants: other classes of pipelines with the same transformer, which only Python can call.
        single_file: whether diffusers reads the transformer from a single file, safetensors or GGUF.
        asks_vae: whether the pipeline needs its VAE where it does not use it.
        sized: whether the pipeline's call takes height and width.
        dropped_frames: frames that the pipeline makes before the video and drops, from the transformer's configuration.
        joins_branches: whether both branches of guidance go through the transformer in one call.
        joint_text: about how many text tokens of a prompt attend together with the video's; 0 where text is separate.
        text_rows: text tokens that go through the linear layers of the blocks together with the video's, padding
            included, which attention leaves out.
        no_caches: caches that diffusers does not have for the family's blocks.
        images: arguments of the pipeline's call that take a picture, which are settings too: ``image``, which it must
            have, and ``last_image``. Empty where videos are made from text only.
    """

    module: str
    pipeline: str
    preset: str
    layer_keys: tuple[str, ...]
    size_rule: Callable[[Config, Config], SizeRule]
    vae_scale: Callable[[Config], tuple[int, int]]
    token_grid: Callable[[Config, int, int, int], Grid]
    call_arguments: Callable[[SamplingConfig], dict[str, Any]]
    guided: Callable[[SamplingConfig], bool]
    pass_states: float
    compiled_states: float
    word_table: int
    linear_weights: Callable[[Config], int]
    transformers: tuple[str, ...] = ("transformer",)
    joins_branches: bool = False
    joint_text: Callable[[str], int] = lambda _prompt: 0
    text_rows: int = 0
    no_caches: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    single_file: bool = False
    asks_vae: bool = False
    sized: bool = True
    dropped_frames: Callable[[Config], int] = lambda _transformer: 0
    takes_last_image: Callable[[Config], bool] = lambda _transformer: True
    keeps_first_frame: Callable[[Config], bool] = lambda _transformer: False
    other_presets: Mapping[str, str] = field(default_factory=dict)

    def preset_of(self, index: Mapping[str, Any]) -> str:
        """The preset whose defaults serve a checkpoint, from its ``model_index.json``."""
        return next((preset for key, preset in self.other_presets.items() if index.get(key)), self.preset)

    def check(self, rule: SizeRule, sampling: SamplingConfig, transformers: Sequence[Config]) -> None:
        """Raise ConfigError for a size, a kind of guidance or a picture that a model with these transformers does not
        take."""
        rule.check(sampling.height, sampling.width, sampling.frames)
        if sampling.guidance_scale_2 is not None and len(transformers) < 2:
            raise ConfigError(
                "guidance_scale_2 is for a second transformer, but the model has one",
                hint="drop --guidance-scale-2",
            )
        self.call_arguments(sampling)
        for key in sampling.pictures:
            if key not in self.images or (key == "last_image" and not self.takes_last_image(transformers[0])):
                takes = "makes videos from text only" if not self.images else "takes no last image"
                raise ConfigError(
                    f"{key}: this model, a {self.pipeline}, {takes}",
                    hint=f"drop --{key.replace('_', '-')}, or use a model that takes it",
                )
        if sampling.frames == 1 and (sampling.last_image is not None or self.keeps_first_frame(transformers[0])):
            raise ConfigError(
                "frames: a video of one frame would be the picture", hint=f"nearest: {rule.frame_period + 1}"
            )

    def check_cache(self, cache: CacheConfig, sampling: SamplingConfig, transformers: int) -> None:
        """Raise ConfigError for a cache that a model with so many transformers cannot have in such a run."""
        if cache.single_branch and self.guided(sampling) and not self.joins_branches:
            raise ConfigError(
                f"{cache.name} keeps one attention output per layer, but this run has two guidance branches per step",
                hint="use another cache, or no guidance",
            )
        if cache.single_transformer and transformers > 1:
            raise ConfigError(
                f"{cache.name}'s ratios describe one transformer over all steps, but this model has two",
                hint="use another cache",
            )
        if cache.name in self.no_caches and not cache.calibrates:
            raise ConfigError(
                f"diffusers has no cache '{cache.name}' for this model", hint="use --cache adacache, or none"
            )

    def check_single_file(self, transformers: int) -> None:
        """Raise ConfigError where the transformer cannot come from a file of its own."""
        if not self.single_file:
            raise ConfigError(
                f"transformer: diffusers can't read the transformer of a {self.pipeline} from a single file",
                hint="drop --transformer",
            )
        if transformers > 1:
            raise ConfigError("transformer is one file, but the model has two transformers", hint="drop --transformer")

    def check_image(self, sampling: SamplingConfig, *, random_weights: bool) -> None:
        """Raise ConfigError where the model needs a picture to begin with and none is given.

        With random weights one is made up.
        """
        if self.images and sampling.image is None and not random_weights:
            raise ConfigError("this model makes a video from a picture, and none was given", hint="add --image FILE")

    def video_grid(self, transformer: Config, vae: Config, sampling: SamplingConfig) -> Grid:
        """The token grid of a video, from the configurations of the transformer and the VAE."""
        time, space = self.vae_scale(vae)
        frames = (sampling.frames + self.dropped_frames(transformer) - 1) // time + 1
        return self.token_grid(transformer, frames, sampling.height // space, sampling.width // space)


def text_tokens(prompt: str, longest: int) -> int:
    """About how many tokens a prompt has: four for three words, and two around them."""
    return min(longest, len(prompt.split()) * 4 // 3 + 2)


def _hunyuan_video_scale(vae: Config) -> tuple[int, int]:
    return vae.get("temporal_compression_ratio", 4), vae.get("spatial_compression_ratio", 8)


def _hunyuan_video_size(transformer: Config, vae: Config) -> SizeRule:
    time, space = _hunyuan_video_scale(vae)
    # The pipeline itself insists on multiples of 16, whatever its model's patches are.
    return SizeRule(math.lcm(16, space * transformer.get("patch_size", 2)), time)


def _hunyuan_video_grid(transformer: Config, frames: int, height: int, width: int) -> Grid:
    patch = transformer.get("patch_size", 2)
    return frames // transformer.get("patch_size_t", 1), height // patch, width // patch


def _hunyuan_video_arguments(sampling: SamplingConfig) -> dict[str, Any]:
    if sampling.negative_prompt and sampling.true_cfg_scale <= 1:
        raise ConfigError(
            "a negative prompt has no effect on this model without true classifier-free guidance",
            hint="add --true-cfg-scale 6 (two passes a step), or drop --negative-prompt",
        )
    return {"guidance_scale": sampling.guidance_scale, "true_cfg_scale": sampling.true_cfg_scale}


def _cogvideox_scale(vae: Config) -> tuple[int, int]:
    return int(vae.get("temporal_compression_ratio", 4)), 2 ** (len(vae.get("block_out_channels", range(4))) - 1)


def _cogvideox_grid(transformer: Config, frames: int, height: int, width: int) -> Grid:
    patch = transformer.get("patch_size", 2)
    # The last latent frames are padded to a whole patch.
    return -(-frames // (transformer.get("patch_size_t") or 1)), height // patch, width // patch


def _cogvideox_size(transformer: Config, vae: Config) -> SizeRule:
    time, scale = _cogvideox_scale(vae)
    # The VAE decodes latent frames in pairs after the first, and makes other counts longer than they were asked.
    period = 2 * time
    # Position tables that do not grow with the video: beyond them diffusers fails deep inside the model.
    table = (transformer.get("sample_height", 60) * scale, transformer.get("sample_width", 90) * scale)
    rotary = transformer.get("use_rotary_positional_embeddings", False)
    cut = rotary and transformer.get("patch_size_t") is not None
    learned = transformer.get("use_learned_positional_embeddings", False)
    return SizeRule(
        scale * transformer.get("patch_size", 2),
        period,
        largest=table if cut else None,
        only=table if learned and not cut else None,
    )


def _cogvideox_arguments(sampling: SamplingConfig) -> dict[str, Any]:
    if sampling.true_cfg_scale > 1:
        raise ConfigError("true_cfg_scale is for HunyuanVideo; CogVideoX uses --guidance-scale")
    return {"guidance_scale": sampling.guidance_scale}


def _wan_scale(vae: Config) -> tuple[int, int]:
    return vae.get("scale_factor_temporal", 4), vae.get("scale_factor_spatial", 8)


def _wan_patch(transformer: Config) -> Grid:
    frames, height, width = transformer.get("patch_size", (1, 2, 2))
    return frames, height, width


def _wan_size(transformer: Config, vae: Config) -> SizeRule:
    time, space = _wan_scale(vae)
    _, height, width = _wan_patch(transformer)
    # The pipeline itself insists on multiples of 16, and rounds what does not fit its patches down without a word.
    return SizeRule(math.lcm(16, space * height, space * width), time)


def _wan_grid(transformer: Config, frames: int, height: int, width: int) -> Grid:
    of_time, of_height, of_width = _wan_patch(transformer)
    return frames // of_time, height // of_height, width // of_width


def _wan_takes_last_image(transformer: Config) -> bool:
    """Others leave it out without a word (TI2V), or fail on the two pictures' embeddings (Wan 2.1 for one picture)."""
    beside_noise = transformer.get("in_channels", 16) != transformer.get("out_channels", 16)
    embeds_two = transformer.get("image_dim") is None or transformer.get("pos_embed_seq_len") is not None
    return beside_noise and embeds_two


def _wan_keeps_first_frame(transformer: Config) -> bool:
    """TI2V: others take the picture as channels beside the noise."""
    same: bool = transformer.get("in_channels", 16) == transformer.get("out_channels", 16)
    return same


def _wan_arguments(sampling: SamplingConfig) -> dict[str, Any]:
    if sampling.true_cfg_scale > 1:
        raise ConfigError("true_cfg_scale is for HunyuanVideo; Wan uses --guidance-scale")
    low = sampling.guidance_scale_2
    if low is not None and low > 1 >= sampling.guidance_scale:
        raise ConfigError(
            f"guidance_scale {sampling.guidance_scale} switches guidance off in both stages, and guidance_scale_2 is "
            f"{low}",
            hint="use a --guidance-scale above 1, or --guidance-scale-2 1",
        )
    stage = {} if low is None else {"guidance_scale_2": low}
    return {"guidance_scale": sampling.guidance_scale} | stage


def _hunyuan_video15_scale(vae: Config) -> tuple[int, int]:
    return vae.get("temporal_compression_ratio", 4), vae.get("spatial_compression_ratio", 16)


def _hunyuan_video15_size(transformer: Config, vae: Config) -> SizeRule:
    time, space = _hunyuan_video15_scale(vae)
    return SizeRule(space * transformer.get("patch_size", 1), time)


def _hunyuan_video15_grid(transformer: Config, frames: int, height: int, width: int) -> Grid:
    patch = transformer.get("patch_size", 1)
    return frames // transformer.get("patch_size_t", 1), height // patch, width // patch


def _hunyuan_video15_arguments(sampling: SamplingConfig) -> dict[str, Any]:
    """None: guidance is set at the pipeline's guider."""
    if sampling.true_cfg_scale > 1:
        raise ConfigError("true_cfg_scale is for HunyuanVideo; HunyuanVideo 1.5 uses --guidance-scale")
    if sampling.negative_prompt and sampling.guidance_scale == 1:
        raise ConfigError(
            "a negative prompt has no effect on this model without guidance",
            hint="add --guidance-scale 6 (two passes a step), or drop --negative-prompt",
        )
    return {}


def _hunyuan_video15(module: str, pipeline: str, preset: str, image_tokens: int = 0, **own: Any) -> FamilyFacts:
    return FamilyFacts(
        module=f"adaspa_cli.models.families.{module}",
        pipeline=pipeline,
        preset=preset,
        layer_keys=("num_layers",),
        size_rule=_hunyuan_video15_size,
        vae_scale=_hunyuan_video15_scale,
        token_grid=_hunyuan_video15_grid,
        call_arguments=_hunyuan_video15_arguments,
        guided=lambda sampling: sampling.guidance_scale != 1,
        pass_states=9.0,  # not measured: as much more than compiled as HunyuanVideo's
        compiled_states=7.8,
        word_table=152_064 * 3584,  # Qwen2.5-VL 7B
        linear_weights=hunyuan_video15_weights,
        asks_vae=True,
        no_caches=("first-block", "magcache"),
        joint_text=lambda prompt: image_tokens + text_tokens(prompt, 1000),
        text_rows=1985,
        **own,
    )


_HUNYUAN_VIDEO = FamilyFacts(
    module="adaspa_cli.models.families.hunyuan_video",
    pipeline="HunyuanVideoPipeline",
    preset="hunyuan",
    single_file=True,
    layer_keys=("num_layers", "num_single_layers"),
    size_rule=_hunyuan_video_size,
    vae_scale=_hunyuan_video_scale,
    token_grid=_hunyuan_video_grid,
    joint_text=lambda prompt: text_tokens(prompt, 256),
    text_rows=256,
    call_arguments=_hunyuan_video_arguments,
    guided=lambda sampling: sampling.true_cfg_scale > 1,
    pass_states=15.3,
    compiled_states=13.3,
    word_table=128_320 * 4096,  # Llama 3 8B
    linear_weights=hunyuan_video_weights,
)
_COGVIDEOX = FamilyFacts(
    module="adaspa_cli.models.families.cogvideox",
    pipeline="CogVideoXPipeline",
    preset="cogvideox",
    layer_keys=("num_layers",),
    size_rule=_cogvideox_size,
    vae_scale=_cogvideox_scale,
    token_grid=_cogvideox_grid,
    joint_text=lambda _prompt: 226,
    text_rows=226,
    call_arguments=_cogvideox_arguments,
    guided=lambda sampling: sampling.guidance_scale > 1,
    pass_states=12.5,
    compiled_states=8.4,
    word_table=32_128 * 4096,  # T5 XXL
    linear_weights=cogvideox_weights,
    joins_branches=True,
    variants=("CogVideoXVideoToVideoPipeline",),
)
_WAN = FamilyFacts(
    module="adaspa_cli.models.families.wan",
    pipeline="WanPipeline",
    preset="wan2.1-14b",
    single_file=True,
    other_presets={"boundary_ratio": "wan2.2-a14b", "expand_timesteps": "wan2.2-5b"},
    layer_keys=("num_layers",),
    size_rule=_wan_size,
    vae_scale=_wan_scale,
    token_grid=_wan_grid,
    call_arguments=_wan_arguments,
    guided=lambda sampling: sampling.guidance_scale > 1,
    pass_states=11.0,  # not measured: about that of diffusers' own pass
    compiled_states=7.4,
    word_table=256_384 * 4096,  # UMT5 XXL
    linear_weights=wan_weights,
    transformers=("transformer", "transformer_2"),
)

FAMILIES: tuple[FamilyFacts, ...] = (
    _HUNYUAN_VIDEO,
    _COGVIDEOX,
    replace(
        _HUNYUAN_VIDEO,
        module="adaspa_cli.models.families.hunyuan_video_image",
        pipeline="HunyuanVideoImageToVideoPipeline",
        preset="hunyuan-i2v",
        joint_text=lambda prompt: 288 + text_tokens(prompt, 252),
        text_rows=288 + 256,
        images=("image",),
        keeps_first_frame=lambda transformer: transformer.get("image_condition_type") == "token_replace",
        dropped_frames=lambda transformer: 4 if transformer.get("image_condition_type") == "latent_concat" else 0,
    ),
    replace(
        _COGVIDEOX,
        module="adaspa_cli.models.families.cogvideox_image",
        pipeline="CogVideoXImageToVideoPipeline",
        preset="cogvideox-i2v",
        images=("image",),
        variants=(),
    ),
    _WAN,
    replace(
        _WAN,
        module="adaspa_cli.models.families.wan_image",
        pipeline="WanImageToVideoPipeline",
        preset="wan2.1-i2v-14b",
        single_file=False,
        other_presets={"boundary_ratio": "wan2.2-i2v-a14b", "expand_timesteps": "wan2.2-5b-i2v"},
        images=("image", "last_image"),
        takes_last_image=_wan_takes_last_image,
        keeps_first_frame=_wan_keeps_first_frame,
    ),
    _hunyuan_video15("hunyuan_video15", "HunyuanVideo15Pipeline", "hunyuan1.5-480p"),
    _hunyuan_video15(
        "hunyuan_video15_image",
        "HunyuanVideo15ImageToVideoPipeline",
        "hunyuan1.5-480p-i2v",
        image_tokens=729,
        images=("image",),
        sized=False,
    ),
)


def known_pipelines() -> str:
    """The pipeline classes that adaspa knows, for messages."""
    return ", ".join(facts.pipeline for facts in FAMILIES)


def facts_of(pipeline: object, model: str) -> FamilyFacts:
    """The family of a pipeline class, from the name that an index or a preset gives.

    Args:
        pipeline: what stands for the class; an index may hold anything.
        model: what the message calls the model.

    Raises:
        ModelError: adaspa has no adapter for it.
    """
    for facts in FAMILIES:
        if facts.pipeline == pipeline:
            return facts
    what = "names no pipeline class" if pipeline is None else f"is a {pipeline}, which adaspa does not know"
    raise ModelError(f"{model} {what}", hint=f"known: {known_pipelines()}")


def count_layers(facts: FamilyFacts, transformer: Mapping[str, Any]) -> int:
    """Attention layers of one transformer, from its configuration."""
    return sum(int(transformer[key]) for key in facts.layer_keys)
