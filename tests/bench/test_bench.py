"""A bench end to end on small pipelines: its runs, going on after an interruption, what fails, and what it says."""

import json
import math
import statistics
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from adaspa_cli.bench.plan import plan_bench
from adaspa_cli.errors import ConfigError, ModelError, RunError
from adaspa_cli.quality import st_lpips
from tests.bench.benches import PROMPTS, make, rows, settings, small_bench
from tests.pipelines import Listener


def runs_made(listener: Listener) -> list[tuple[str, int]]:
    return [(what, seed) for name, *told in listener.heard if name == "video" for _, what, seed in [told]]


def files(out: Path, pattern: str) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob(pattern)}


@pytest.fixture(scope="module")
def made(hunyuan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Listener]:
    """A complete bench: its folder, what its JSON holds, and what its observer heard. Read-only."""
    folder, listener = tmp_path_factory.mktemp("bench"), Listener()
    spec = small_bench(folder, hunyuan_folder, seeds=[0, 1], warmup_steps=2)
    return folder / "out", make(spec, folder / "out", listener), listener


def test_all_rows_run_in_turn_with_one_loaded_model(made: Any) -> None:
    _, _, listener = made
    methods, prompts = ("full", "adaspa"), PROMPTS
    expected = [(f"{m}: {p}", seed) for p in prompts for seed in (0, 1) for m in methods]
    assert runs_made(listener) == expected
    assert listener.names().count("loading") == 1


def test_the_json_names_the_files_and_its_figures_are_those_of_the_files(made: Any) -> None:
    out, bench, _ = made
    assert json.loads((out / "bench.json").read_text()) == bench
    for row in bench["rows"]:
        assert len(row["runs"]) == row["planned"] == 4
        reports = [json.loads((out / run["report"]).read_text()) for run in row["runs"]]
        assert [(r["prompt"], r["seed"]) for r in reports] == [(run["prompt"], run["seed"]) for run in row["runs"]]
        for part in ("denoising", "attention", "decoding", "text_encoding"):
            values = [report["seconds"][part] for report in reports]
            assert row["seconds"][part]["median"] == statistics.median(values)
            low, _, high = statistics.quantiles(values, n=4, method="inclusive")
            assert (row["seconds"][part]["low"], row["seconds"][part]["high"]) == (low, high)
        whole = [sum(r["seconds"][part] for part in ("text_encoding", "denoising", "decoding")) for r in reports]
        assert row["seconds"]["latency"]["median"] == pytest.approx(statistics.median(whole))
        assert row["density"]["median"] == statistics.median(report["density"] for report in reports)
        steps = [s for report in reports for s in report["steps"] if s["phase"] == "dense"]
        later = [s for s in steps if s["step"] > 0] or steps
        assert row["phases"]["dense"] == {
            "steps": len(steps),
            "computed": len(steps),
            "seconds": statistics.median(s["seconds"] for s in later),
            "attention": statistics.median(s["attention"] for s in later),
        }


def test_quality_is_that_of_the_frames_before_compression(made: Any) -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    from adaspa_cli.files.videos import read_frames

    out, bench, _ = made
    row, dense = rows(bench)["adaspa"], rows(bench)["full"]
    values = []
    for run, reference in zip(row["runs"], dense["runs"], strict=True):
        a, b = (
            read_frames((out / r["report"]).with_name(Path(r["video"]).stem + ".lossless.mkv"))
            for r in (run, reference)
        )
        import torch

        per_frame = [
            float(peak_signal_noise_ratio(torch.tensor(x / 255.0), torch.tensor(y / 255.0), data_range=1.0))
            for x, y in zip(a, b, strict=True)
        ]
        quality = json.loads((out / run["quality"]).read_text())
        assert quality["metrics"]["psnr"]["value"] == pytest.approx(statistics.fmean(per_frame), abs=1e-4)
        assert quality["reference_report"] == reference["report"].removeprefix("runs/")
        values.append(quality["metrics"]["psnr"]["value"])
    assert row["quality"]["psnr"]["mean"] == statistics.fmean(values)
    assert "mean" in row["quality"]["ssim"]
    assert dense["quality"]["psnr"] == {"missing": "it is the reference of the comparison"}


