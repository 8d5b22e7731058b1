"""LoRAs and a transformer's own file: whether they are there, whole, and of this model. Doesn't import torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from adaspa_cli.config.architecture import known_architecture
from adaspa_cli.config.catalogue import catalogue
from adaspa_cli.config.schema import ModelConfig
from adaspa_cli.config.tensor_shapes import SUFFIX, Shapes, read_shapes
from adaspa_cli.errors import ModelError

_GGUF = b"GGUF"  # its first bytes


def check_files(model: ModelConfig, *, download: bool = True) -> None:
    """Refuse LoRAs and a transformer's file that are missing, broken or of a model with other channels.

    Args:
        model: its settings.
        download: whether LoRAs on the hub are fetched, or left alone.

    Raises:
        ModelError: names the file.
        ConfigError: the model's transformer cannot come from a file of its own.
    """
    architecture = known_architecture(model)
    channels = 0 if architecture is None else architecture.channels
    if model.transformer is not None:
        if architecture is not None:
            architecture.facts.check_single_file(len(architecture.transformers))
        _check_transformer(check_transformer_file(model), model, channels)
    for loras in model.loras.values():
        for lora in loras:
            if download or lora.is_local():
                _check_channels(f"LoRA {lora.name}", lora.file().shapes, channels)


def _check_transformer(path: Path, model: ModelConfig, channels: int) -> None:
    what = f"transformer {model.transformer}"
    if path.suffix == SUFFIX:
        shapes = read_shapes(path)
        if shapes is None:
            raise ModelError(f"{what} is not a {SUFFIX} file, or is corrupt")
        _check_channels(what, shapes, channels)
    if model.is_gguf:
        with path.open("rb") as file:
            if file.read(len(_GGUF)) != _GGUF:
                raise ModelError(f"{what} is not a GGUF file")


def check_transformer_file(model: ModelConfig) -> Path:
    """The single file that holds the transformer; raises ModelError if it is not there."""
    path = Path(str(model.transformer)).expanduser()
    if not path.is_file():
        raise ModelError(f"transformer {model.transformer} is not a file", hint="name a .safetensors or .gguf file")
    return path


def _check_channels(what: str, shapes: Shapes, channels: int) -> None:
    """Refuse the weights of a model with other channels, or changes to them: each layer of a block takes or gives some.

    Args:
        what: the file as a message calls it.
        channels: of the model; 0 where they are not known.

    Raises:
        ModelError: with the models that have as many channels as the file.
    """
    if not channels or any(channels in shape for shape in shapes.values()):
        return
    widest = Counter(max(shape) for shape in shapes.values() if len(shape) > 1)
    own = max(widest, key=lambda size: (widest[size], size), default=0)
    fitting = [entry.name for entry in catalogue() if entry.heads * entry.head_dim == own]
    raise ModelError(
        f"{what} is for another model: none of its tensors has {channels} channels",
        hint=f"its channels are {own}, as those of {', '.join(fitting)}" if fitting else None,
    )
