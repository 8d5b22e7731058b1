"""Reports come back as they were written; older ones read by rule, others are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from adaspa_cli.config import resolve
from adaspa_cli.errors import ConfigError, ReportError
from adaspa_cli.report.compare import load_compared
from adaspa_cli.report.page import page
from adaspa_cli.report.schema import Report, read_report
from tests.pipelines import Listener, make_reports, small_run
from tests.reports import small_report

METHODS: dict[str, dict[str, Any]] = {
    "adaspa": {},
    "cache": {"method": "full", "cache": "pab"},
    "diffusers": {"method": "diffusers", "attention_backend": "auto"},
    "latents": {"decode": False},
}


def written(folder: Path, content: Any) -> Path:
    path = folder / "x.report.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("flags", METHODS.values(), ids=METHODS.keys())
def test_a_report_is_read_as_it_was_written(hunyuan_folder: Path, tmp_path: Path, flags: dict[str, Any]) -> None:
    make_reports(resolve(small_run(hunyuan_folder, tmp_path, **flags)), Listener())
    (path,) = tmp_path.glob("*.report.json")
    assert read_report(path).as_json() == json.loads(path.read_text(encoding="utf-8"))


def test_what_an_older_report_lacks_reads_as_its_default(tmp_path: Path) -> None:
    report = read_report(written(tmp_path, small_report()))
    assert report.estimated is report.cache is report.merging is report.mask_file is report.latents is None
    assert (report.steps[0].estimated, report.steps[0].skipped) == (False, None)
    assert report.seconds.denoising == 3
    assert report.setting("compile", "absent") == "absent"
    assert "a circle" in page(report, None)


def test_what_is_not_known_here_is_passed_over(tmp_path: Path) -> None:
    report = small_report(colour="red")
    report["model"]["weight"] = 7
    assert read_report(written(tmp_path, report)).model.name == "t"


@pytest.mark.parametrize("found", [0, 2, "1", None])
def test_another_format_is_refused_by_name(tmp_path: Path, found: Any) -> None:
    path = written(tmp_path, small_report(format=found))
    with pytest.raises(
        ReportError, match=f"is a latency report of format {found!r}, and this .* reads format {Report.format}"
    ):
        read_report(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seconds", {"total": 1.0}, "format 1: seconds.text_encoding is missing"),
        ("seed", "0", "format 1: seed is '0', not of type int"),
        ("seed", True, "seed is True, not of type int"),
        ("steps", {}, "steps is not a list"),
        ("steps", [{"step": 0}], r"steps\[0\].phase is missing"),
        ("settings", [], "settings is not an object"),
        ("density", "x", "density is 'x', not of type float"),
        ("machine", None, "machine is not an object"),
    ],
)
def test_what_is_damaged_is_named_in_one_line(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(ReportError, match=message) as told:
        read_report(written(tmp_path, small_report(**{key: value})))
    assert "\n" not in told.value.message
    lacking = small_report()
    del lacking[key]
    with pytest.raises(ReportError, match=f"{key} is missing"):
        read_report(written(tmp_path, lacking))


def test_a_report_that_is_older_than_a_setting_is_compared_by_the_default(hunyuan_folder: Path, tmp_path: Path) -> None:
    flags = small_run(hunyuan_folder, tmp_path)
    make_reports(resolve(flags), Listener())
    (path,) = tmp_path.glob("*.report.json")
    report = json.loads(path.read_text(encoding="utf-8"))
    for key in ("layers", "random_weights"):
        del report["settings"][key]
    path.write_text(json.dumps(report), encoding="utf-8")
    key = (report["prompt"], report["seed"])
    assert load_compared([str(path)], {key}, resolve(flags).config)[key].report.setting("layers") is None
    other = resolve(flags | {"random_weights": True, "layers": 2, "decode": False}).config
    with pytest.raises(ConfigError, match="random_weights is False there, and True here") as refused:
        load_compared([str(path)], {key}, other)
    assert "of the same model, prompt, seed and size" in str(refused.value.hint)
    smaller = resolve(flags | {"height": 16, "frames": 9}).config
    with pytest.raises(ConfigError, match="height is 32 there, and 16 here; frames is 5 there, and 9 here") as refused:
        load_compared([str(path)], {key}, smaller)
    assert refused.value.hint == "--height 32 --frames 5, or the report of another run"
