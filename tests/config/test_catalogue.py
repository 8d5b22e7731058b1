"""Every model preset has all its facts, and those that can be counted are right."""

import math

import diffusers
import pytest
from accelerate import init_empty_weights
from safetensors import safe_open

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
    assert facts["estimated_memory_bytes"] > facts["estimated_memory_bytes_offload_model"] > 0


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
    ("name", "tokens", "layers", "heads", "measured"),
    [
        ("hunyuan", 118_800, 60, 24, 39.0),
        ("cogvideox", 85_680, 42, 48, 26.0),
        ("wan2.2-a14b", 75_600, 80, 40, None),
        ("wan2.1-1.3b", 32_760, 30, 12, None),
    ],
)
def test_figures_are_those_of_known_runs(
    name: str, tokens: int, layers: int, heads: int, measured: float | None
) -> None:
    """``measured``: GB of AdaSpa's peak without text encoders, docs/performance.md."""
    entry = entry_of(name)
    assert (entry.tokens, entry.layers, entry.heads) == (tokens, layers, heads)
    if measured is not None:
        assert entry.card is not None
        assert entry.memory is not None
        encoders = sum(number for part, number in entry.card.billions.items() if part.startswith("text")) * 2
        assert entry.memory / 1e9 - encoders == pytest.approx(measured, rel=0.1)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ModelError, match="unknown model 'hunyuann'; did you mean 'hunyuan'"):
        entry_of("hunyuann")


def test_all_presets_are_listed() -> None:
    assert [entry.name for entry in catalogue()] == preset_names("models")
