"""bench.json comes back as it was written; older ones are read by rule, others are refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from adaspa_cli.bench.plots import plots
from adaspa_cli.bench.render import markdown, rows_csv, tables
from adaspa_cli.bench.schema import Bench, Missing, Summary, read_bench
from adaspa_cli.errors import ReportError
from tests.bench.benches import make
from tests.bench.benches import small_bench as bench_spec
from tests.reports import small_bench, small_row

RESULTS = sorted((Path(__file__).parents[2] / "docs" / "results").glob("*/bench.json"))

RUN = {"seed": 0, "report": "a.report.json", "quality": None, "video": None}


def written(folder: Path, content: Any) -> Path:
    path = folder / "bench.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_bench_is_read_as_it_was_written(hunyuan_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"method": "full"},
        {"method": "adaspa-plus", "cache": "pab"},
        {"name": "odd", "method": "full", "width": 50},
    ]
    make(
        bench_spec(tmp_path, hunyuan_folder, rows=rows, prompts=["a"], plots=[{"x": "density", "y": "psnr"}]), tmp_path
    )
    path = tmp_path / "bench.json"
    bench = read_bench(path)
    assert bench.as_json() == json.loads(path.read_text(encoding="utf-8"))
    assert markdown(bench) == (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert rows_csv(bench) == (tmp_path / "rows.csv").read_text(encoding="utf-8")
    assert [len(row.failures) for row in bench.rows] == [0, 0, 1]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_the_benches_of_the_docs_can_be_read_and_shown(path: Path) -> None:
    """The older of them lack what made up for left-out blocks, and values of single runs; nothing else may be lost."""
    bench, content = read_bench(path), json.loads(path.read_text(encoding="utf-8"))
    for row in content["rows"]:
        row.setdefault("made_up", None)
        row.setdefault("own_error", None)
        for run in row["runs"]:
            run.setdefault("metrics", {})
            run.setdefault("seconds", {})
        row["quality"].setdefault("st_lpips", {"missing": "the bench is older than this metric"})
    assert bench.as_json() == content
    assert tables(bench)
    assert all(f"| {row.name} |" in markdown(bench) for row in bench.rows)


def test_what_an_older_bench_lacks_reads_as_its_default(tmp_path: Path) -> None:
    row = read_bench(written(tmp_path, small_bench(colour="red"))).rows[0]
    assert row.made_up is row.own_error is None
    assert row.quality["psnr"] == Missing("no run is complete")
    assert row.quality["st_lpips"] == Missing("the bench is older than this metric")


def test_a_bench_without_runs_has_tables_and_no_plots(tmp_path: Path) -> None:
    bench = read_bench(written(tmp_path, small_bench()))
    assert "| full |" in markdown(bench)
    assert not plots(bench)


@pytest.mark.parametrize("found", [0, 2, "1", None])
def test_another_format_is_refused_by_name(tmp_path: Path, found: Any) -> None:
    refused = f"is a bench of format {found!r}, and this .* reads format {Bench.format}"
    with pytest.raises(ReportError, match=refused) as told:
        read_bench(written(tmp_path, small_bench(format=found)))
    assert told.value.hint


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"quality": {"psnr": {"missing": "x"}}}, r"rows\[0\].quality.ssim is missing"),
        ({"density": {"mean": 1.0}}, r"rows\[0\].density.median is missing"),
        ({"speed_up": {"latency": {"value": "2", "pairs": 1}}}, r"speed_up.\w+"),
        ({"planned": "1"}, r"rows\[0\].planned is '1', not of type int"),
        ({"runs": [{"prompt": "a"} | RUN | {"metrics": {"psnr": "30"}}]}, r"rows\[0\].runs\[0\].metrics.psnr is '30'"),
        ({"runs": {}}, r"rows\[0\].runs is not a list"),
    ],
)
def test_what_is_damaged_is_named_in_one_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ReportError, match=message) as told:
        read_bench(written(tmp_path, small_bench(rows=[small_row(**row)])))
    assert "\n" not in told.value.message


def test_a_file_that_is_cut_off_or_another_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, small_bench())
    path.write_text(path.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    with pytest.raises(ReportError, match="is not JSON"):
        read_bench(path)
    with pytest.raises(ReportError, match="is not a bench"):
        read_bench(written(tmp_path, {"format": 1, "kind": "adaspa latency report"}))
    with pytest.raises(ReportError, match=r"cannot read the bench .*: No such file"):
        read_bench(tmp_path / "none.json")


def test_a_figure_is_a_number_or_the_reason_why_there_is_none(tmp_path: Path) -> None:
    found = {"mean": 1, "median": 2.0, "low": 1.0, "high": 3.0, "spread": "range", "count": 3}
    quality = {**small_row()["quality"], "psnr": found}
    row = read_bench(written(tmp_path, small_bench(rows=[small_row(quality=quality)]))).rows[0]
    assert row.quality["psnr"] == Summary(1.0, 2.0, 1.0, 3.0, "range", 3)
