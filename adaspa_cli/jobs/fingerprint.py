"""Fingerprints: whether two results were made with the same settings."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from adaspa_cli.config import Resolved
from adaspa_cli.config.flat import keys_of
from adaspa_cli.config.parallel import ParallelConfig
from adaspa_cli.files.pictures import read_pictures
from adaspa_cli.maskfiles.check import open_masks

# What does not change what a video looks like, and its prompt and seed, which count by themselves.
NOT_IN_FINGERPRINT = (
    "prompt",
    "prompts",
    "strict_prompt",
    "seed",
    "out",
    "resume",
    "compare_with",
    *keys_of(ParallelConfig),
)


def digest(content: Any) -> str:
    """SHA-256 of a value as JSON, keys sorted."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def settings_that_count(resolved: Resolved) -> dict[str, Any]:
    """The settings that decide what a video looks like, beside its prompt and seed; of a picture and a LoRA the file's
    bytes do.

    Raises:
        ConfigError: a picture is of no use.
        ModelError: a LoRA is of no use.
    """
    settings = {key: value for key, value in resolved.flat().items() if key not in NOT_IN_FINGERPRINT}
    pictures = read_pictures(resolved.config.sampling.pictures)
    settings |= {key: picture.sha256 for key, picture in pictures.items()}
    return settings | {
        key: [[lora.file().sha256, lora.scale] for lora in loras] for key, loras in resolved.config.model.loras.items()
    }


def video_fingerprint(resolved: Resolved, prompt: str, seed: int, device: str | None = None) -> str:
    """The fingerprint of everything that decides what a video looks like.

    Args:
        device: another name for the device of the run; None is that of its settings.
    """
    settings = settings_that_count(resolved) | ({"device": device} if device else {})
    masks = open_masks(resolved.config.method)
    if masks is not None:
        settings["masks"] = masks.checksum  # the content of the file, not its path
    return digest([settings, prompt, seed])
