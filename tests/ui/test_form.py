"""What the form offers, and the settings that come of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from adaspa_cli.errors import ConfigError, UsageError
from adaspa_cli.ui.form import Start, Wanted

WANTED = Wanted("tiny", "adaspa", "a red circle", seed=3, steps=6, height=96, width=96, frames=9)


def test_a_model_brings_its_sizes() -> None:
    start = Start({})
    assert (start.model, start.method) == ("tiny", "adaspa-plus")
    tiny, hunyuan = start.offer("tiny", "adaspa"), start.offer("hunyuan", "adaspa")
    assert (tiny.steps, tiny.height, tiny.frames) == (14, 256, 33)
    assert (hunyuan.steps, hunyuan.height, hunyuan.frames) == (50, 720, 129)
    assert tiny.words["shapes"]
    assert not hunyuan.words
    assert "hunyuanvideo-community/HunyuanVideo" in hunyuan.about
    assert "GB" in hunyuan.about


def test_fields_that_mean_nothing_are_not_offered() -> None:
    start = Start({})
    assert start.offer("tiny", "adaspa").sparsity == 0.8
    assert start.offer("tiny", "adaspa").schedule is None
    assert start.offer("tiny", "adaspa-plus").schedule == "0.4 rising to 0.95"
    assert start.offer("tiny", "full").sparsity is None
    assert not start.offer("wan2.1-1.3b", "adaspa").takes_image
    assert start.offer("hunyuan-i2v", "adaspa").takes_image


def test_flags_are_what_the_form_begins_with() -> None:
    start = Start({"model": "tiny", "steps": 4, "frames": 9, "method": "adaspa", "sparsity": 0.5})
    offer = start.offer("tiny", "adaspa")
    assert (offer.steps, offer.frames, offer.sparsity) == (4, 9, 0.5)
    assert start.offer("hunyuan", "adaspa").frames == 129  # they were for the model of the command line


def test_the_settings_of_a_run() -> None:
    config = Start({"device": "cpu", "out": "there", "linear": "model"}).run(replace(WANTED, sparsity=0.6)).config
    assert config.prompts.prompt == ("a red circle",)
    assert (config.sampling.seed, config.sampling.steps, config.sampling.frames) == ((3,), 6, 9)
    assert config.method.searching.sparsity == 0.6
    assert (config.model.device, config.output.out, config.output.resume) == ("cpu", "there", True)


def test_the_method_keeps_its_own_sparsity() -> None:
    """For adaspa-plus it changes from step to step, which one number would replace."""
    settings = Start({}).run(replace(WANTED, method="adaspa-plus")).settings
    assert settings["sparsity_ramp"].value


def test_one_sparsity_takes_the_place_of_the_schedule() -> None:
    """Also where it is the last one of the schedule, and where the command line gave a schedule."""
    wanted = replace(WANTED, method="adaspa-plus", sparsity=0.95)
    for given in ({}, {"sparsity": "0:0.2,50%:0.9"}, {"sparsity": 0.9, "sparsity_ramp": "0:0.2,50%:0.9"}):
        start = Start(given)
        searching = start.run(wanted).config.method.searching
        assert (searching.sparsity, searching.sparsity_ramp) == (0.95, None)
        assert start.run(replace(wanted, sparsity=None)).config.method.searching.sparsity_ramp


def test_the_example_is_one_that_the_model_knows() -> None:
    start = Start({})
    tiny = start.offer("tiny", "adaspa")
    assert set(tiny.example.split()) >= {"red", "circle", "moves"}
    assert start.offer("hunyuan", "adaspa").example.startswith("A cat")


def test_the_dense_baseline_is_of_the_same_video() -> None:
    start = Start({"cache": "first-block", "sparsity": 0.7, "attention_backend": "cpu"})
    dense = start.run(replace(WANTED, sparsity=0.6), dense=True).config
    assert (dense.method.method, dense.method.cache.name) == ("full", "none")
    assert dense.method.attention_backend == "cpu"
    assert dense.sampling == start.run(WANTED).config.sampling


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="steps"):
        Start({}).run(replace(WANTED, steps=0))
    with pytest.raises(ConfigError, match="unknown method"):
        Start({}).offer("tiny", "no-such-method")


def test_every_model_and_method_can_be_chosen() -> None:
    start = Start({"model": "tiny"})
    assert start.models()[0] == "tiny"
    assert {"hunyuan", "wan2.2-5b-i2v"} <= set(start.models())
    assert start.methods()[:3] == ["adaspa-plus", "adaspa", "full"]
    assert "magcache-calibration" not in start.methods()
    for method in ("pab", "tomesd", "diffusers"):  # a cache, a merging, nothing of ours
        start.offer("tiny", method)


def of_file(folder: Path, text: str, **settings: object) -> Start:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return Start(settings, path)


def test_what_a_file_says_of_its_model_is_for_that_model(tmp_path: Path) -> None:
    start = of_file(tmp_path, "model: cogvideox-2b\nframes: 17\nseed: 7\nout: there\n", steps=10)
    assert (start.model, start.seed, start.out) == ("cogvideox-2b", 7, "there")
    own, tiny = start.offer("cogvideox-2b", "full"), start.offer("tiny", "full")
    assert (own.steps, own.frames) == (10, 17)  # the flag is of the file's model
    assert (tiny.steps, tiny.frames) == (14, 33)
    assert start.run(WANTED).config.model.weights == "bundled"


def test_the_dense_baseline_has_nothing_of_a_files_method(tmp_path: Path) -> None:
    start = of_file(tmp_path, "method: adaspa\ncache: first-block\ndevice: cpu\n")
    dense = start.run(WANTED, dense=True).config
    assert (dense.method.method, dense.method.cache.name, dense.model.device) == ("full", "none", "cpu")
    assert start.run(WANTED).config.method.cache.name == "first-block"


@pytest.mark.parametrize("where", ["file", "flag"])
def test_a_click_makes_one_video(where: str, tmp_path: Path) -> None:
    text = "prompt: [a blue star]\nprompts: more.txt\ncompare_with: [other.report.json]\n"
    given = {"prompt": ["a blue star"], "prompts": "more.txt", "compare_with": ["other.report.json"]}
    config = (of_file(tmp_path, text) if where == "file" else Start(given)).run(WANTED).config
    assert (config.prompts.prompt, config.prompts.prompts) == (("a red circle",), None)
    assert config.output.compare_with == ()


@pytest.mark.parametrize("text", ["gpus: 2", "decode: false", "random_weights: true"])
def test_what_the_page_cannot_do_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="adaspa ui"):
        of_file(tmp_path, text).check()
    of_file(tmp_path, "decode: true\nrandom_weights: true\ngpus: 1").check()
