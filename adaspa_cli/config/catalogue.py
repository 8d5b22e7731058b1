"""Facts about each model preset that need no download. Imports nothing heavy.

Sizes are computed: parameters times two bytes, and the token grid of the preset's own size of video. What no
configuration says (licence, parameters) stands on the preset's ``card``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from adaspa_cli.config.architecture import BUNDLED, folder_architecture, preset_architecture
from adaspa_cli.config.load import ARCHITECTURE, CARD, check_values, read_mapping
from adaspa_cli.config.presets import preset_names, presets_root
from adaspa_cli.config.schema import ModelConfig, SamplingConfig
from adaspa_cli.config.vocabulary import Vocabulary, vocabulary_of
from adaspa_cli.errors import ConfigError, ModelError, nearest

BYTES = 2  # of a parameter in bfloat16 or float16


@dataclass(frozen=True)
class Card:
    """What a preset says of its checkpoint.

    Attributes:
        licence: its name.
        licence_note: where it is stated, or that this was not verified, and what limits its use.
        gated: whether the hub wants the licence accepted before a download.
        billions: parameters of each part of the pipeline that has weights.
    """

    licence: str
    licence_note: str
    gated: bool
    billions: Mapping[str, float]


@dataclass(frozen=True)
class Entry:
    """A model preset.

    Attributes:
        name: of the preset.
        pipeline: class of diffusers.
        checkpoint: folder or hub id; ``bundled`` comes with adaspa.
        card: None if the preset has none: then nothing below that needs it is known.
        takes: ``text``, or ``text and a picture``.
        size: height and width in pixels, and frames.
        steps: denoising steps.
        grid: token grid of such a video: frames, rows, columns.
        layers: attention layers of all transformers.
        heads, head_dim: of a layer.
    """

    name: str
    pipeline: str
    checkpoint: str
    card: Card | None
    takes: str
    size: tuple[int, int, int]
    steps: int
    grid: tuple[int, int, int]
    layers: int
    heads: int
    head_dim: int

    @property
    def tokens(self) -> int:
        """Video tokens."""
        return math.prod(self.grid)

    @property
    def disk(self) -> int | None:
        """Bytes of the checkpoint: of the files that are here, else of its parameters."""
        if self.checkpoint == "bundled":
            return sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file())
        return None if self.card is None else round(sum(self.card.billions.values()) * 1e9) * BYTES

    def as_json(self) -> dict[str, Any]:
        """Plain types; bytes as numbers."""
        height, width, frames = self.size
        return {
            "name": self.name,
            "pipeline": self.pipeline,
            "checkpoint": self.checkpoint,
            "licence": self.card and self.card.licence,
            "licence_note": self.card and self.card.licence_note,
            "gated": self.card and self.card.gated,
            "takes": self.takes,
            "height": height,
            "width": width,
            "frames": frames,
            "steps": self.steps,
            "grid": list(self.grid),
            "tokens": self.tokens,
            "layers": self.layers,
            "heads": self.heads,
            "head_dim": self.head_dim,
            "billions": None if self.card is None else dict(self.card.billions),
            "disk_bytes": self.disk,
        }


def catalogue() -> list[Entry]:
    """All model presets, by name."""
    return [entry_of(name) for name in preset_names("models")]


def entry_of(name: str) -> Entry:
    """A model preset.

    Raises:
        ModelError: there is none of that name.
    """
    known = preset_names("models")
    if name not in known:
        raise ModelError(f"unknown model '{name}'{nearest(name, known)}", hint=f"known: {', '.join(known)}")
    path = presets_root() / "models" / f"{name}.yaml"
    content = read_mapping(path)
    settings = check_values(
        {key: value for key, value in content.items() if key not in (ARCHITECTURE, CARD)}, str(path)
    )
    sampling = SamplingConfig(**{f.name: settings[f.name] for f in fields(SamplingConfig) if f.name in settings})
    bundled = settings["weights"] == "bundled"
    architecture = folder_architecture(BUNDLED) if bundled else preset_architecture(content[ARCHITECTURE])
    facts, transformers = architecture.facts, architecture.transformers
    first = next(iter(transformers.values()))
    return Entry(
        name=name,
        pipeline=facts.pipeline,
        checkpoint=settings["weights"],
        card=_card(content.get(CARD), path),
        takes="text and a picture" if facts.images else "text",
        size=(sampling.height, sampling.width, sampling.frames),
        steps=sampling.steps,
        grid=facts.video_grid(first, architecture.parts.get("vae", {}), sampling),
        layers=architecture.layers,
        heads=int(first["num_attention_heads"]),
        head_dim=int(first["attention_head_dim"]),
    )


def _card(content: Any, path: Path) -> Card | None:
    if content is None:
        return None
    try:
        billions = {str(part): float(number) for part, number in content["billions"].items()}
        note = str(content.get("licence_note", "not verified"))
        return Card(str(content["licence"]), note, bool(content["gated"]), billions)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"{CARD} in {path} must hold licence, gated and billions: {error!r}") from error


def vocabulary(entry: Entry) -> Vocabulary | None:
    """What a model with a vocabulary can show."""
    return vocabulary_of(ModelConfig(model=entry.name, weights=entry.checkpoint))
