"""What a run with a cache says: which one ran, and the share of calls that it skipped, counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adaspa_cli.app import app
from adaspa_cli.config import resolve
from tests.pipelines import PROMPT, Listener, make_reports, small_run


def report_of(folder: Path, out: Path, **flags: Any) -> dict[str, Any]:
    settings = small_run(folder, out) | flags
    (report,) = make_reports(resolve({k: v for k, v in settings.items() if v is not None}), Listener())
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    return report


def test_a_cache_is_reported_with_its_share(hunyuan_folder: Path, tmp_path: Path) -> None:
    report = report_of(hunyuan_folder, tmp_path, cache="pab", pab_timesteps=(-1, 2000))
    assert report["cache"] == {"name": "pab", "unit": "attention", "computed": 8, "possible": 16, "skipped": 0.5}
    assert report["merging"] is None
    assert report["settings"]["cache"] == {"value": "pab", "origin": "flag"}
    assert [step["skipped"] for step in report["steps"]] == [0, 1, 0, 1]
    # The search of step 1 waits for step 2, that of step 3 for a step that does not come.
    assert [step["phase"] for step in report["steps"]] == ["dense", "skipped", "search", "skipped"]
    assert report["search_steps"] == {"asked": [1, 3], "planned": [1, 3], "done": [2]}
    assert report["density"] == 1


def test_merging_is_reported_with_its_share(cogvideox_folder: Path, tmp_path: Path) -> None:
    report = report_of(
        cogvideox_folder, tmp_path, method="tomesd", attention_backend=None, height=64, width=96, frames=9
    )
    assert report["merging"] == {"name": "tomesd", "asked": 0.5, "merged": 0.5}
    assert report["cache"] is None
    assert report["attention_backend"] == "sdpa"
    assert {step["phase"] for step in report["steps"]} == {"merged"}
    assert {step["skipped"] for step in report["steps"]} == {None}
    tokens, merged = 226 + 48, 24  # 3 latent frames of 4 x 6 tokens, padded to 4 and joined in pairs
    assert report["density"] == pytest.approx((1 - merged / tokens) ** 2)


def test_calibration_reports_its_ratios(hunyuan_folder: Path, tmp_path: Path) -> None:
    report = report_of(hunyuan_folder, tmp_path / "first", method="magcache-calibration")
    ratios = report["cache"]["ratios"]
    assert len(ratios) == 4
    file = tmp_path / "ratios.yaml"
    file.write_text(f"cache: magcache\nmagcache_ratios: {ratios}\nmagcache_threshold: 9\n")
    settings = small_run(hunyuan_folder, tmp_path / "second") | {"method": "full"}
    (second,) = make_reports(resolve(settings, file), Listener())
    assert second["cache"]["name"] == "magcache"
    assert second["cache"]["skipped"] > 0


def arguments(settings: dict[str, Any], *more: str) -> list[str]:
    lists = {key: value if isinstance(value, list) else [value] for key, value in settings.items()}
    lists["search_steps"] = [",".join(map(str, settings["search_steps"]))]
    flags = [part for key, values in lists.items() for v in values for part in (f"--{key.replace('_', '-')}", str(v))]
    return ["generate", *flags, *more]


def test_the_summary_names_the_cache_and_its_share(hunyuan_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("pab_timesteps: [-1, 2000]\n")
    settings = small_run(hunyuan_folder, tmp_path / "out")
    result = CliRunner().invoke(app, arguments(settings, "--cache", "pab", "--config", str(file)))
    assert result.exit_code == 0, result.output
    assert "pab: 50.0% of attention calls skipped" in result.stdout
    plain = CliRunner().invoke(app, arguments(settings))
    assert "skipped" not in plain.stdout
    both = CliRunner().invoke(
        app,
        arguments(
            settings | {"method": "tomesd", "attention_backend": "auto"}, "--cache", "pab", "--config", str(file)
        ),
    )
    assert "of video tokens merged" in both.stdout
    assert "pab: 50.0% of attention calls skipped" in both.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "pab", "--cache", "adacache"], "method pab is itself the cache 'pab'"),
        (["--cache", "tomesd"], "tomesd merges tokens and is no cache"),
        (["--cache", "magcache", "--model", "hunyuan"], "magcache needs the magnitude ratios of this model"),
    ],
)
def test_a_combination_without_sense_is_one_line(flags: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["generate", "--prompt", PROMPT, "--out", str(tmp_path / "out"), *flags])
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_print_config_shows_the_cache_and_its_origin() -> None:
    result = CliRunner().invoke(app, ["generate", "--cache", "first-block", "--print-config", "--json"])
    shown = json.loads(result.stdout)
    assert shown["cache"] == {"value": "first-block", "origin": "flag"}
    assert shown["first_block_threshold"] == {"value": 0.05, "origin": "default"}
