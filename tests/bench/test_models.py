"""A bench of several models: each row beside the dense rows of its own model, one model in memory at a time."""

import csv
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest

from adaspa_cli.bench import runner
from adaspa_cli.bench.figures import bench_figures
from adaspa_cli.bench.plan import plan_bench, reference_of, untouched_of
from adaspa_cli.bench.plots import plots
from adaspa_cli.bench.render import markdown, rows_csv, tables
from adaspa_cli.bench.schema import Missing, read_bench
from adaspa_cli.bench.write import write_bench
from tests.bench.benches import PROMPTS, make, rows, settings, small_bench
from tests.pages import read

MODELS = ("hunyuan", "cogvideox")
METHODS = ("diffusers", "full", "adaspa")
Made = tuple[Path, dict[str, Any], list[int]]


@pytest.fixture(scope="module")
def made(hunyuan_folder: Path, cogvideox_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bench of two models with random weights; and how many other pipelines were alive whenever one was loaded."""
    folder = tmp_path_factory.mktemp("models")
    pipes: list[weakref.ref[Any]] = []
    alive: list[int] = []
    load = runner.load_pipeline

    def loaded(*arguments: Any, **named: Any) -> Any:
        gc.collect()
        alive.append(sum(pipe() is not None for pipe in pipes))
        pipe = load(*arguments, **named)
        pipes.extend(map(weakref.ref, (pipe, pipe.transformer)))
        return pipe

    run = settings(hunyuan_folder, random_weights=True, steps=9, search_steps=(3, 6), steps_per_phase=2)
    run |= {"height": 64, "width": 96, "frames": 9, "attention_backend": "auto"}
    del run["model"]
    folders = {"hunyuan": str(hunyuan_folder), "cogvideox": str(cogvideox_folder)}
    spec_rows = [{"name": f"{m} {how}", "model": folders[m], "method": how} for how in METHODS for m in MODELS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "load_pipeline", loaded)
        spec = small_bench(folder, hunyuan_folder, run=run, rows=spec_rows, prompts=PROMPTS[:1], warmup_steps=1)
        bench = make(spec, folder / "out")
    assert not [row["failures"] for row in bench["rows"] if row["failures"]]
    return folder / "out", bench, alive


def test_one_model_is_in_memory_at_a_time(made: Made) -> None:
    assert made[2] == [0, 0]


def test_compiled_rows_are_compared_with_others(hunyuan_folder: Path, tmp_path: Path) -> None:
    spec_rows = [
        {"name": "untouched", "method": "diffusers"},
        {"name": "dense", "method": "full", "compile": True},
        {"name": "sparse", "method": "adaspa"},
        {"name": "other size", "method": "adaspa", "frames": 9},
        {"name": "latents", "method": "adaspa", "decode": False},
    ]
    spec = small_bench(tmp_path, hunyuan_folder, run=settings(hunyuan_folder, attention_backend="auto"), rows=spec_rows)
    planned = plan_bench(spec, tmp_path / "out")
    references = [(reference_of(row, planned), untouched_of(row, planned)) for row in planned]
    names = [tuple(found.row.name if found else None for found in pair) for pair in references]
    assert names == [("dense", "untouched")] * 3 + [(None, None)] * 2
    notes = bench_figures(spec, planned, tmp_path / "out", []).notes
    assert "Blocks ran through torch.compile in dense; in the other rows they did not." in notes


def test_of_two_dense_rows_the_one_that_is_compiled_alike_is_the_reference(
    hunyuan_folder: Path, tmp_path: Path
) -> None:
    spec_rows = [
        {"name": f"{method} {compiled}", "method": method, "compile": compiled}
        for method in METHODS
        for compiled in (False, True)
    ]
    spec = small_bench(tmp_path, hunyuan_folder, run=settings(hunyuan_folder, attention_backend="auto"), rows=spec_rows)
    planned = plan_bench(spec, tmp_path / "out")
    for row in planned:
        references = reference_of(row, planned), untouched_of(row, planned)
        names = [found.row.name if found else None for found in references]
        assert names == [f"full {row.compiled}", f"diffusers {row.compiled}"]


def test_rows_in_fp8_are_compared_with_a_dense_row_that_is_not(hunyuan_folder: Path, tmp_path: Path) -> None:
    run = settings(hunyuan_folder, attention_backend="auto", dtype="auto", device="auto")
    spec_rows = [
        {"name": "dense fp8", "method": "full", "linear": "fp8"},
        {"name": "dense", "method": "full"},
        {"name": "sparse fp8", "method": "adaspa", "linear": "fp8"},
    ]
    spec = small_bench(tmp_path, hunyuan_folder, run=run, rows=spec_rows)
    planned = plan_bench(spec, tmp_path / "out")
    for row in planned:
        reference = reference_of(row, planned)
        assert reference is not None
        assert reference.row.name == "dense"
    assert runner._linear(planned) == "model"
    assert runner._linear([row for row in planned if row.fp8]) == "fp8"  # the pipeline is never whole on the GPU
    notes = bench_figures(spec, planned, tmp_path / "out", []).notes
    assert "Linear layers of the blocks multiplied in FP8 in dense fp8, sparse fp8." in notes


def test_each_row_is_compared_with_the_dense_rows_of_its_own_model(made: Made) -> None:
    out, bench, _ = made
    found = rows(bench)
    reports = {row["name"]: json.loads((out / row["runs"][0]["report"]).read_text()) for row in bench["rows"]}
    for model in MODELS:
        for how in METHODS:
            row = found[f"{model} {how}"]
            assert (row["reference"], row["diffusers_row"]) == (f"{model} full", f"{model} diffusers")
            own = reports[row["name"]]["seconds"]["denoising"]
            for key, other in (("speed_up", "full"), ("speed_up_over_diffusers", "diffusers")):
                theirs = reports[f"{model} {other}"]["seconds"]["denoising"]
                assert row[key]["denoising"] == {"value": pytest.approx(theirs / own), "pairs": 1}
        assert found[f"{model} diffusers"]["speed_up_over_diffusers"]["latency"]["value"] == 1
        assert "missing" in found[f"{model} adaspa"]["speed_up_over_diffusers"]["attention"]
        assert "value" in found[f"{model} adaspa"]["speed_up"]["attention"]
        layers = {"hunyuan": 4, "cogvideox": 2}[model]
        assert {reports[f"{model} {how}"]["model"]["layers"] for how in METHODS} == {layers}


def test_the_second_column_is_in_every_output(made: Made) -> None:
    out, bench, _ = made
    table = next(table for table in tables(read_bench(out / "bench.json")) if table.title == "Latency")
    place = list(table.columns).index("over diffusers")
    assert place == list(table.columns).index("speed-up") + 1
    text, words = (out / "bench.md").read_text(), "".join(read((out / "bench.html").read_text()).text)
    lines = list(csv.DictReader((out / "rows.csv").open()))
    for row, cells, line in zip(bench["rows"], table.lines, lines, strict=True):
        value = row["speed_up_over_diffusers"]["latency"]["value"]
        assert cells[place] == f"{value:.2f} x"
        assert float(line["speed_up_over_diffusers_of_latency"]) == value
        assert f"{value:.2f} x" in words
    assert "over diffusers" in words
    assert "| over diffusers |" in text
    assert "Over diffusers: the same ratio, to the runs of method diffusers." in text


def test_without_such_rows_there_is_no_such_column(hunyuan_folder: Path, tmp_path: Path) -> None:
    bench = make(small_bench(tmp_path, hunyuan_folder, prompts=PROMPTS[:1]), tmp_path / "out")
    assert [row["speed_up_over_diffusers"] for row in bench["rows"]] == [None, None]
    for name in ("bench.md", "bench.html", "rows.csv"):
        assert "diffusers" not in (tmp_path / "out" / name).read_text().replace("diffusers 0.", "")


def test_attention_that_was_not_timed_is_no_nought(made: Made) -> None:
    assert "Where the time goes" in {drawing.title for drawing in plots(read_bench(made[0] / "bench.json"))}
    (line,) = [
        line
        for line in markdown(read_bench(made[0] / "bench.json")).splitlines()
        if line.startswith("| hunyuan diffusers | dense |")
    ]
    assert line.endswith("| n/a |")


LEFT_OUT = "imes and speed-ups are left out: other work may have run on the machine"


def test_times_can_be_left_out_of_everything(hunyuan_folder: Path, tmp_path: Path) -> None:
    figures = {"figures": {"psnr": 29.07, "latency": 1810.23, "speed_up": 1.78}}
    paper = {"title": "table", "machine": "A100", "setting": {}, "rows": [{"setting": {"steps": 4}, **figures}]}
    spec = small_bench(tmp_path, hunyuan_folder, prompts=PROMPTS[:1], plots=[{"x": "sparsity", "y": "speed_up"}])
    planned, out = plan_bench(spec, tmp_path / "out"), tmp_path / "out"
    make(spec, out)
    for row in planned:  # all that was chosen is the paper's
        paper["setting"] |= dict.fromkeys(row.resolved.flat()) | row.resolved.flat()
    bench = write_bench(spec, planned, out, [paper], lambda _note: None, times=False)
    assert bench.times is False
    for entry in bench.rows:
        for times in (entry.seconds, entry.speed_up):
            assert all(figure == Missing("times are left out") for figure in times.values())
        assert all((phase.seconds, phase.attention) == (None, None) for phase in entry.phases.values())
    texts = {name: (out / name).read_text() for name in ("bench.md", "bench.html")}
    for text in texts.values():
        assert LEFT_OUT in text
        for word in ("latency s", "speed-up</span>", "| speed-up |", "median s", "Where the time goes", "1810"):
            assert word not in text, word
        assert "PSNR" in text
        assert "29.07" in text
        assert "density" in text
    header = rows_csv(bench).splitlines()[0].split(",")
    assert "density" in header
    assert not [name for name in header if "seconds" in name or "speed" in name]
    assert not plots(bench)
