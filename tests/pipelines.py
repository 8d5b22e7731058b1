"""Small pipelines with random weights, saved in the exact format of diffusers: nothing is downloaded."""

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLWan,
    ClassifierFreeGuidance,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    ByT5Tokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from adaspa_cli.config import Resolved
from adaspa_cli.hooks import clock
from adaspa_cli.models.registry import family_of
from scripts.train_world.text import Text, TextConfig, build_text

HEIGHT, WIDTH, FRAMES = 64, 96, 9
PROMPT = "a red circle moves left on a blue background"
# Settings of a run of a few steps, in which masks are searched twice and a part of the blocks is left out.
SPARSE: dict[str, Any] = {
    "method": "adaspa",
    "sparsity": 0.6,
    "block_size": 16,
    "search_steps": (1, 3),
    "attention_backend": "reference",
}


def hunyuan_video(**transformer: Any) -> HunyuanVideoPipeline:
    """8x8 spatial and 4x temporal VAE, patch 1, 2 dual and 2 single blocks, 2 heads of 64: 288 tokens at 64x96x9."""
    torch.manual_seed(0)
    text = copy.deepcopy(_hunyuan_text())
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    settings: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "patch_size": 1,
        "guidance_embeds": False,
        "text_embed_dim": 32,
        "pooled_projection_dim": 32,
        "rope_axes_dim": (16, 24, 24),
    }
    return HunyuanVideoPipeline(
        text_encoder=text.encoder,
        tokenizer=text.tokenizer,
        transformer=_lively(HunyuanVideoTransformer3DModel(**(settings | transformer))),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=text.encoder_2,
        tokenizer_2=text.tokenizer_2,
    )


@cache
def _hunyuan_text() -> Text:
    """Training its tokenizers takes longer than building all else."""
    return build_text(TextConfig(32, 2, 4, 32, 2, 2), seed=0)


def cogvideox(version: str = "1.5", **transformer: Any) -> CogVideoXPipeline:
    """8x8 spatial and 4x temporal VAE, patch 2, 2 blocks, 2 heads of 64; version 1.5 also patches time."""
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    settings: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 16,
        "text_embed_dim": 32,
        "num_layers": 2,
        "sample_width": WIDTH // 8,
        "sample_height": HEIGHT // 8,
        "sample_frames": FRAMES,
        "patch_size": 2,
        "patch_size_t": 2 if version == "1.5" else None,
        "max_text_seq_length": 226,
        "use_rotary_positional_embeddings": True,
        "patch_bias": version != "1.5",
    }
    return CogVideoXPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=T5EncoderModel(T5Config(**T5_SIZES)).eval(),
        vae=vae.eval(),
        transformer=_lively(CogVideoXTransformer3DModel(**(settings | transformer))),
        scheduler=CogVideoXDDIMScheduler(),
    )


def cogvideox_image(version: str = "1.5", **transformer: Any) -> CogVideoXImageToVideoPipeline:
    """The parts of :func:`cogvideox` with a transformer that takes a picture's channels as well."""
    own: dict[str, Any] = {"in_channels": 8, "ofs_embed_dim": 16 if version == "1.5" else None}
    own["use_learned_positional_embeddings"] = version == "1.0"
    return CogVideoXImageToVideoPipeline(**cogvideox(version, **own, **transformer).components)


def hunyuan_video_image(condition: str, **transformer: Any) -> HunyuanVideoImageToVideoPipeline:
    """The parts of :func:`hunyuan_video` with noise for the text and the picture that LLaVA would encode."""
    own: dict[str, Any] = {"in_channels": 9 if condition == "latent_concat" else 4, "image_condition_type": condition}
    parts = hunyuan_video(**own, **transformer).components
    pipe = HunyuanVideoImageToVideoPipeline(**parts | {"text_encoder": None}, image_processor=None)
    pipe.encode_prompt = _for_lists(family_of(pipe).encoder(pipe))
    return pipe


