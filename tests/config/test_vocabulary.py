"""What a small model says of words and sizes that it was not trained on."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from adaspa_cli.config import GenerateConfig, resolve
from adaspa_cli.config.vocabulary import FILE, check_understood, vocabulary_of
from adaspa_cli.errors import ConfigError, ModelError
from scripts.judge_tiny.captions import every_wording, held_out_captions

KNOWN = "a red circle moves left on a blue background"


def config(**settings: Any) -> GenerateConfig:
    return resolve(settings).config


def test_every_caption_of_the_training_is_understood() -> None:
    assert check_understood(config(), [*every_wording(), *held_out_captions(), "A Red CIRCLE."]) == []


def test_unknown_words_are_named_once_with_what_is_known() -> None:
    (line,) = check_understood(config(), ["a cat walks on the grass", "A Cat; a red circle", KNOWN])
    assert line.startswith("tiny doesn't know: cat, walks, grass; it can't show them (--strict-prompt refuses such")
    assert "It knows shapes circle, square, triangle, star; colors" in line
    assert "backgrounds black, gray" in line
    assert "motions moves left" in line


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a red cirle", "cirle (circle?)"),
        ("on a grey background", "grey (gray?)"),
        ("two ünïcode 猫 's", "two, ünïcode, 猫, s;"),
        (" ".join(f"w{n}x" for n in range(12)), "w7x and 4 more;"),
        (40 * "ab", 14 * "ab" + "a…;"),
    ],
)
def test_slips_are_corrected_and_long_lists_cut(prompt: str, said: str) -> None:
    (line,) = check_understood(config(), [prompt])
    assert said in line
    assert len(line) < 500


def test_a_negative_prompt_counts_too() -> None:
    (line,) = check_understood(config(negative_prompt="blurry", true_cfg_scale=2.0), [KNOWN])
    assert "doesn't know: blurry;" in line


def test_sizes_outside_of_the_training_are_said() -> None:
    (line,) = check_understood(config(height=96, frames=9), [KNOWN])
    assert line == (
        "tiny was not trained on frames 9 (33), height 96 (256): expect lower quality, "
        "and sparse attention may not be faster than --method full"
    )
    for fewer in ({"method": "full", "height": 96}, {"height": 512}):
        assert check_understood(config(**fewer), [KNOWN])[0].endswith(": expect lower quality")


def test_strict_prompt_refuses() -> None:
    strict = {"strict_prompt": True}
    assert check_understood(config(**strict), [KNOWN]) == []
    with pytest.raises(ConfigError, match="tiny doesn't know: cat") as words:
        check_understood(config(**strict), ["a cat"])
    assert (words.value.hint or "").startswith("it knows shapes circle")
    with pytest.raises(ConfigError, match="tiny was not trained on width 512") as size:
        check_understood(config(width=512, **strict), [KNOWN])
    trained = resolve({}).config.sampling  # the bundled model's own size is the one that it was trained on
    assert size.value.hint is not None
    assert size.value.hint.endswith(f"--width {trained.width}, or drop --strict-prompt")


def test_strict_prompt_changes_no_fingerprint() -> None:
    from adaspa_cli.jobs.fingerprint import video_fingerprint

    prints = {video_fingerprint(resolve({"strict_prompt": strict}), KNOWN, 0) for strict in (False, True)}
    assert len(prints) == 1
    assert "strict_prompt" not in resolve({}).flat()


def test_only_a_model_that_says_its_words_has_limits(tmp_path: Path) -> None:
    model = dataclasses.replace(config().model, weights=str(tmp_path))
    assert vocabulary_of(model) is None
    assert vocabulary_of(dataclasses.replace(config().model, random_weights=True)) is None
    own = {"format": 1, "knows": {"things": ["cat"]}, "words": ["cat"], "trained": {}}
    own["trained"] = {"frames": [17, 49], "height": [192, 320], "width": [192, 320]}
    (tmp_path / FILE).write_text(json.dumps(own))
    found = vocabulary_of(model)
    assert found is not None
    assert found.unknown(["Cat dog"]) == ["dog"]
    assert found.strange_size(config().sampling) is None
    assert found.strange_size(config(height=128).sampling) == "was not trained on height 128 (192 to 320)"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "knows": [], "words": []}'])
def test_a_broken_file_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ModelError, match=FILE):
        vocabulary_of(dataclasses.replace(config().model, weights=str(tmp_path)))
