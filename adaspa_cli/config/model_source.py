"""What ``--model`` means: a preset's name, a local folder, or an id on the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaspa_cli.config.families import facts_of
from adaspa_cli.config.hub import HUB_ID, INDEX, hub_answers, hub_error
from adaspa_cli.errors import ModelError, nearest


@dataclass(frozen=True)
class ModelSource:
    """The preset whose defaults apply, and where the weights are if not where the preset says."""

    preset: str
    weights: str | None = None


def identify(model: str, presets: Sequence[str], preset_of_hub_id: Callable[[str], str | None]) -> ModelSource:
    """Find out what ``model`` is.

    Args:
        model: what the user wrote.
        presets: names of the model presets.
        preset_of_hub_id: the preset that names a hub id as its weights.

    Raises:
        ModelError: it is none of the three, or a checkpoint of another family.
    """
    if model in presets:
        return ModelSource(model)
    folder = Path(model).expanduser()
    if _looks_local(model):
        return ModelSource(_preset_of(read_model_index(folder), model), str(folder))
    if HUB_ID.fullmatch(model):
        if preset := preset_of_hub_id(model):
            return ModelSource(preset, model)
        return ModelSource(_preset_of(fetch_model_index(model), model), model)
    raise ModelError(
        f"unknown model '{model}'{nearest(model, presets)}",
        hint=f"one of {', '.join(presets)}, a folder that holds a diffusers pipeline, or a hub id such as org/name",
    )


def _looks_local(model: str) -> bool:
    try:
        return Path(model).expanduser().exists() or model.startswith((".", "/", "~"))
    except OSError as error:
        raise ModelError(f"cannot read model {model}: {error.strerror}") from error


def check_known_architecture(model: str, presets: Sequence[str], preset_of_hub_id: Callable[[str], str | None]) -> None:
    """Refuse random weights for a model whose architecture only the hub knows.

    Raises:
        ModelError: ``model`` is neither a preset, nor a preset's hub id, nor a local folder.
    """
    if model in presets or _looks_local(model) or preset_of_hub_id(model):
        return
    raise ModelError(
        f"the architecture of '{model}' is not known without a download{nearest(model, presets)}",
        hint=f"known without a download are {', '.join(presets)}, their hub ids, and a local folder with a model's "
        "config files; of another checkpoint of a preset add --weights HUB_ID to --model PRESET",
    )


def read_model_index(folder: Path) -> dict[str, Any]:
    """Read ``model_index.json`` of a local pipeline.

    Raises:
        ModelError: there is no folder, no such file, or it is not JSON.
    """
    if not folder.is_dir():
        raise ModelError(f"model {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} holds no model_index.json, so it is not a diffusers pipeline",
            hint="name the folder that contains transformer/, vae/ and text_encoder/",
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(index, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return index


def _preset_of(index: dict[str, Any], model: str) -> str:
    return facts_of(index.get("_class_name"), model).preset_of(index)


def fetch_model_index(hub_id: str) -> dict[str, Any]:
    """Fetch ``model_index.json`` from the hub, or from its cache where the hub does not answer.

    Raises:
        ModelError: neither has it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = hf_hub_download(hub_id, INDEX, local_files_only=not hub_answers())
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise hub_error(hub_id, error, INDEX) from error
    return read_model_index(Path(path).parent)


def check_available(weights: str) -> dict[str, Any] | None:
    """Refuse a hub id that neither the hub nor its cache has, before anything heavy is imported.

    Returns:
        Its ``model_index.json``; None if it is no hub id.

    Raises:
        ModelError: see :func:`fetch_model_index`.
    """
    return fetch_model_index(weights) if HUB_ID.fullmatch(weights) and not Path(weights).is_dir() else None