def _for_lists(encode: Callable[..., Any]) -> Callable[..., Any]:
    """A stand-in for ``encode_prompt`` that takes a list of prompts, too."""

    def encode_prompt(*, prompt: Any, **others: Any) -> tuple[torch.Tensor, ...]:
        prompts = prompt if isinstance(prompt, list) else [prompt]
        return tuple(map(torch.cat, zip(*(encode(prompt=one, **others) for one in prompts), strict=True)))

    return encode_prompt


WAN_BOUNDARY = 0.8  # of the four steps of a run two are above it


def wan(version: str = "2.1", **transformer: Any) -> WanPipeline:
    """8x8 spatial and 4x temporal VAE, patch 2, 2 blocks, 2 heads of 64: 72 tokens at 64x96x9.

    Version 2.2 has a second transformer of 2 blocks, 2.2-5b a VAE of 16x16 and a timestep for each token.
    """
    torch.manual_seed(0)
    small = version == "2.2-5b"
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        **({"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2} if small else {}),
        scale_factor_spatial=16 if small else 8,
    )
    settings: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 32,
        "freq_dim": 16,
        "ffn_dim": 64,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    } | transformer
    parts = [_lively(WanTransformer3DModel(**settings)) for _ in range(2 if version == "2.2" else 1)]
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return WanPipeline(
        _t5_tokenizer(),
        UMT5EncoderModel(UMT5Config(**T5_SIZES)).eval(),
        vae.eval(),
        scheduler,
        *parts,
        boundary_ratio=WAN_BOUNDARY if version == "2.2" else None,
        expand_timesteps=small,
    )


def wan_image(version: str = "2.1") -> WanImageToVideoPipeline:
    """The parts of :func:`wan` with a transformer that takes a picture's channels; of 2.1 also CLIP's tokens, of
    2.1-flf those of two pictures. 2.2-5b is the one of text to video."""
    pictures = {"2.1": 1, "2.1-flf": 2}.get(version, 0)
    own: dict[str, Any] = {} if version == "2.2-5b" else {"in_channels": 12}
    parts: dict[str, Any] = {}
    if pictures:
        torch.manual_seed(0)
        clip = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
        )
        parts["image_processor"] = CLIPImageProcessor(crop_size=16, size=16)
        parts["image_encoder"] = CLIPVisionModel(clip).eval()
        own |= {"image_dim": 32, "added_kv_proj_dim": 128, "pos_embed_seq_len": 34 if pictures == 2 else None}
    plain = wan(version.removesuffix("-flf"), **own)
    options = {name: plain.config[name] for name in ("boundary_ratio", "expand_timesteps")}
    pipe = WanImageToVideoPipeline(**plain.components | parts, **options)
    pipe._get_t5_prompt_embeds = partial(WanPipeline._get_t5_prompt_embeds, pipe)  # its own needs the package ftfy
    return pipe


T5_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 1,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}


