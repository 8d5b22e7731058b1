"""The part of a pipeline that tells how much of a prompt it reads: its tokenizers, without any weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import init_empty_weights

from adaspa_cli.config.architecture import BUNDLED, facts_of_index
from adaspa_cli.config.hub import cached_folder
from adaspa_cli.config.model_source import read_model_index
from adaspa_cli.config.schema import ModelConfig
from adaspa_cli.errors import ModelError
from adaspa_cli.models.loading import quiet_libraries
from adaspa_cli.models.registry import heavy


def load_text_parts(config: ModelConfig) -> Any | None:
    """Load a pipeline that has its tokenizers alone, in a moment and without a download.

    Returns:
        None where there is none: with random weights, or a checkpoint whose tokenizers are not on this machine.

    Raises:
        ModelError: the folder holds no pipeline of a known family, or a tokenizer that can't be read.
    """
    folder = None if config.random_weights else _folder(config)
    if folder is None:
        return None
    index = read_model_index(folder)
    family = heavy(facts_of_index(config, index))
    parts = [name for name, value in index.items() if isinstance(value, list)]
    needed = [name for name in parts if name.startswith("tokenizer") or (name == "vae" and family.facts.asks_vae)]
    if not needed or not all((folder / name).is_dir() for name in needed):
        return None
    quiet_libraries()
    given: dict[str, Any] = dict.fromkeys(name for name in parts if not name.startswith("tokenizer"))
    classes = family.classes()
    try:
        if family.facts.asks_vae:
            with init_empty_weights():
                given["vae"] = classes.vae.from_config(classes.vae.load_config(folder / "vae"))
        given |= family.parts(str(folder), local_files_only=True)
        return classes.pipeline.from_pretrained(folder, local_files_only=True, **given)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the tokenizer of {folder}: {' '.join(str(error).split())}") from error


def _folder(config: ModelConfig) -> Path | None:
    """Where a checkpoint is on this machine: the package, a folder, or the hub's cache."""
    if config.is_bundled:
        return BUNDLED
    local = Path(config.weights).expanduser()
    return local if local.is_dir() else cached_folder(config.weights)
