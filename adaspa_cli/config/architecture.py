"""The sizes of a model's parts, without its weights, from which random weights are built. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from adaspa_cli.config.caches import CacheConfig
from adaspa_cli.config.families import FAMILIES, FamilyFacts, Grid, count_layers, facts_of
from adaspa_cli.config.hub import cached_folder
from adaspa_cli.config.load import ARCHITECTURE, read_mapping
from adaspa_cli.config.model_source import read_model_index
from adaspa_cli.config.presets import preset_names, presets_root
from adaspa_cli.config.schema import ModelConfig, SamplingConfig
from adaspa_cli.config.size_rule import SizeRule
from adaspa_cli.errors import ConfigError, ModelError

_WEIGHTS = (".safetensors", ".bin")

BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "tiny"


@dataclass(frozen=True)
class Architecture:
    """The configurations of a pipeline's parts, as diffusers stores them.

    Attributes:
        pipeline: class of the pipeline.
        parts: by the part's name: those of the transformers, ``scheduler``, whose ``_class_name`` says which, and
            ``vae`` where there is one.
        arguments: what the pipeline's class is built with besides its parts.
    """

    pipeline: str
    parts: Mapping[str, Mapping[str, Any]]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> FamilyFacts:
        """The family; raises ModelError if adaspa does not know it."""
        return facts_of(self.pipeline, "the architecture")

    @property
    def transformers(self) -> dict[str, Mapping[str, Any]]:
        """The configurations of the transformers that are there, in the order of the layers' numbers."""
        return {name: self.parts[name] for name in self.facts.transformers if name in self.parts}

    @property
    def layers(self) -> int:
        """Attention layers of all transformers.

        Raises:
            ModelError: a configuration does not say how many.
        """
        try:
            return sum(count_layers(self.facts, config) for config in self.transformers.values())
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the configuration of the transformer does not say how many layers: {error}") from error

    @property
    def heads(self) -> int | None:
        """Attention heads of a layer; None where the configuration leaves them to diffusers."""
        heads = self._transformer.get("num_attention_heads")
        return heads if isinstance(heads, int) else None

    @property
    def channels(self) -> int:
        """Of a token between the layers; 0 where the configuration leaves them to diffusers."""
        return (self.heads or 0) * int(self._transformer.get("attention_head_dim") or 0)

    @property
    def size_rule(self) -> SizeRule:
        """The sizes of video that the model makes."""
        return self.facts.size_rule(self._transformer, self._vae)

    def video_grid(self, sampling: SamplingConfig) -> Grid:
        """The token grid of a video."""
        return self.facts.video_grid(self._transformer, self._vae, sampling)

    @property
    def _transformer(self) -> Mapping[str, Any]:
        return next(iter(self.transformers.values()))

    @property
    def _vae(self) -> Mapping[str, Any]:
        return self.parts.get("vae", {})

    def cut(self, layers: int) -> Architecture:
        """The same with fewer layers; kinds of layers keep their proportion, and the first kind at least one.

        Raises:
            ConfigError: more layers than there are, or fewer than transformers.
        """
        if layers > self.layers:
            raise ConfigError(f"layers must be at most {self.layers}, which the model has, got {layers}")
        if layers < len(self.transformers):
            raise ConfigError(f"layers must be at least {len(self.transformers)}, one per transformer, got {layers}")
        parts = dict(self.parts)
        left, of = layers, self.layers
        for name, key in product(self.transformers, self.facts.layer_keys):
            own = int(parts[name][key])
            kept = min(left, max(1, round(left * own / of))) if of else 0
            parts[name] = {**parts[name], key: kept}
            left, of = left - kept, of - own
        return dataclasses.replace(self, parts=parts)


