"""``adaspa bench`` as its users see it: results, messages, exit codes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from adaspa_cli.app import app
from tests.bench.benches import PROMPTS, bench_file
from tests.forked import Forks

USAGE, FAILED, INTERRUPTED = 2, 1, 130


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def run(hunyuan_folder: Path, tmp_path: Path) -> Any:
    """Run a small bench into ``tmp_path / "out"``; keys of the bench file may be changed."""

    def bench(*arguments: str, **changed: Any) -> Result:
        path = bench_file(tmp_path, hunyuan_folder, **changed)
        return CliRunner().invoke(app, ["bench", "--config", str(path), "--out", str(tmp_path / "out"), *arguments])

    return bench


def refused(result: Result, message: str) -> None:
    """Check that a command failed with one line on stderr and at most one hint."""
    assert result.exit_code == USAGE, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert message in errors[0]
    assert "Traceback" not in result.output


def test_a_bench_says_where_its_tables_are(run: Any, tmp_path: Path) -> None:
    result = run("--limit", "1")
    assert result.exit_code == 0, result.output
    for name in ("bench.json", "bench.md", "bench.html", "rows.csv"):
        assert str(tmp_path / "out" / name) in result.stdout
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert "speed-up" in result.stdout
    assert "2 runs to make, 0 are complete" in result.stderr


def test_json_is_what_the_file_holds(run: Any, tmp_path: Path) -> None:
    result = run("--limit", "1", "--seed", "3", "--rows", "adaspa", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    data = json.loads(result.stdout)
    assert data == json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [(row["name"], [r["seed"] for r in row["runs"]]) for row in data["rows"]] == [("adaspa", [3])]


def test_the_plan_shows_what_is_complete_and_makes_nothing(run: Any, tmp_path: Path) -> None:
    first = run("--plan", "--json")
    assert [(row["row"], row["runs"], row["complete"]) for row in json.loads(first.stdout)] == [
        ("full", 2, 0),
        ("adaspa", 2, 0),
    ]
    assert not (tmp_path / "out").exists()
    run("--limit", "1")
    again = json.loads(run("--plan", "--json", "--set", "sparsity=0.5").stdout)
    assert [row["complete"] for row in again] == [1, 1]
    assert again[0]["settings"]["sparsity"] == 0.5


def test_a_seed_of_a_bench_file_is_made_once(run: Any) -> None:
    result = run("--plan", "--json", seeds=[1, 1])
    assert [row["runs"] for row in json.loads(result.stdout)] == [2, 2]
    assert "seed given more than once, used once: 1" in result.stderr


def test_a_bench_whose_videos_cannot_be_measured_is_refused_before_the_first_run(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    result = run()
    assert result.exit_code == USAGE
    assert "PSNR and SSIM need torchmetrics, which cannot be imported" in result.stderr
    assert not (tmp_path / "out").exists()


def test_several_processes_share_a_bench(run: Any, tmp_path: Path) -> None:
    out, part = tmp_path / "out", run("--shard", "2/2")
    assert part.exit_code == 0, part.output
    assert part.stdout.startswith("shard 2/2: 2 of 2 runs are complete")
    assert not (out / "bench.json").exists()
    made = json.loads(next(out.glob("runs/adaspa/*.quality.json")).read_text())
    assert made["metrics"]["psnr"]["value"] > 0
    assert made["versions"]["torchmetrics"]
    assert json.loads(run("--part", "1/2", "--json", "--quiet").stdout) == {"shard": "1/2", "runs": 2, "complete": 2}
    whole = json.loads(run("--tables-only", "--json").stdout)
    assert [[r["prompt"] for r in row["runs"]] for row in whole["rows"]] == [PROMPTS, PROMPTS]
    assert "0 runs to make, 4 are complete" in run().stderr


def test_a_part_with_a_failed_run_is_exit_code_1(run: Any) -> None:
    result = run("--shard", "1/2", rows=[{"method": "full"}, {"name": "odd", "method": "full", "width": 50}])
    assert result.exit_code == FAILED
    assert "shard 1/2: 1 of 2 runs are complete" in result.stdout


def test_a_failed_run_is_exit_code_1_and_a_line(run: Any) -> None:
    result = run("--limit", "1", rows=[{"method": "full"}, {"name": "odd", "method": "full", "width": 50}])
    assert result.exit_code == FAILED
    assert "failed: odd: width must be a multiple of 16, got 50" in result.stderr
    assert "Runs that failed" in result.stdout


def test_ctrl_c_says_how_to_go_on(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("adaspa_cli.commands.progress.ProgressObserver.step_done", press)
        result = run("--limit", "1")
    assert result.exit_code == INTERRUPTED
    assert "the same command continues from there" in result.stderr
    assert run("--limit", "1").exit_code == 0


def test_tables_alone_need_no_model(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run("--limit", "1")
    monkeypatch.setattr("adaspa_cli.bench.runner.load_pipeline", lambda *_, **__: pytest.fail("the model was loaded"))
    result = run("--tables-only")
    assert result.exit_code == 0
    assert "2 of 4 runs are complete" in json.loads(run("--tables-only", "--json").stdout)["notes"][0]


def test_random_weights_are_said_first(run: Any, tmp_path: Path) -> None:
    result = run("--limit", "1", "--random-weights", "--layers", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("random weights, 2 of 4 layers: only the times are meaningful")
    assert not list(tmp_path.rglob("*.mp4"))


def test_times_are_left_out_where_they_mean_nothing(run: Any, tmp_path: Path) -> None:
    result = run("--limit", "1", "--no-times")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("times and speed-ups are left out: other work may have run on the machine")
    assert "speed-up" not in result.stdout.splitlines()[1:]
    assert "latency s" not in result.stdout
    bench = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert bench["times"] is False
    assert [run["seconds"] for row in bench["rows"] for run in row["runs"]] == [{}, {}]
    again = run("--limit", "1", "--tables-only")  # the reports still have them
    assert "latency s" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "changed", "message"),
    [
        (["--rows", "ful"], {}, "unknown row 'ful'; did you mean 'full'"),
        (["--set", "steps"], {}, "--set takes KEY=VALUE, got 'steps'"),
        (["--set", "steps=many"], {}, "steps in --set must be a whole number, got 'many'"),
        (["--set", "stps=3"], {}, "unknown key 'stps' in --set; did you mean 'steps'"),
        (["--set", "steps=[3"], {}, "'[3' is not a YAML value"),
        (["--preset", "main"], {}, "name one bench: --preset NAME or --config FILE"),
        (["--set", "search_steps=[9]"], {}, "search step 9 is beyond the last step, which is 3"),
        (["--shard", "0/2"], {}, "--shard takes I/N, I from 1 to N, or auto, got '0/2'"),
        (["--shard", "3/2"], {}, "--shard takes I/N, I from 1 to N, or auto, got '3/2'"),
        (["--shard", "two"], {}, "--shard takes I/N, I from 1 to N, or auto, got 'two'"),
        (["--part", "1/2/3"], {}, "--shard takes I/N, I from 1 to N, or auto, got '1/2/3'"),
        (["--shard", "1/2", "--tables-only"], {}, "--shard makes no tables"),
        (["--tables-only"], {}, "--tables-only: there is no folder"),
        (["--layers", "2"], {}, "layers needs random_weights"),
        (["--set", "steps_per_phase=2"], {}, "steps_per_phase skips steps, so it makes no video"),
        ([], {"rows": [{"method": "diffusers", "cache": "pab"}]}, "'diffusers' runs the pipeline unchanged"),
        (["--model", "hunyuann"], {}, "unknown model 'hunyuann'; did you mean 'hunyuan'"),
        ([], {"rows": [{"method": "adspa"}]}, "unknown method 'adspa'; did you mean 'adaspa'"),
        ([], {"rows": [{"method": "full"}, {"name": "b", "layers": 2}]}, "row 'b': layers needs random_weights"),
        ([], {"rows": [{"name": "b", "masks": "/no/masks"}]}, "row 'b': cannot read masks from /no/masks"),
        ([], {"paper": "tabel"}, "unknown table of the paper 'tabel'"),
        ([], {"prompts": "/no/such/file"}, "cannot read prompts from"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Any, tmp_path: Path, arguments: list[str], changed: dict[str, Any], message: str
) -> None:
    refused(run(*arguments, **changed), message)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(run: Any, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("content")
    refused(run(), "cannot write to")


def test_a_changed_setting_belongs_to_the_rows_that_run(run: Any) -> None:
    rows = {"rows": [{"method": "full"}, {"method": "adaspa", "sparsity": 0.5}, {"name": "others", "steps": 3}]}
    refused(run("--set", "steps=2", **rows), "--set steps: a row sets it already: others")
    result = run("--rows", "full", "--set", "steps=2", "--plan", "--json", **rows)
    assert result.exit_code == 0, result.output
    assert [(row["row"], row["settings"]["steps"]) for row in json.loads(result.stdout)] == [("full", 2)]


def test_a_changed_setting_is_refused(run: Any) -> None:
    run("--limit", "1")
    refused(run("--limit", "1", "--set", "steps=5"), "steps 4 then, 5 now")


@pytest.mark.parametrize("arguments", [["--help"], ["--preset", "x"], ["--preset", "tiny-full", "--rows", "x"]])
def test_help_and_wrong_arguments_import_nothing_heavy(light: Forks, arguments: list[str]) -> None:
    assert light.run("bench", *arguments).stderr.strip().splitlines()[-1] == "[]"


def test_the_bench_of_the_bundled_model_needs_no_checkpoint(tmp_path: Path) -> None:
    """The smallest part of the preset that a user tries first."""
    arguments = ["--preset", "tiny-smoke", "--rows", "full,adaspa", "--limit", "1", "--device", "cpu"]
    small = ["--set", "height=64", "--set", "width=64", "--set", "frames=5", "--set", "steps=3"]
    changed = ["--set", "search_steps=[0, 1]", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["bench", *arguments, *small, *changed, "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert [row["attention_backend"] for row in data["rows"]] == ["cpu", "cpu"]
    assert data["source"] == "preset tiny-smoke"
    assert data["rows"][1]["quality"]["psnr"]["mean"] > 10
