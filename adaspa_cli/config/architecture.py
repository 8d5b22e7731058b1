"""The sizes of a model's parts, without its weights: what random weights are built from. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaspa_cli.config.load import ARCHITECTURE, preset_names, presets_root, read_mapping
from adaspa_cli.config.model_source import FAMILY_PRESETS, read_model_index, unknown_family
from adaspa_cli.config.schema import ModelConfig
from adaspa_cli.errors import ConfigError, ModelError

BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "tiny"

# The keys that count attention layers, by pipeline class, in the order of the stack.
_LAYER_KEYS = {
    "HunyuanVideoPipeline": ("num_layers", "num_single_layers"),
    "CogVideoXPipeline": ("num_layers",),
}


@dataclass(frozen=True)
class Architecture:
    """The configurations of a pipeline's parts, as diffusers stores them.

    Attributes:
        pipeline: class of the pipeline.
        transformer: of its transformer.
        vae: of its autoencoder.
        scheduler: of its scheduler; ``_class_name`` says which.
    """

    pipeline: str
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]

    @property
    def layers(self) -> int:
        """Attention layers of the transformer."""
        return attention_layers(self.pipeline, self.transformer)

    def cut(self, layers: int) -> Architecture:
        """The same with fewer layers; kinds of layers keep their proportion, and the first kind at least one.

        Raises:
            ConfigError: more layers than there are.
        """
        if layers > self.layers:
            raise ConfigError(f"layers must be at most {self.layers}, which the model has, got {layers}")
        counts = {}
        left, of = layers, self.layers
        for key in _LAYER_KEYS[self.pipeline]:
            own = int(self.transformer[key])
            counts[key] = min(left, max(1, round(left * own / of))) if of else 0
            left, of = left - counts[key], of - own
        return dataclasses.replace(self, transformer={**self.transformer, **counts})


def attention_layers(pipeline: str, transformer: Mapping[str, Any]) -> int:
    """Attention layers of a transformer, from its configuration and the class of its pipeline."""
    return sum(int(transformer[key]) for key in _LAYER_KEYS[pipeline])


def architecture_of(model: ModelConfig) -> Architecture:
    """What a run with random weights builds: a preset's architecture, or that of a local folder; layers cut.

    Raises:
        ModelError: neither a preset nor a folder says what the architecture is, or a file of the folder is broken.
        ConfigError: more layers are asked for than there are.
    """
    folder = BUNDLED if model.weights == "bundled" else Path(model.weights).expanduser()
    if folder.is_dir():
        found = _of_folder(folder)
    else:
        presets = (read_mapping(presets_root() / "models" / f"{name}.yaml") for name in preset_names("models"))
        known = {str(preset["weights"]).lower(): preset.get(ARCHITECTURE) for preset in presets}
        content = known.get(model.weights.lower())
        if content is None:
            raise ModelError(
                f"the architecture of '{model.weights}' is not known without a download",
                hint=f"random weights are built for {', '.join(preset_names('models'))}, or for a local folder",
            )
        found = Architecture(**content)
    return found if model.layers is None else found.cut(model.layers)


def _of_folder(folder: Path) -> Architecture:
    """Read the configurations that a local pipeline holds; its weights need not be there."""
    family = str(read_model_index(folder).get("_class_name"))
    if family not in FAMILY_PRESETS:
        raise unknown_family(str(folder), family)
    files = {"transformer": "config.json", "vae": "config.json", "scheduler": "scheduler_config.json"}
    parts: dict[str, Any] = {}
    for part, name in files.items():
        path = folder / part / name
        try:
            parts[part] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read {path}: {error}") from error
    return Architecture(pipeline=family, **parts)


def random_weights_note(model: ModelConfig) -> str | None:
    """What every output of a run with random weights says; None for real weights. Raises as :func:`architecture_of`."""
    if not model.random_weights:
        return None
    built = architecture_of(model).layers
    whole = architecture_of(dataclasses.replace(model, layers=None)).layers
    cut = "" if built == whole else f", {built} of {whole} layers"
    return f"random weights{cut}: only the times mean something"
