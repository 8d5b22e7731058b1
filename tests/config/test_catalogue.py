"""Every model preset has all its facts, and those that can be counted are right."""

import math
from typing import Any

import diffusers
import pytest
import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from adaspa_cli.config import resolve
from adaspa_cli.config.architecture import BUNDLED, architecture_of
from adaspa_cli.config.catalogue import catalogue, entry_of
from adaspa_cli.config.presets import preset_names
from adaspa_cli.errors import ModelError
from adaspa_cli.models.registry import heavy


@pytest.mark.parametrize("name", preset_names("models"))
def test_a_preset_has_all_facts(name: str) -> None:
    facts = entry_of(name).as_json()
    assert [key for key, value in facts.items() if value is None] == []
    assert facts["disk_bytes"] > 0


@pytest.mark.parametrize("name", [name for name in preset_names("models") if name != "tiny"])
def test_parameters_are_those_of_the_architecture(name: str) -> None:
    architecture = architecture_of(resolve({"model": name}).config.model)
    card = entry_of(name).card
    assert card is not None
    classes = heavy(architecture.facts).classes()
    with init_empty_weights():
        parts = {
            part: classes.transformer.from_config(dict(config)) for part, config in architecture.transformers.items()
        }
        parts["vae"] = classes.vae.from_config(dict(architecture.parts["vae"]))
    for part, model in parts.items():
        count = sum(parameter.numel() for parameter in model.parameters())
        assert card.billions[part] * 1e9 == pytest.approx(count, rel=0.01), part
    assert isinstance(classes.pipeline, type(diffusers.DiffusionPipeline))


def encoders() -> dict[str, tuple[type[Any], PreTrainedConfig]]:
    """The encoders of text and pictures that the checkpoints have, in the sizes that their names stand for."""
    t5 = {"d_kv": 64, "feed_forward_proj": "gated-gelu"}
    xxl: dict[str, Any] = {**t5, "d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    byt5: dict[str, Any] = {**t5, "d_model": 1472, "d_ff": 3584, "num_layers": 12, "num_heads": 6, "vocab_size": 1510}
    llama: dict[str, Any] = {"vocab_size": 128_320, "intermediate_size": 14_336, "num_key_value_heads": 8}
    qwen: dict[str, Any] = {"vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944}
    qwen |= {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    clip: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    clip |= {"num_attention_heads": 16, "image_size": 336, "patch_size": 14}
    huge = clip | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "image_size": 224}
    siglip: dict[str, Any] = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
    siglip |= {"num_attention_heads": 16, "image_size": 384, "patch_size": 14}
    llava = LlavaConfig(vision_config=CLIPVisionConfig(**clip), text_config=LlamaConfig(**llama))
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    return {
        "T5 XXL": (T5EncoderModel, T5Config(vocab_size=32_128, **xxl)),
        "UMT5 XXL": (UMT5EncoderModel, UMT5Config(vocab_size=256_384, **xxl)),
        "Llama 3 8B": (LlamaModel, LlamaConfig(**llama)),
        "LLaVA Llama 3 8B": (LlavaForConditionalGeneration, llava),
        "CLIP L": (CLIPTextModel, text),
        "Qwen2.5-VL 7B, its text model": (Qwen2_5_VLTextModel, Qwen2_5_VLTextConfig(**qwen)),
        "ByT5 small with glyphs": (T5EncoderModel, T5Config(**byt5)),
        "CLIP H": (CLIPVisionModel, CLIPVisionConfig(**huge)),
        "SigLIP so400m": (SiglipVisionModel, SiglipVisionConfig(**siglip)),
    }


PARTS = ("text_encoder", "text_encoder_2", "image_encoder")
ENCODERS: dict[str, tuple[str | None, ...]] = {
    "hunyuan": ("Llama 3 8B", "CLIP L", None),
    "hunyuan-i2v": ("LLaVA Llama 3 8B", "CLIP L", None),
    "cogvideox": ("T5 XXL", None, None),
    "wan2.1-14b": ("UMT5 XXL", None, None),
    "wan2.1-i2v-14b": ("UMT5 XXL", None, "CLIP H"),
    "hunyuan1.5-480p": ("Qwen2.5-VL 7B, its text model", "ByT5 small with glyphs", None),
    "hunyuan1.5-480p-i2v": ("Qwen2.5-VL 7B, its text model", "ByT5 small with glyphs", "SigLIP so400m"),
}


def on_card(preset: str) -> tuple[float | None, ...]:
    card = entry_of(preset).card
    assert card is not None
    return tuple(card.billions.get(part) for part in PARTS)


def test_parameters_are_those_of_the_encoders() -> None:
    counted: dict[str | None, Any] = {None: None}
    for name, (kind, config) in encoders().items():
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in kind(config).parameters())
        counted[name] = pytest.approx(count / 1e9, rel=0.02)
    for preset, names in ENCODERS.items():
        assert on_card(preset) == tuple(counted[name] for name in names), preset
        config: Any = encoders()[str(names[0])][1]
        of_text = config.text_config if isinstance(config, LlavaConfig) else config
        table = of_text.vocab_size * of_text.hidden_size
        assert architecture_of(resolve({"model": preset}).config.model).facts.word_table == table, preset
    known = {on_card(preset) for preset in ENCODERS}
    assert {on_card(preset) for preset in preset_names("models") if preset != "tiny"} == known


def test_parameters_of_the_bundled_model_are_those_of_its_files() -> None:
    card = entry_of("tiny").card
    assert card is not None
    for part, billions in card.billions.items():
        count = 0
        for path in (BUNDLED / part).glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                count += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        assert billions * 1e9 == pytest.approx(count, rel=0.01), part


@pytest.mark.parametrize(
    ("name", "tokens", "layers", "heads"),
    [
        ("hunyuan", 118_800, 60, 24),
        ("cogvideox", 85_680, 42, 48),
        ("wan2.2-a14b", 75_600, 80, 40),
        ("wan2.1-1.3b", 32_760, 30, 12),
    ],
)
def test_figures_are_those_of_known_runs(name: str, tokens: int, layers: int, heads: int) -> None:
    entry = entry_of(name)
    assert (entry.tokens, entry.layers, entry.heads) == (tokens, layers, heads)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ModelError, match="unknown model 'hunyuann'; did you mean 'hunyuan'"):
        entry_of("hunyuann")


def test_all_presets_are_listed() -> None:
    assert [entry.name for entry in catalogue()] == preset_names("models")
