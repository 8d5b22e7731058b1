"""The words and sizes that a small model knows, from its ``vocabulary.json``.

A large model understands any prompt; one that was trained on a few dozen words draws something for every other word
as well, and nothing in the video tells that it did not understand. Only a pipeline with that file has such limits.
Imports nothing heavy.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from adaspa_cli.config.architecture import BUNDLED, known_architecture
from adaspa_cli.config.methods import SparseConfig
from adaspa_cli.config.schema import GenerateConfig, ModelConfig, SamplingConfig
from adaspa_cli.errors import ConfigError, ModelError, shortened

FILE = "vocabulary.json"
FORMAT = 1
SIZES = ("frames", "height", "width")

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_MOST_WORDS = 8  # unknown words that are named
_NOT_SHOWN = "it can't show them (--strict-prompt refuses such words)"
_FEW_TOKENS = 4_000  # of a video: below that a gain of sparse attention was never measured
_CLOSE = 0.75  # similarity from which a word counts as a slip of the pen
_LEAST_LETTERS = 4  # of such a word: shorter ones are near to many


@dataclass(frozen=True)
class Vocabulary:
    """Words and sizes that a model was trained on.

    Attributes:
        knows: what the model can show, by kind, in words for people.
        words: every word of the training captions, in lower case.
        trained: least and greatest frames, height and width (pixels).
    """

    knows: Mapping[str, tuple[str, ...]]
    words: frozenset[str]
    trained: Mapping[str, tuple[int, int]]

    def unknown(self, prompts: Iterable[str]) -> list[str]:
        """The words of prompts that the model was never trained on, in lower case, each once."""
        found = (word for prompt in prompts for word in _WORD.findall(prompt.lower()))
        return [word for word in dict.fromkeys(found) if word not in self.words]

    def strange_words(self, prompts: Iterable[str]) -> str | None:
        """What the model doesn't know, with the words that may have been meant."""
        unknown = self.unknown(prompts)
        if not unknown:
            return None
        named = [f"{shortened(word, 30)}{self._meant(word)}" for word in unknown[:_MOST_WORDS]]
        more = f" and {len(unknown) - _MOST_WORDS} more" if len(unknown) > _MOST_WORDS else ""
        return f"doesn't know: {', '.join(named)}{more}"

    def _meant(self, word: str) -> str:
        close = get_close_matches(word, sorted(self.words), n=1, cutoff=_CLOSE) if len(word) >= _LEAST_LETTERS else []
        return f" ({close[0]}?)" if close else ""

    def known(self) -> str:
        """What it knows, by kind."""
        return "; ".join(f"{kind} {', '.join(words)}" for kind, words in self.knows.items())

    def strange_size(self, sampling: SamplingConfig) -> str | None:
        """Which sizes lie outside of those that the model was trained on."""
        outside = [
            f"{key} {getattr(sampling, key)} ({low if low == high else f'{low} to {high}'})"
            for key, (low, high) in self.trained.items()
            if not low <= getattr(sampling, key) <= high
        ]
        return f"was not trained on {', '.join(outside)}" if outside else None

    def nearest_size(self, sampling: SamplingConfig) -> str:
        """The nearest size that the model was trained on, as flags."""
        near = {key: min(max(getattr(sampling, key), low), high) for key, (low, high) in self.trained.items()}
        return " ".join(f"--{key} {value}" for key, value in near.items())


def vocabulary_of(model: ModelConfig) -> Vocabulary | None:
    """What a model brings; None for one that has no such file, or whose weights are random.

    Raises:
        ModelError: the file cannot be read, or is of another format.
    """
    folder = BUNDLED if model.is_bundled else Path(model.weights).expanduser()
    path = folder / FILE
    if model.random_weights or not path.is_file():
        return None
    try:
        return _read(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot read {path}: {error}", hint="the file says which words the model knows") from error


def _read(content: Any) -> Vocabulary:
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']!r}, and this version reads {FORMAT}")
    knows = {str(kind): tuple(map(str, words)) for kind, words in content["knows"].items()}
    trained = {key: (int(content["trained"][key][0]), int(content["trained"][key][1])) for key in SIZES}
    return Vocabulary(knows, frozenset(map(str, content["words"])), trained)


def _few_tokens(config: GenerateConfig) -> str:
    """What a small video means for sparse attention, which gains the more the longer attention takes; or nothing."""
    found = known_architecture(config.model)
    if found is None or not isinstance(config.method.algorithm, SparseConfig):
        return ""
    few = math.prod(found.video_grid(config.sampling)) < _FEW_TOKENS
    return ", and sparse attention may not be faster than --method full" if few else ""


def check_understood(config: GenerateConfig, prompts: Iterable[str]) -> list[str]:
    """What a model that knows its limits will not understand of a run, one line for words and one for sizes.

    Raises:
        ConfigError: there is such a thing, and ``strict_prompt`` is set.
        ModelError: see :func:`vocabulary_of`.
    """
    vocabulary = vocabulary_of(config.model)
    if vocabulary is None:
        return []
    negative = config.sampling.negative_prompt
    words = vocabulary.strange_words([*prompts, *([negative] if negative else [])])
    size = vocabulary.strange_size(config.sampling)
    name = config.model.source
    if config.prompts.strict_prompt and (words or size):
        size_hint = f"{vocabulary.nearest_size(config.sampling)}, or drop --strict-prompt"
        hint = f"it knows {vocabulary.known()}" if words else size_hint
        raise ConfigError(f"{name} {words or size}", hint=hint)
    return [
        *([f"{name} {words}; {_NOT_SHOWN}. It knows {vocabulary.known()}"] if words else []),
        *([f"{name} {size}: expect lower quality{_few_tokens(config)}"] if size else []),
    ]
