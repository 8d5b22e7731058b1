"""The latency report: complete, consistent in itself, and readable by other programs."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from adaspa_cli import __version__
from adaspa_cli.config import resolve
from tests.pipelines import PROMPT, Listener, make_reports, small_run

METHODS = {"adaspa": {}, "no cache": {"lse_cache": False}, "full": {"method": "full"}}


@pytest.fixture(scope="module", params=METHODS, ids=METHODS.keys())
def case(
    request: pytest.FixtureRequest, hunyuan_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any]]:
    """A method's name and the report of a run with it."""
    flags = small_run(hunyuan_folder, tmp_path_factory.mktemp("out"), **METHODS[request.param])
    (report,) = make_reports(resolve(flags), Listener())
    return request.param, report


def test_the_report_says_what_was_made_of_what(case: tuple[str, dict[str, Any]], hunyuan_folder: Path) -> None:
    method, report = case
    assert report["format"] == 1
    assert report["kind"] == "adaspa latency report"
    assert datetime.datetime.fromisoformat(report["created"]).tzinfo is not None
    assert report["prompt"] == PROMPT
    assert report["seed"] == 0
    assert report["video"] == {
        "file": "a-red-circle-moves-left-on-a-blue-background-seed0.mp4",
        "frames": 5,
        "height": 32,
        "width": 48,
        "fps": 8,
    }
    assert report["model"] == {
        "name": str(hunyuan_folder),
        "pipeline": "HunyuanVideoPipeline",
        "dtype": "float32",
        "layers": 4,
        "heads": 2,
        "head_dim": 64,
    }
    assert report["attention_backend"] == "reference"
    assert report["settings"]["method"]["value"] == ("full" if method == "full" else "adaspa")


def test_the_report_names_the_machine_and_the_versions(case: tuple[str, dict[str, Any]]) -> None:
    _, report = case
    assert report["versions"]["adaspa"] == __version__
    assert {"python", "torch", "diffusers", "transformers"} <= set(report["versions"])
    assert report["machine"]["device"] == "cpu"
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["threads"] >= 1
    assert report["peak_memory"]["process_bytes"] > 100e6  # torch alone is larger


def test_every_setting_carries_its_origin(case: tuple[str, dict[str, Any]]) -> None:
    _, report = case
    settings = report["settings"]
    assert all(set(setting) == {"value", "origin"} for setting in settings.values())
    assert settings["sparsity"] == {"value": 0.5, "origin": "flag"}
    assert settings["guidance_scale"] == {"value": 6.0, "origin": "model preset hunyuan"}
    assert settings["resume"] == {"value": False, "origin": "default"}


def test_the_phases_follow_the_schedule(case: tuple[str, dict[str, Any]]) -> None:
    method, report = case
    expected = {
        "adaspa": ["dense", "search", "sparse", "cached search"],
        "no cache": ["dense", "search", "sparse", "search"],
        "full": ["dense"] * 4,
    }
    assert [step["phase"] for step in report["steps"]] == expected[method]
    assert [step["step"] for step in report["steps"]] == [0, 1, 2, 3]
    schedule = [] if method == "full" else [1, 3]
    assert report["search_steps"] == {"asked": schedule, "planned": schedule, "done": schedule}


def test_the_times_add_up(case: tuple[str, dict[str, Any]]) -> None:
    _, report = case
    seconds, steps = report["seconds"], report["steps"]
    assert all(value > 0 for value in seconds.values())
    assert seconds["denoising"] == pytest.approx(sum(step["seconds"] for step in steps))
    assert seconds["attention"] == pytest.approx(sum(step["attention"] for step in steps))
    assert all(0 < step["attention"] <= step["seconds"] for step in steps)
    parts = ("text_encoding", "denoising", "decoding", "writing")
    assert sum(seconds[part] for part in parts) <= seconds["total"]
    assert seconds["attention"] <= seconds["denoising"]


def test_densities_are_those_of_the_masks(case: tuple[str, dict[str, Any]]) -> None:
    method, report = case
    by_step: dict[int, list[float]] = {}
    for search in report["searches"]:
        assert len(search["density"]) == len(search["recall"]) == 2
        assert all(0 < value <= 1 for value in search["density"])
        assert all(0 < value <= 1 + 1e-6 for value in search["recall"])
        by_step.setdefault(search["step"], []).append(sum(search["density"]) / 2)
    if method == "full":
        expected = [1.0] * 4
    else:
        assert {(s["layer"], s["branch"], s["sample"]) for s in report["searches"]} == {
            (layer, "cond", 0) for layer in range(4)
        }
        first, second = (sum(by_step[step]) / 4 for step in (1, 3))
        assert first < 1
        expected = [1.0, 1.0, first, second if method == "adaspa" else 1.0]
    # The report rounds densities of masks to six places.
    assert [step["density"] for step in report["steps"]] == pytest.approx(expected, abs=1e-5)
    assert report["density"] == pytest.approx(sum(expected) / 4, abs=1e-5)


def test_the_report_is_plain_json(case: tuple[str, dict[str, Any]]) -> None:
    _, report = case
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_schedule_that_was_scaled_is_told(hunyuan_folder: Path, tmp_path: Path) -> None:
    flags = small_run(hunyuan_folder, tmp_path, steps=5)
    del flags["search_steps"]
    (report,) = make_reports(resolve(flags), Listener())
    assert report["search_steps"] == {"asked": [10, 30], "planned": [1, 3], "done": [1, 3]}