def architecture_of(model: ModelConfig) -> Architecture:
    """What a run with random weights builds: a preset's architecture, or that of a local folder; layers cut.

    Raises:
        ModelError: neither a preset nor a folder says what the architecture is, or a file of the folder is broken.
        ConfigError: more layers are requested than the model has.
    """
    folder = BUNDLED if model.is_bundled else Path(model.weights).expanduser()
    if folder.is_dir():
        found = folder_architecture(folder)
        found = dataclasses.replace(found, pipeline=_run_by(model, found.pipeline))
    else:
        presets = (read_mapping(presets_root() / "models" / f"{name}.yaml") for name in preset_names("models"))
        known = {(str(one["weights"]).lower(), one.get("pipeline")): one.get(ARCHITECTURE) for one in presets}
        content = known.get((model.weights.lower(), model.pipeline))
        if content is None:
            raise ModelError(
                f"the architecture of '{model.weights}' is not known without a download",
                hint=f"random weights are built for {', '.join(preset_names('models'))}, or for a local folder",
            )
        found = preset_architecture(content)
    return found if model.layers is None else found.cut(model.layers)


def preset_architecture(content: Mapping[str, Any]) -> Architecture:
    """What a preset's ``architecture`` says."""
    parts = {key: value for key, value in content.items() if key not in ("pipeline", "arguments")}
    return Architecture(content["pipeline"], parts, content.get("arguments", {}))


def folder_architecture(folder: Path) -> Architecture:
    """Read the configurations that a local pipeline holds; its weights need not be there."""
    index = read_model_index(folder)
    facts = facts_of(index.get("_class_name"), str(folder))
    absent = {name for name, value in index.items() if isinstance(value, list)} - _parts(index)
    files = {name: "config.json" for name in (*facts.transformers, "vae") if name not in absent}
    parts: dict[str, Any] = {}
    for part, name in {**files, "scheduler": "scheduler_config.json"}.items():
        path = folder / part / name
        try:
            parts[part] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read {path}: {error}") from error
        if not isinstance(parts[part], dict):
            raise ModelError(f"cannot read {path}: it must hold a JSON object")
    arguments = {key: value for key, value in index.items() if key[0] != "_" and not isinstance(value, list)}
    found = Architecture(facts.pipeline, parts, arguments)
    try:
        rule = found.size_rule
        sane = rule.multiple > 0 and rule.frame_period > 0
    except (TypeError, ValueError):
        sane = False
    if not sane:
        raise ModelError(f"the configurations in {folder} name impossible sizes", hint="download them again")
    return found


def _parts(index: Mapping[str, Any]) -> set[str]:
    """The parts that a pipeline has, by its index."""
    return {name for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[0]}


def check_complete(folder: Path) -> None:
    """Refuse a local pipeline that lacks a part, all weights of a part, or a readable configuration.

    Raises:
        ModelError: names what is missing.
    """
    index = read_model_index(folder)
    facts_of(index.get("_class_name"), str(folder))
    parts = sorted(_parts(index))
    missing = [name for name in parts if not (folder / name).is_dir()]
    if missing:
        raise ModelError(f"{folder} is incomplete: it lacks {', '.join(missing)}", hint="download it again")
    modules = [name for name in parts if (folder / name / "config.json").is_file()]
    empty = [name for name in modules if not any(path.suffix in _WEIGHTS for path in (folder / name).iterdir())]
    if empty:
        lacking = f"the weights of {', '.join(empty)}"
        raise ModelError(f"{folder} is incomplete: it lacks {lacking}", hint="download it again")
    folder_architecture(folder)


def known_architecture(model: ModelConfig) -> Architecture | None:
    """The architecture of a run's model as far as it is known without a download, and files of a folder are whole.

    None where it is not: who loads the model then checks, and says what is wrong.

    Raises:
        ConfigError: more layers are requested than the model has.
    """
    try:
        found = architecture_of(model)
        return found if found.layers and found.transformers else None
    except ModelError:
        return None


