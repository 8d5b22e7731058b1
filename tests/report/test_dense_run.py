"""A page without a dense run beside it says how to get one; the commands run and are taken by each other."""

import dataclasses
import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adaspa_cli.app import app
from adaspa_cli.commands.options import GENERATE
from adaspa_cli.files.typed_json import from_json
from adaspa_cli.report.dense_run import FLAGS, SWITCHES, command_parts, dense_commands
from adaspa_cli.report.page import page
from adaspa_cli.report.schema import Report, read_report
from tests.browser import Browser, check_readable
from tests.reports import small_report

SMALL = ("--height", "32", "--width", "32", "--frames", "5", "--steps", "3", "--device", "cpu")


def report_of(prompt: str = "a circle", **given: Any) -> Report:
    settings = {
        "method": {"value": "adaspa-plus", "origin": "default"},
        "algorithm": {"value": "adaspa", "origin": "method preset adaspa-plus"},
        "lse_cache": {"value": True, "origin": "method preset adaspa-plus"},
        **{key: {"value": value, "origin": "flag"} for key, value in given.items()},
    }
    return from_json(Report, small_report(prompt=prompt, settings=settings))


def test_the_commands_have_what_was_given() -> None:
    given = {"steps": 6, "flow_shift": 7.0, "vae_tiling": True, "sparsity": 0.95, "sparsity_ramp": "0:0.4,50%:0.95"}
    commands = dense_commands(report_of("it's red", **given, search_steps=[2, 4], out="videos"))
    assert commands is not None
    begin = """adaspa generate --prompt 'it'"'"'s red' --seed 0 --steps 6 --set flow_shift=7.0 --set vae_tiling=true """
    assert commands[0] == f"{begin}--method full --out videos/dense"
    own = "--method adaspa-plus --sparsity 0:0.4,50%:0.95 --search-steps 2,4 --compare-with videos/dense/x.report.json"
    assert commands[1] == begin + own


def test_a_text_that_begins_with_a_dash_is_no_flag() -> None:
    commands = dense_commands(report_of("--json", negative_prompt="-dark ones"))
    assert commands is not None
    assert commands[0].startswith("adaspa generate --prompt=--json --seed 0 '--negative-prompt=-dark ones' --method")
    for command in commands:
        result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--json", "--print-config"])
        assert result.exit_code == 0, result.output
        settings = json.loads(result.stdout)
        assert settings["prompt"]["value"] == ["--json"]
        assert settings["negative_prompt"]["value"] == "-dark ones"


def test_they_stand_on_pages_without_a_dense_run_only() -> None:
    sparse = report_of(steps=6)
    assert "There is no dense run to compare with" in page(sparse, None)
    assert dense_commands(from_json(Report, small_report())) is None
    video = dataclasses.replace(sparse.video, file=None)
    assert dense_commands(dataclasses.replace(sparse, video=video)) is None
    beside = {"method": "full", "dense": True, "speed_up": 3.0, "lossless": False, "psnr": [30], "ssim": [1]}
    compared = from_json(Report, small_report(compared=beside))
    assert dense_commands(dataclasses.replace(sparse, compared=compared.compared)) is None


def test_a_page_breaks_them_between_options_only() -> None:
    parts = command_parts("adaspa generate --prompt 'it, --all of it' --seed 0 --random-weights --out dense")
    assert parts == ["adaspa generate", "--prompt 'it, --all of it'", "--seed 0", "--random-weights", "--out dense"]
    report = report_of("<b>it's red", steps=6)
    found = re.findall(r'<pre class="command"><code>(.*?)</code></pre>', page(report, None))
    assert tuple(html.unescape(re.sub("</?span>", "", command)) for command in found) == dense_commands(report)


def test_a_command_is_copied_as_one_line(browser: Browser, tmp_path: Path) -> None:
    report = report_of("a very long prompt, with words enough for several lines of a phone " * 3, steps=6)
    (path := tmp_path / "x.report.html").write_text(page(report, None), encoding="utf-8")
    check_readable(browser, path.as_uri())
    copied = (
        "[...document.querySelectorAll('.command')].map((one) => {"
        "getSelection().selectAllChildren(one); return getSelection().toString(); })"
    )
    with browser.tab(path.as_uri(), width=390) as tab:
        assert tuple(tab.evaluate(copied)) == dense_commands(report)


def test_every_flag_is_one_of_generate() -> None:
    assert {*FLAGS, *SWITCHES} <= {flag.key for flag in GENERATE}


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--prompt", "a red circle", "--set", "flow_shift=5", *SMALL)
    assert CliRunner().invoke(app, ["generate", *flags]).exit_code == 0
    (path,) = tmp_path.glob("videos/*.report.json")
    commands = dense_commands(read_report(path))
    assert commands is not None
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.stderr
    (again,) = tmp_path.glob("videos/*-2.report.json")
    compared = read_report(again).compared
    assert compared is not None
    assert compared.dense
