"""What the form of the page offers for a model and a method, and the settings that come of what it holds."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaspa_cli.config import Resolved, resolve
from adaspa_cli.config.architecture import known_architecture
from adaspa_cli.config.catalogue import Entry, entry_of
from adaspa_cli.config.flat import keys_of
from adaspa_cli.config.hub import cached
from adaspa_cli.config.load import read_yaml
from adaspa_cli.config.presets import DEFAULT_METHOD, PAPERS_METHOD, preset_names
from adaspa_cli.config.ramp import SparsityRamp
from adaspa_cli.config.schema import MethodConfig, SamplingConfig
from adaspa_cli.config.vocabulary import Vocabulary, vocabulary_of
from adaspa_cli.errors import AdaspaError, UsageError
from adaspa_cli.models.memory import memory_by_offload
from adaspa_cli.report.words import span

DENSE = "full"
_FIRST = (DEFAULT_METHOD, PAPERS_METHOD, DENSE)  # of the methods, as the form lists them
_NO_CHOICE = ("magcache-calibration",)  # makes a file for other runs
_EXAMPLES = ("A cat walks on the grass, realistic style.", "a red circle moves left on a blue background")
# What the command line says of its own model, and what means nothing for another one.
_OF_A_MODEL = {"model", "weights", "pipeline", "transformer", "lora", "lora_high", "lora_low", "layers", "masks"}
_OF_A_MODEL |= keys_of(SamplingConfig).keys() - {"seed"}
_OF_A_METHOD = keys_of(MethodConfig).keys() - {"attention_backend"}
_OF_THE_FORM = {"prompt", "prompts", "compare_with"}  # one video, and the one that was made for it


@dataclass(frozen=True)
class Wanted:
    """What the form holds.

    Attributes:
        sparsity: of all steps; None is the method's own for this model.
        image: file of a picture; None for models from text.
        compare: whether the dense video is made too.
    """

    model: str
    method: str
    prompt: str
    seed: int
    steps: int
    height: int
    width: int
    frames: int
    sparsity: float | None = None
    image: str | None = None
    compare: bool = False


@dataclass(frozen=True)
class Offer:
    """What the form starts from for a model and a method.

    Attributes:
        sparsity: the method's for this model, of a schedule the last; None for a method without one.
        schedule: from where to where the sparsity changes by step; None for one sparsity.
        takes_image: whether the video begins with a picture.
        about: the model in a line.
        words: what a small model knows, by kind; empty for one that takes any prompt.
        example: a prompt that the model understands; empty if none is known.
    """

    steps: int
    height: int
    width: int
    frames: int
    sparsity: float | None
    schedule: str | None
    takes_image: bool
    about: str
    words: Mapping[str, Sequence[str]]
    example: str


@dataclass(frozen=True)
class Start:
    """What the command line gave.

    Attributes:
        settings: by key.
        file: of ``--config``.
    """

    settings: Mapping[str, Any]
    file: Path | None = None

    @functools.cached_property
    def _given(self) -> Mapping[str, Any]:
        """By key, those of the file too."""
        return (read_yaml(self.file) if self.file else {}) | dict(self.settings)

    @property
    def model(self) -> str:
        """The model that the form begins with."""
        return str(self._given.get("model", "tiny"))

    @property
    def method(self) -> str:
        """The method that the form begins with."""
        return self._resolved(self.settings).config.method.method

    @property
    def seed(self) -> int:
        """The seed that the form begins with."""
        return self._resolved(self.settings).config.sampling.seed[0]

    @property
    def out(self) -> str:
        """Folder of the videos."""
        return self._resolved(self.settings).config.output.out

    def check(self) -> None:
        """Refuse what the page can't do.

        Raises:
            UsageError: several GPUs, or runs without a video.
            AdaspaError: the settings do not go together.
        """
        self.offer(self.model, self.method)
        config = self._resolved(self.settings).config
        if config.parallel.gpus > 1:
            raise UsageError("adaspa ui runs on one GPU, not on several", hint="adaspa generate --gpus does")
        if not config.decodes:
            raise UsageError("adaspa ui shows videos, and these settings end in latents", hint="add --set decode=true")

    def models(self) -> list[str]:
        """What can be chosen: the model of the command line, and all that have a name."""
        return list(dict.fromkeys([self.model, *preset_names("models")]))

    def methods(self) -> list[str]:
        """What can be chosen: the most used come first."""
        return [name for name in dict.fromkeys([*_FIRST, *preset_names("methods")]) if name not in _NO_CHOICE]

    def offer(self, model: str, method: str) -> Offer:
        """What the form starts from.

        Raises:
            AdaspaError: the settings do not go together.
        """
        other = self._of_others(model)
        config = self._resolved(_without(self.settings, other) | {"model": model, "method": method}, other).config
        architecture = known_architecture(config.model)
        vocabulary = vocabulary_of(config.model)
        sparsity = None if config.method.ignored(["sparsity"]) else getattr(config.method.algorithm, "sparsity", None)
        sampling = config.sampling
        ramp = None if sparsity is None else getattr(config.method.algorithm, "sparsity_ramp", None)
        return Offer(
            *(sampling.steps, sampling.height, sampling.width, sampling.frames),
            sparsity=sparsity,
            schedule=None if ramp is None else _schedule(ramp),
            takes_image=architecture is not None and bool(architecture.facts.images),
            about=_about(model),
            words={} if vocabulary is None else vocabulary.knows,
            example=_example(vocabulary),
        )

    def run(self, wanted: Wanted, *, dense: bool = False, compare_with: str | None = None) -> Resolved:
        """The settings of one video, which a video that already exists may meet.

        Args:
            dense: whether it is the dense baseline of the one that is wanted.
            compare_with: report of the video to show beside it.

        Raises:
            AdaspaError: the settings are impossible.
        """
        left_out = self._of_others(wanted.model) | _OF_THE_FORM | (_OF_A_METHOD if dense else set())
        given = _without(self.settings, left_out)
        chosen: dict[str, Any] = {
            "model": wanted.model,
            "method": DENSE if dense else wanted.method,
            "prompt": [wanted.prompt],
            "seed": [wanted.seed],
            "steps": wanted.steps,
            "height": wanted.height,
            "width": wanted.width,
            "frames": wanted.frames,
            "resume": True,
        }
        if wanted.sparsity is not None and not dense:
            given.pop("sparsity_ramp", None)
            chosen["sparsity"] = wanted.sparsity
        if wanted.image is not None:
            chosen["image"] = wanted.image
        if compare_with is not None:
            chosen["compare_with"] = [compare_with]
        return self._resolved(given | chosen, left_out)

    def _of_others(self, model: str) -> set[str]:
        """Keys of what was given for another model."""
        return set() if model == self.model else _OF_A_MODEL

    def _resolved(self, settings: Mapping[str, Any], without: Collection[str] = ()) -> Resolved:
        return resolve(settings, self.file, default_method=DEFAULT_METHOD, without=without)


def _without(settings: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def _schedule(ramp: str) -> str:
    return span([start.sparsity for start in SparsityRamp.parse(ramp).starts], "{:g}".format)


def _example(vocabulary: Vocabulary | None) -> str:
    return next((text for text in _EXAMPLES if vocabulary is None or not vocabulary.unknown([text])), "")


def _about(model: str) -> str:
    try:
        entry = entry_of(model)
    except AdaspaError:
        return model
    if entry.checkpoint == "bundled":
        return "comes with adaspa, for any machine"
    return "; ".join([f"from {entry.takes}", entry.checkpoint, *_costs(entry), _state(entry)])


def _costs(entry: Entry) -> list[str]:
    memory = memory_by_offload(entry.name)["none"].total
    costs = [f"needs about {memory / 1e9:.0f} GB of GPU memory"] if memory is not None else []
    return [entry.card.licence, *costs] if entry.card is not None else costs


def _state(entry: Entry) -> str:
    size = "" if entry.disk is None else f" about {entry.disk / 1e9:.0f} GB"
    return "on this disk" if cached(entry.checkpoint) == "complete" else f"the first video downloads{size}"