def test_each_run_has_the_values_that_its_row_summarises(made: Any) -> None:
    out, bench, _ = made
    for row in bench["rows"]:
        for part in ("latency", "text_encoding", "denoising", "attention", "decoding"):
            values = [run["seconds"][part] for run in row["runs"]]
            assert statistics.median(values) == row["seconds"][part]["median"]
    row = rows(bench)["adaspa"]
    for metric in ("psnr", "ssim"):
        values = [run["metrics"][metric] for run in row["runs"]]
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        assert (row["quality"][metric]["low"], row["quality"][metric]["high"]) == (low, high)
    for run in row["runs"]:
        measured = json.loads((out / run["quality"]).read_text())["metrics"]
        values = {name: found["value"] for name, found in measured.items() if found["value"] is not None}
        assert run["metrics"] == values
        report = json.loads((out / run["report"]).read_text())
        assert run["seconds"]["denoising"] == report["seconds"]["denoising"]
    assert [run["metrics"] for run in rows(bench)["full"]["runs"]] == [{}] * 4


def test_speed_up_is_over_the_dense_runs_of_the_same_prompts_and_seeds(made: Any) -> None:
    _, bench, _ = made
    row, dense = rows(bench)["adaspa"], rows(bench)["full"]
    for part in ("latency", "denoising", "attention"):
        ratio = dense["seconds"][part]["median"] / row["seconds"][part]["median"]
        assert row["speed_up"][part] == {"value": pytest.approx(ratio), "pairs": 4}
        assert dense["speed_up"][part]["value"] == 1


