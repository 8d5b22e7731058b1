"""The hub: whether it answers, and the error if it doesn't."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from adaspa_cli.errors import ModelError

INDEX = "model_index.json"  # of a pipeline in diffusers' format
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PATIENCE = 3.0  # seconds that the hub has to answer


def hub_answers() -> bool:
    """Whether the hub can be asked: it answers within seconds, and offline mode (HF_HUB_OFFLINE) is off.

    Asked before anything is fetched: the hub's client would retry for half a minute, and print that.
    """
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return False
    answers: list[Any] = []

    def ask() -> None:
        with suppress(Exception):  # whatever goes wrong, there is no answer
            answers.append(get_session().head(constants.ENDPOINT, timeout=_PATIENCE))

    asking = Thread(target=ask, daemon=True)  # a name server that is silent keeps it longer than any timeout
    asking.start()
    asking.join(_PATIENCE)
    return bool(answers)


def hub_error(hub_id: str, error: Exception, file: str | None = None) -> ModelError:
    """Turn what the hub's client raises into one line.

    Args:
        hub_id: of the repository.
        error: what was raised.
        file: the file that was asked for; None if there was more than one.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return ModelError(f"{hub_id} is gated", hint="accept its licence on its page, then run `hf auth login`")
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            f"{hub_id} does not exist on the hub, or is private", hint="check the name, or `hf auth login`"
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):  # the hub did answer
        return _no_such_file(hub_id, file)
    if constants.is_offline_mode():
        return ModelError(
            f"cannot fetch {hub_id}: HF_HUB_OFFLINE is set and the cache does not hold it",
            hint="unset HF_HUB_OFFLINE, or name a local folder with --model",
        )
    return ModelError(
        f"cannot fetch {hub_id}: the hub cannot be reached and the cache does not hold it",
        hint="check the network, or name a local folder with --model; HF_HUB_OFFLINE=1 uses only the cache",
    )


def _no_such_file(hub_id: str, file: str | None) -> ModelError:
    if file != INDEX:
        what = "lacks a file that is needed" if file is None else f"has no file {file}"
        return ModelError(f"{hub_id} {what}", hint="check its list of files on the hub")
    return ModelError(
        f"{hub_id} has no {INDEX}, so it is not in diffusers' format",
        hint="use the model's repository in that format, often named ...-Diffusers, or a name of adaspa models; "
        "--transformer FILE takes a transformer from a single file",
    )


def cached_folder(hub_id: str) -> Path | None:
    """Where the hub's cache has a pipeline, of which parts may be missing; None without its index."""
    from huggingface_hub import try_to_load_from_cache

    if not HUB_ID.fullmatch(hub_id):
        return None
    index = try_to_load_from_cache(hub_id, INDEX)
    return Path(index).parent if isinstance(index, str) else None


def cached(hub_id: str) -> str:
    """How much of a checkpoint the hub's cache holds: ``complete``, ``begun`` or ``absent``."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    if any(folder.glob("blobs/*.incomplete")):
        return "begun"
    if not any(folder.glob(f"snapshots/*/{INDEX}")):
        return "absent"
    weights = any(folder.glob("snapshots/*/transformer/*.safetensors"))
    return "complete" if weights else "begun"  # the index alone is fetched to see what a model is