def _t5_tokenizer() -> T5Tokenizer:
    """One token for each letter."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(vocab=pieces + [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"])


def hunyuan_video15(*, image: bool = False, **transformer: Any) -> Any:
    """16x16 spatial and 4x temporal VAE, patch 1, 3 blocks, 2 heads of 64: 72 tokens at 64x96x9, noise for texts."""
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(32, 32, 32, 32, 32), layers_per_block=1)
    settings: dict[str, Any] = {
        "in_channels": 9,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "num_layers": 3,
        "num_refiner_layers": 1,
        "text_embed_dim": 32,
        "text_embed_2_dim": 24,
        "image_embed_dim": 16,
        "rope_axes_dim": (16, 24, 24),
    }
    parts: dict[str, Any] = {
        "transformer": _lively(HunyuanVideo15Transformer3DModel(**(settings | transformer))),
        "vae": vae.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }
    kind = HunyuanVideo15ImageToVideoPipeline if image else HunyuanVideo15Pipeline
    names = set(inspect.signature(kind.__init__).parameters) - {"self", *parts}
    pipe = kind(**dict.fromkeys(names), **parts)
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = 40, 12, 20
    for name, stand_in in family_of(pipe).stand_ins(pipe).items():
        setattr(pipe, name, _for_lists(stand_in) if name == "encode_prompt" else stand_in)
    return pipe


def qwen_and_byt5() -> dict[str, Any]:
    """Text encoders and tokenizers of HunyuanVideo 1.5, for the transformer of :func:`hunyuan_video15`."""
    torch.manual_seed(1)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = [*bytes_to_unicode().values(), *specials]
    tokenizer = Qwen2Tokenizer(
        vocab={piece: number for number, piece in enumerate(vocabulary)},
        merges=[],
        pad_token=specials[0],
        extra_special_tokens=specials[1:],
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    qwen = Qwen2_5_VLTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
        rope_scaling={"rope_type": "default", "mrope_section": [2, 3, 3]},
    )
    byt5 = T5Config(vocab_size=512, d_model=24, d_kv=12, d_ff=32, num_layers=1, num_heads=2)
    return {
        "tokenizer": tokenizer,
        "text_encoder": Qwen2_5_VLTextModel(qwen).eval(),
        "tokenizer_2": ByT5Tokenizer(),
        "text_encoder_2": T5EncoderModel(byt5).eval(),
    }


def _lively(transformer: Any) -> Any:
    """Enlarge the query weights, so that attention is not as good as uniform, as it is at random initialisation; and
    Wan's gates, without which it would not matter."""
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if any(part in name for part in ("to_q.weight", "norm_q.weight", "scale_shift_table")):
                parameter.mul_(4)
    return transformer.eval()


def save(pipe: Any, folder: Path) -> Path:
    """Save as diffusers does, and return the folder."""
    pipe.save_pretrained(folder)
    return folder


def latents(pipe: Any, **settings: Any) -> torch.Tensor:
    """Run a pipeline to its final latents; the noise is the same each time.

    HunyuanVideo 1.5 has its guidance from its guider, and from a picture its size: both are set up as in a run.
    """
    pipe.set_progress_bar_config(disable=True)
    call = {
        "prompt": PROMPT,
        "height": HEIGHT,
        "width": WIDTH,
        "num_frames": FRAMES,
        "num_inference_steps": 4,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
    }
    if isinstance(pipe, HunyuanVideoPipeline | HunyuanVideoImageToVideoPipeline):
        call["max_sequence_length"] = 64  # of 256, most of which would be padding, and most of the run
    call |= settings
    family = family_of(pipe)
    scale = call.pop("guidance_scale", pipe.guider.guidance_scale) if hasattr(pipe, "guider") else None
    if not family.facts.sized:
        del call["height"], call["width"]
    with torch.inference_mode(), family.set_up(pipe, SimpleNamespace(guidance_scale=scale)):
        return pipe(**call).frames


def masks_at_end(handle: Any) -> dict[tuple[int, str, int], Any]:
    """The masks of a handle's last run as they were at its end: filled when a run ends."""
    masks: dict[tuple[int, str, int], Any] = {}

    def read() -> None:
        masks.clear()
        masks.update(handle.masks())

    handle.clock.listen(clock.Listener(clock.Order.READERS, end=read))
    return masks


def small_run(folder: Path, out: Path, **flags: Any) -> dict[str, Any]:
    """Flags of a run of a saved pipeline that takes a fraction of a second on a CPU."""
    return {
        "model": str(folder),
        "prompt": [PROMPT],
        "out": str(out),
        "height": 32,
        "width": 48,
        "frames": 5,
        "fps": 8,
        "steps": 4,
        "search_steps": (1, 3),
        "sparsity": 0.5,
        "block_size": 16,
        "device": "cpu",
        "dtype": "float32",
        "attention_backend": "reference",
    } | flags


class Listener:
    """Hears what a run tells its observer, and may interrupt it."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *told: self.heard.append((name, *told))

    def names(self) -> list[str]:
        return [name for name, *_ in self.heard]


def make_reports(resolved: Resolved, observer: Any, prompts: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Make the videos of a run; returns their reports as they lie on disk."""
    from adaspa_cli.jobs.generate import generate

    return [made.report.as_json() for made in generate(resolved, observer, prompts)]