def test_a_second_start_makes_nothing_and_gives_the_same_tables(
    made: Any, hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, bench, _ = made
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.report.json")}
    monkeypatch.setattr("adaspa_cli.bench.runner.load_pipeline", lambda *_, **__: pytest.fail("the model was loaded"))
    listener = Listener()
    spec = small_bench(tmp_path, hunyuan_folder, seeds=[0, 1], warmup_steps=2)
    again = make(spec, out, listener)
    assert again["rows"] == bench["rows"]
    assert listener.heard == [("planned", 0, 8, 0)]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.report.json")} == before


def test_markdown_and_csv_hold_the_same_figures(made: Any) -> None:
    import csv

    out, bench, _ = made
    text = (out / "bench.md").read_text()
    table = list(csv.DictReader((out / "rows.csv").open()))
    for row, line in zip(bench["rows"], table, strict=True):
        assert line["method"] == row["name"]
        assert float(line["denoising_seconds"]) == row["seconds"]["denoising"]["median"]
        assert f"{row['seconds']['denoising']['median']:.2f} (" in text
        assert float(line["speed_up_of_latency"]) == row["speed_up"]["latency"]["value"]
    assert f"{rows(bench)['adaspa']['quality']['psnr']['mean']:.2f} (" in text
    assert float(table[1]["psnr"]) == rows(bench)["adaspa"]["quality"]["psnr"]["mean"]
    assert table[0]["psnr"] == ""


class Interrupt(Listener):
    """Presses Ctrl-C in a step of a run."""

    def __init__(self, run: int, step: int) -> None:
        super().__init__()
        self._at, self._now = (run, step), -1

    def video(self, number: int, what: str, seed: int) -> None:
        self.heard.append(("video", number, what, seed))
        self._now = number

    def step_done(self, step: int) -> None:
        if (self._now, step) == self._at:
            raise KeyboardInterrupt


def test_an_interrupted_bench_goes_on_where_it_stopped(hunyuan_folder: Path, tmp_path: Path) -> None:
    spec, out = small_bench(tmp_path, hunyuan_folder), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make(spec, out, Interrupt(run=2, step=1))
    assert len(files(out, "*.report.json")) == 2
    assert not files(out, "*partial*")
    listener = Listener()
    bench = make(spec, out, listener)
    assert [what for what, _ in runs_made(listener)] == [f"full: {PROMPTS[1]}", f"adaspa: {PROMPTS[1]}"]
    assert [len(row["runs"]) for row in bench["rows"]] == [2, 2]


def test_a_changed_setting_is_refused_and_named(hunyuan_folder: Path, tmp_path: Path) -> None:
    spec, out = small_bench(tmp_path, hunyuan_folder), tmp_path / "out"
    make(spec, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    changed = spec.changed({"sparsity": 0.7})
    with pytest.raises(
        ConfigError, match=r"row 'full' was run with other settings .*sparsity 0.5 then, 0.7 now"
    ) as told:
        plan_bench(changed, out)
    assert "--rerun-changed" in str(told.value.hint)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    bench = make(changed, out, rerun_changed=True)
    assert all(run["report"].endswith("-seed0-2.report.json") for row in bench["rows"] for run in row["runs"])
    assert all(path.read_bytes() == content for path, content in before.items() if path.parent.parent.name == "runs")
    plan_bench(changed, out)  # what was made anew is complete


def test_more_prompts_and_rows_add_to_what_is_there(hunyuan_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(small_bench(tmp_path, hunyuan_folder, prompts=PROMPTS[:1]), out)
    listener = Listener()
    more = [{"method": "full"}, {"method": "adaspa"}, {"method": "adaspa-no-lse-cache"}]
    make(small_bench(tmp_path, hunyuan_folder, rows=more), out, listener)
    assert len(runs_made(listener)) == 4
    assert ("planned", 4, 2, 16) in listener.heard


def test_prompts_whose_names_are_alike_are_no_change(hunyuan_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(small_bench(tmp_path, hunyuan_folder, prompts=["A circle!"]), out)
    bench = make(small_bench(tmp_path, hunyuan_folder, prompts=["A circle!", "a circle"]), out)
    assert [Path(run["report"]).name for run in rows(bench)["adaspa"]["runs"]] == [
        "a-circle-seed0.report.json",
        "a-circle-seed0-2.report.json",
    ]


def test_a_row_that_fails_becomes_a_row_with_the_reason(hunyuan_folder: Path, tmp_path: Path) -> None:
    out, listener = tmp_path / "out", Listener()
    broken = [{"method": "full"}, {"name": "odd", "method": "full", "height": 40}, {"method": "adaspa"}]
    bench = make(small_bench(tmp_path, hunyuan_folder, rows=broken), out, listener)
    odd = rows(bench)["odd"]
    assert not odd["runs"]
    assert [failure["error"] for failure in odd["failures"]] == ["height must be a multiple of 16, got 40"] * 2
    contents = [json.loads((out / failure["file"]).read_text()) for failure in odd["failures"]]
    assert [content["tried"] for content in contents] == [True, False]  # it cannot work with the next prompt either
    assert odd["speed_up"]["latency"] == {"missing": "no run is complete"}
    assert len(rows(bench)["adaspa"]["runs"]) == 2
    assert [told for told in listener.heard if told[0] == "failed"] == [("failed", "odd", odd["failures"][0]["error"])]
    for name in ("bench.md", "bench.html"):
        assert "height must be a multiple of 16, got 40" in (out / name).read_text()
    assert "4 of 6 runs are complete." in bench["notes"]


def test_a_run_that_fails_is_tried_again_the_next_time(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaspa_cli.sampling import run

    spec, out, real = small_bench(tmp_path, hunyuan_folder), tmp_path / "out", run.check_finite
    calls: list[int] = []

    def second_fails(video: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RunError("the model produced values that are not finite")
        real(video)

    monkeypatch.setattr(run, "check_finite", second_fails)
    bench = make(spec, out)
    row = rows(bench)["adaspa"]
    assert (len(row["runs"]), len(row["failures"])) == (1, 1)
    assert row["speed_up"]["latency"]["pairs"] == 1
    bench = make(spec, out)
    assert (len(rows(bench)["adaspa"]["runs"]), rows(bench)["adaspa"]["failures"]) == (2, [])
    assert not files(out, "*.failure.json")


def test_an_error_that_nobody_foresaw_is_a_reason_too(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("adaspa_cli.sampling.run.check_finite", fail)
    bench = make(small_bench(tmp_path, hunyuan_folder), tmp_path / "out")
    assert {failure["error"] for row in bench["rows"] for failure in row["failures"]} == {
        "ZeroDivisionError: two lines"
    }


def test_a_model_that_cannot_be_loaded_stops_the_bench(hunyuan_folder: Path, tmp_path: Path) -> None:
    spec = small_bench(tmp_path, hunyuan_folder, run=settings(hunyuan_folder, weights="/no/such/folder"))
    with pytest.raises(ModelError, match="does not exist"):
        make(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_videos_of_another_length_are_compared_with_the_dense_ones_of_that_length(
    hunyuan_folder: Path, tmp_path: Path
) -> None:
    each = {"frames": [5, 9]}
    lengths = [{"method": "full", "each": each}, {"method": "adaspa", "each": each}, {"name": "13", "frames": 13}]
    bench = make(small_bench(tmp_path, hunyuan_folder, rows=lengths, prompts=PROMPTS[:1]), tmp_path / "out")
    found = rows(bench)
    assert found["adaspa frames=9"]["reference"] == "full frames=9"
    assert "mean" in found["adaspa frames=9"]["quality"]["psnr"]
    assert found["13"]["reference"] is None
    assert "no dense row has the same" in found["13"]["quality"]["psnr"]["missing"]
    assert found["13"]["speed_up"]["latency"] == {"missing": "no dense run to compare with"}


def test_times_of_another_machine_are_not_compared(hunyuan_folder: Path, tmp_path: Path) -> None:
    spec, out = small_bench(tmp_path, hunyuan_folder), tmp_path / "out"
    make(spec, out)
    for path in (out / "runs" / "full").glob("*.report.json"):
        report = json.loads(path.read_text())
        report["machine"]["cpu"] = "another"
        path.write_text(json.dumps(report))
    bench = make(spec, out)
    assert rows(bench)["adaspa"]["speed_up"]["latency"]["missing"].startswith("the dense runs are of another machine")
    assert "The runs are of 2 different machines: compare times only within one." in bench["notes"]


def test_random_weights_are_said_everywhere_and_have_no_quality(hunyuan_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = settings(hunyuan_folder, random_weights=True, layers=2)
    bench = make(small_bench(tmp_path, hunyuan_folder, run=run), out)
    note = "random weights, 2 of 4 layers: only the times are meaningful"
    assert bench["random_weights"] == note
    assert all(row["random_weights"] == note for row in bench["rows"])
    for name in ("bench.json", "bench.md", "bench.html", "rows.csv"):
        assert note[1:] in (out / name).read_text(), name
    row = rows(bench)["adaspa"]
    assert row["quality"]["psnr"] == {"missing": "random weights: the video is meaningless"}
    assert row["seconds"]["text_encoding"] == {"missing": "no text is encoded"}
    assert row["seconds"]["decoding"] == {"missing": "nothing is decoded"}
    assert row["speed_up"]["denoising"]["value"] > 0
    assert not files(out, "*.mp4")
    assert "Quality" not in (out / "bench.md").read_text()


def test_what_cannot_be_measured_is_n_a_with_the_reason_and_measured_once_it_can(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = small_bench(tmp_path, hunyuan_folder), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(st_lpips, "_PACKAGE", "a_package_that_is_not_there")
        before = rows(make(spec, out))["adaspa"]["quality"]
    assert math.isfinite(before["psnr"]["mean"])
    assert before["vbench"]["missing"]
    text = (out / "bench.md").read_text()
    assert "| method | PSNR dB | SSIM | runs |" in text
    assert "ST-LPIPS n/a: stlpips-pytorch is not installed; pip install 'adaspa[perceptual]'." in text
    if find_spec("stlpips_pytorch"):
        after = rows(make(spec, out))["adaspa"]["quality"]
        assert 0 < after["st_lpips"]["mean"] < 1
        assert after["psnr"] == before["psnr"]
        assert "| method | PSNR dB | SSIM | ST-LPIPS | runs |" in (out / "bench.md").read_text()


def test_a_pipeline_as_diffusers_runs_it_is_compared_with_full_and_its_attention_is_not_known(
    hunyuan_folder: Path, tmp_path: Path
) -> None:
    untouched = {"method": "diffusers", "attention_backend": "auto"}
    spec = small_bench(tmp_path, hunyuan_folder, rows=[untouched, {"method": "full"}], prompts=PROMPTS[:1])
    bench = make(spec, tmp_path / "out")
    row = rows(bench)[spec.rows[0].name]
    assert row["reference"] == "full"
    assert row["quality"]["psnr"]["mean"] > 40
    assert row["seconds"]["attention"] == row["speed_up"]["attention"]
    assert row["seconds"]["attention"] == {"missing": "attention inside diffusers is not timed"}
    assert row["speed_up"]["latency"]["value"] > 0
    assert (row["phases"]["dense"]["attention"], row["density"]["median"]) == (None, 1)
    (line,) = [
        line
        for line in (tmp_path / "out" / "bench.md").read_text().splitlines()
        if "| dense | 4 |" in line and "n/a" in line
    ]
    assert line.startswith(f"| {row['name']} |")
    assert row["attention_backend"] is None


def test_estimated_steps_are_said_everywhere(hunyuan_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = settings(hunyuan_folder, random_weights=True, steps=9, search_steps=(3, 6), steps_per_phase=2)
    rows_ = [{"method": "full"}, {"method": "adaspa"}, {"name": "odd", "method": "full", "width": 50}]
    bench = make(small_bench(tmp_path, hunyuan_folder, run=run, rows=rows_), out)
    row, dense = rows(bench)["adaspa"], rows(bench)["full"]
    assert row["estimated"] == {"computed_steps": 7, "of": 9, "steps_per_phase": 2}
    assert dense["phases"]["dense"]["steps"] == 18  # of two prompts
    assert dense["phases"]["dense"]["computed"] == 6
    report = json.loads((out / row["runs"][0]["report"]).read_text())
    assert report["seconds"]["denoising"] == pytest.approx(sum(step["seconds"] for step in report["steps"]))
    for name in ("bench.json", "bench.md", "bench.html"):
        assert "stimated: only steps at the beginning of each phase (steps_per_phase: 2)" in (out / name).read_text()
    text = (out / "bench.md").read_text()
    assert "| 7 of 9 |" in text
    (odd,) = [line for line in text.splitlines() if line.startswith("| odd |") and "%" not in line and "n/a" in line]
    assert "| all |" not in odd  # no run of it is complete
    assert "| full | dense | 18 (6 computed) |" in text
    assert "computed_steps" in (out / "rows.csv").read_text().splitlines()[0]


def test_equal_frames_are_counted_because_their_psnr_is_a_convention(hunyuan_folder: Path, tmp_path: Path) -> None:
    """The same run under another name: dense attention has no heads to adapt."""
    rows_ = [{"method": "full"}, {"name": "again", "method": "full", "head_adaptive": False}]
    bench = make(small_bench(tmp_path, hunyuan_folder, rows=rows_, prompts=PROMPTS[:1]), tmp_path / "out")
    again = rows(bench)["again"]
    assert (again["quality"]["psnr"]["mean"], again["identical_frames"]) == (100, 5)
    assert "Frames equal to the dense ones count as 100 dB: 5 of again." in bench["notes"]


def test_what_caches_skip_and_merging_merges_is_in_the_latency_table(hunyuan_folder: Path, tmp_path: Path) -> None:
    tomesd = {"method": "tomesd", "attention_backend": "auto"}
    rows_ = [{"method": "full"}, {"name": "cached", "method": "full", "cache": "pab"}, tomesd]
    bench = make(small_bench(tmp_path, hunyuan_folder, rows=rows_, prompts=PROMPTS[:1]), tmp_path / "out")
    found = rows(bench)
    assert found["full"]["skipped"] is found["full"]["merged"] is None
    (run,) = found["cached"]["runs"]
    report = json.loads((tmp_path / "out" / run["report"]).read_text())
    assert found["cached"]["skipped"]["median"] == report["cache"]["skipped"]
    (merging,) = (row for row in bench["rows"] if row["merged"])
    assert merging["merged"]["median"] == pytest.approx(0.5, abs=0.05)
    markdown = (tmp_path / "out" / "bench.md").read_text()
    assert f"{merging['merged']['median']:.1%}" in markdown
    assert "Skipped: share of blocks" in markdown


def test_what_is_made_up_for_and_the_runs_own_error_are_there_too(hunyuan_folder: Path, tmp_path: Path) -> None:
    plus = {"name": "plus", "method": "adaspa-plus", "sparsity": 0.5, "search_rows": 4, "probes": 8}
    rows_ = [{"method": "full"}, plus]
    bench = make(small_bench(tmp_path, hunyuan_folder, rows=rows_, prompts=PROMPTS[:1]), tmp_path / "out")
    found = rows(bench)
    (run,) = found["plus"]["runs"]
    made_up = json.loads((tmp_path / "out" / run["report"]).read_text())["compensation"]
    assert found["plus"]["made_up"]["median"] == made_up["work"]
    assert found["plus"]["own_error"]["median"] == made_up["after"]
    assert found["full"]["made_up"] is found["full"]["own_error"] is None
    assert f"{made_up['after']:.1%}" in (tmp_path / "out" / "bench.md").read_text()