def check_early(model: ModelConfig, sampling: SamplingConfig, cache: CacheConfig | None = None) -> None:
    """Refuse a size, guidance, a picture, a LoRA or a cache that the model does not take, before anything heavy is
    imported.

    Raises:
        ConfigError: with the nearest valid value, and the model's own size where that is known.
    """
    found = known_architecture(model)
    check_preset(model, _known_pipeline(model) if found is None else found.pipeline)
    if found is not None:
        try:
            found.size_rule.check(sampling.height, sampling.width, sampling.frames)
        except ConfigError as error:
            hints = filter(None, (error.hint, _own_size(model)))
            raise ConfigError(error.message, hint="; ".join(hints) or None) from error
        found.facts.check(found.size_rule, sampling, list(found.transformers.values()))
        model.check_lora_stages(len(found.transformers))
        if model.transformer is not None:
            found.facts.check_single_file(len(found.transformers))
        found.facts.check_image(sampling, random_weights=model.random_weights)
        if cache is not None:
            found.facts.check_cache(cache, sampling, len(found.transformers))


def _known_pipeline(model: ModelConfig) -> str | None:
    """The class of a hub id's pipeline where the hub's cache has its index; None where it is not known."""
    folder = None if Path(model.weights).expanduser().is_dir() else cached_folder(model.weights)
    return None if folder is None else facts_of_index(model, read_model_index(folder)).pipeline


def facts_of_index(model: ModelConfig, index: Mapping[str, Any]) -> FamilyFacts:
    """The family of a checkpoint by its index, or by the settings where the index names a class of its own.

    Raises:
        ModelError: adaspa does not know the class.
        ConfigError: as :func:`_run_by`.
    """
    own = index.get("_class_name")
    if model.pipeline is not None and own not in {facts.pipeline for facts in FAMILIES}:
        return facts_of(model.pipeline, model.weights)
    return facts_of(_run_by(model, facts_of(own, model.weights).pipeline), model.weights)


def _run_by(model: ModelConfig, own: str) -> str:
    """The class that runs a checkpoint whose index names ``own``.

    Raises:
        ConfigError: it is for other weights: diffusers names those for the same ones alike, but for ``ImageToVideo``.
    """
    if model.pipeline is None:
        return own
    kinds = {name.removesuffix("Pipeline").removesuffix("ImageToVideo") for name in (own, model.pipeline)}
    if len(kinds) > 1:
        of = f"--model {model.model} a {model.pipeline}" if _is_preset(model) else f"pipeline is {model.pipeline}"
        raise ConfigError(f"{model.weights} is a {own}, and {of}", hint=_own_kind(model))
    return model.pipeline


def check_preset(model: ModelConfig, pipeline: str | None) -> None:
    """Refuse weights of another pipeline than that of the preset whose defaults they get.

    Args:
        model: its settings.
        pipeline: class that the weights are of; None where it is not known.

    Raises:
        ModelError: names both.
    """
    if pipeline is None or model.is_bundled or not _is_preset(model):
        return
    content = read_mapping(presets_root() / "models" / f"{model.model}.yaml").get(ARCHITECTURE)
    own = folder_architecture(BUNDLED).pipeline if content is None else preset_architecture(content).pipeline
    if own != pipeline:
        raise ModelError(
            f"{model.weights} is a {pipeline}, and --model {model.model} a {own}",
            hint=_own_kind(model),
        )


def _is_preset(model: ModelConfig) -> bool:
    return model.model in preset_names("models")


def _own_kind(model: ModelConfig) -> str:
    """What to type for a checkpoint that is of another kind than the settings say."""
    if not _is_preset(model):
        return "leave out pipeline"
    return f"--model {model.weights} without --weights has the defaults of its own kind"


def _own_size(model: ModelConfig) -> str | None:
    """The size of video that a preset names, as flags; None for a model without one."""
    if model.model not in preset_names("models"):
        return None
    preset = read_mapping(presets_root() / "models" / f"{model.model}.yaml")
    flags = [f"--{key} {preset[key]}" for key in ("height", "width", "frames") if key in preset]
    return f"the model's own size: {' '.join(flags)}" if flags else None


def random_weights_note(model: ModelConfig) -> str | None:
    """What every output of a run with random weights says; None for real weights. Raises as :func:`architecture_of`."""
    if not model.random_weights:
        return None
    built = architecture_of(model).layers
    whole = architecture_of(dataclasses.replace(model, layers=None)).layers
    cut = "" if built == whole else f", {built} of {whole} layers"
    return f"random weights{cut}: only the times are meaningful"
