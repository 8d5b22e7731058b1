"""The forecast of whole runs with a calibration that is given, against what is known of the models."""

import dataclasses
from typing import Any

import pytest
import torch

from adaspa_cli.config import GenerateConfig, resolve
from adaspa_cli.config.weights import held_weights, largest_alone, part_bytes
from adaspa_cli.forecast.calibration import Rates, Sample
from adaspa_cli.forecast.run import Forecast, forecast
from adaspa_cli.models.memory import Memory

PROMPT = "a red circle moves left"
RATES = Rates(flop=1e-12, channel=1e-12, dense=1e-12, sparse=1e-12, search=1e-13)


def config(**flags: Any) -> GenerateConfig:
    return resolve({"device": "cpu", "dtype": "bfloat16", **flags}, download=False).config


def run(**flags: Any) -> Forecast:
    return forecast(config(**flags), [PROMPT], lambda _sample: RATES)


def test_hunyuan_at_its_full_size() -> None:
    found = run(model="hunyuan", method="adaspa").as_json()
    assert found["video_tokens"] == 118_800
    assert (found["layers"], found["heads"], found["head_dim"]) == (60, 24, 128)
    assert found["phases"] == {"dense": 10, "search": 1, "sparse": 38, "cached search": 1}
    assert found["estimated_density"] == pytest.approx((11 + 39 * 0.2) / 50, abs=0.002)
    assert len(found["steps"]) == 50
    times = [step["estimated_seconds"] for step in found["steps"]]
    assert found["estimated_seconds"]["denoising"] == pytest.approx(sum(times))


def test_offloading_leaves_the_transformer_or_a_part_of_it() -> None:
    from adaspa_cli.config.architecture import architecture_of

    model = config(model="hunyuan")
    architecture = architecture_of(model.model)
    parts = part_bytes(model.model, architecture)
    assert parts is not None
    held = [held_weights(parts, offload, architecture) for offload in ("none", "model", "group")]
    assert held[0] == sum(parts.values())
    assert held[1] == parts["transformer"]
    assert 0 < held[2] < held[1] / 20


def test_a_text_encoder_that_is_larger_than_the_rest_is_the_peak() -> None:
    from adaspa_cli.config.architecture import architecture_of

    model = config(model="wan2.1-1.3b")
    architecture = architecture_of(model.model)
    parts = part_bytes(model.model, architecture)
    assert parts is not None
    alone = [largest_alone(parts, offload, architecture) for offload in ("none", "model", "group")]
    assert alone == [0, parts["text_encoder"], 256_384 * 4096 * 2]
    held = held_weights(parts, "model", architecture)
    assert Memory(held, 1000, 0, alone[1], None).total == parts["text_encoder"]


def test_kept_weights_are_smaller() -> None:
    from adaspa_cli.config.architecture import architecture_of

    whole = config(model="hunyuan")
    architecture = architecture_of(whole.model)
    fp8 = dataclasses.replace(whole, model=dataclasses.replace(whole.model, weights_dtype="fp8"))
    sizes = [part_bytes(one.model, architecture) for one in (whole, fp8)]
    assert sizes[0] is not None
    assert sizes[1] is not None
    assert sizes[1]["transformer"] * 2 == sizes[0]["transformer"]
    assert sizes[1]["vae"] == sizes[0]["vae"]


def test_two_transformers_make_two_stages() -> None:
    found = run(model="wan2.2-a14b", method="adaspa")
    assert found.work.layers == (40, 40)
    assert sum(step.stage == 0 for step in found.steps) == 26
    assert [step.step for step in found.steps if "search" in step.phase] == [8, 17, 26, 33]
    assert found.work.branches == 2
    assert found.work.layout.text_tokens == 0


def test_linear_work_is_that_of_the_layers_that_every_token_passes() -> None:
    """12 squares of 3072 channels in each of HunyuanVideo's 60 blocks, of the video's tokens and of all text positions,
    padding too; modulation doesn't count."""
    work = run(model="hunyuan", method="full").work
    assert work.rows == 118_800 + 256
    assert work.linear_flops[0] == 2 * 60 * 12 * 3072**2 * work.rows


def test_the_bundled_model_is_planned_by_what_the_run_needs() -> None:
    asked: list[Sample] = []

    def measure(sample: Sample) -> Rates:
        asked.append(sample)
        return RATES

    forecast(config(method="full"), [PROMPT], measure)
    forecast(config(method="adaspa"), [PROMPT], measure)
    forecast(config(method="sol-attn"), [PROMPT], measure)
    assert [sample.policy is not None for sample in asked] == [False, True, True]
    assert [(sample.searches, sample.estimates) for sample in asked] == [(False, False), (True, False), (False, True)]
    assert {(sample.head_dim, sample.dtype) for sample in asked} == {(64, torch.bfloat16)}


@pytest.mark.parametrize("flags", [{"method": "tomesd"}, {"method": "diffusers"}])
def test_no_time_where_it_would_not_be_honest(flags: dict[str, Any]) -> None:
    found = forecast(config(**flags), [PROMPT], lambda _sample: pytest.fail("measured"))
    assert found.denoising is None
    assert "time not predicted" in found.notes[0]
    assert found.memory.total


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"linear": "fp8", "compile": True}, ["--linear fp8 keeps 18.1 GB of weights in main memory"]),
        ({"weights_dtype": "fp8"}, []),
        ({"offload": "model"}, ["--offload model keeps all weights in main memory: 41.4 GB"]),
        ({"offload": "model", "linear": "fp8"}, ["--offload model keeps all weights in main memory: 50.4 GB"]),
        ({"method": "adacache"}, ["cache 'adacache' decides at run time", "the attention work is an upper bound"]),
        ({"max_error": 0.1, "method": "adaspa-plus"}, ["the attention work is a lower bound"]),
        ({"random_weights": True, "steps_per_phase": 2}, ["the attention work is for all steps"]),
    ],
)
def test_without_a_time_no_note_is_about_it(
    flags: dict[str, Any], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    first, *others = run(model="hunyuan", device="cuda", **flags).notes
    assert first == "time not predicted: this machine has no GPU"
    assert len(others) == bool(said)
    assert all(part in others[0] for part in said)


def test_with_a_time_the_notes_say_what_it_leaves_out() -> None:
    flags = {"model": "hunyuan", "method": "adaspa-plus", "weights_dtype": "fp8", "max_error": 0.1}
    scope, bound, converted = run(**flags).notes
    assert scope.startswith("the time covers denoising only")
    assert bound.endswith("time and attention work are lower bounds")
    assert converted.endswith("which is not in the time")


def test_a_cache_that_decides_at_run_time_is_named() -> None:
    notes = run(method="adacache").notes
    assert any("at run time" in note for note in notes)
    assert not any("at run time" in note for note in run(method="full", cache="magcache").notes)
    assert run(method="full", cache="magcache").as_json()["phases"]["skipped"] > 0
