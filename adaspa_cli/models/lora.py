"""``--lora``: low-rank changes of a transformer's weights, fused into them where they are plain."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from adaspa_cli.config.lora import LoraFile, LoraSource
from adaspa_cli.config.schema import ModelConfig
from adaspa_cli.errors import ModelError
from adaspa_cli.models.family import Family


@dataclass(frozen=True)
class _Wanted:
    """A LoRA for one transformer, by its number."""

    source: LoraSource
    file: LoraFile
    transformer: int


def load_loras(family: Family, pipe: Any, config: ModelConfig, *, fuse: bool) -> None:
    """Put a run's LoRAs on the transformers of a pipeline that is not yet placed.

    Args:
        fuse: whether weights are plain: LoRAs then become a part of them, and cost nothing at a call.

    Raises:
        ConfigError: high and low ones for a model with one transformer, or others for one with two.
        ModelError: a file cannot be read, does not fit the model, or touches nothing of it.
    """
    if not config.loras:
        return
    transformers = family.transformers(pipe)
    config.check_lora_stages(len(transformers))
    wanted = [
        _Wanted(source, source.file(), 1 if key == "lora_low" else 0)
        for key, sources in config.loras.items()
        for source in sources
    ]
    for number, transformer in enumerate(transformers):
        own = [one for one in wanted if one.transformer == number]
        if own:
            _load(pipe, transformer, own, second=number > 0)
            if fuse:
                transformer.fuse_lora(adapter_names=_names(own))
                transformer.unload_lora()


def _names(loras: Sequence[_Wanted]) -> list[str]:
    return [f"lora_{number}" for number in range(len(loras))]


def _load(pipe: Any, transformer: Any, loras: Sequence[_Wanted], *, second: bool) -> None:
    for name, lora in zip(_names(loras), loras, strict=True):
        before = _lora_tensors(transformer)
        try:
            with _unheard():
                _load_one(pipe, transformer, lora, name, second=second)
        except (ValueError, KeyError, RuntimeError, IndexError) as error:  # what diffusers and peft raise
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"LoRA {lora.source.name} does not fit this model: {reason}") from error
        if _lora_tensors(transformer) == before:
            raise ModelError(
                f"LoRA {lora.source.name} changes no layer of this model", hint="was it made for another model?"
            )
    transformer.set_adapters(_names(loras), [lora.source.scale for lora in loras])


@contextmanager
def _unheard() -> Iterator[None]:
    """Within it diffusers does not print the errors that it raises, nor peft a warning of a second LoRA."""
    from diffusers.utils import logging as of_diffusers

    before = of_diffusers.get_verbosity()
    of_diffusers.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            yield
    finally:
        of_diffusers.set_verbosity(before)


def _load_one(pipe: Any, transformer: Any, lora: _Wanted, name: str, *, second: bool) -> None:
    if hasattr(pipe, "load_lora_weights"):  # converts what others wrote
        stage = {"load_into_transformer_2": True} if second else {}
        pipe.load_lora_weights(str(lora.file.path.parent), weight_name=lora.file.path.name, adapter_name=name, **stage)
        return
    from safetensors.torch import load_file

    state = load_file(lora.file.path)
    prefix = "transformer" if any(key.startswith("transformer.") for key in state) else None
    transformer.load_lora_adapter(state, prefix=prefix, adapter_name=name)


def _lora_tensors(transformer: Any) -> int:
    return sum("lora_" in name for name, _ in transformer.named_parameters())
