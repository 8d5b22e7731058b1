"""The benchmark's table, from reports that are there."""

import dataclasses
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adaspa_cli.app import app
from adaspa_cli.files.typed_json import from_json
from adaspa_cli.report.schema import ParallelUse, Report
from scripts import bench_gpus
from tests.reports import small_report


def _on(gpus: int, seconds: float) -> Report:
    made: Report = from_json(Report, small_report())
    steps = tuple(dataclasses.replace(step, seconds=seconds, phase="sparse") for step in made.steps)
    use = ParallelUse(gpus, 1, 0.1, 0.125, (1.0,) * gpus, 1.0, (3_000_000_000,) * gpus) if gpus > 1 else None
    return dataclasses.replace(made, steps=steps, parallel=use)


def test_speed_up_is_over_the_fewest_gpus() -> None:
    runs = [bench_gpus.Run("hunyuan full", gpus, _on(gpus, 4.0 / gpus)) for gpus in (4, 1)]
    four, one = bench_gpus.table(runs)[2:]
    assert four == "| hunyuan full | 4 | sparse | 1.000 | 4.00 | 12.5% | 1.000 | 3.0 |"
    assert one.startswith("| hunyuan full | 1 | sparse | 4.000 | 1 |  |  |")


def test_the_record_has_what_the_table_shows() -> None:
    rows = bench_gpus.record([bench_gpus.Run("hunyuan full", gpus, _on(gpus, 4.0 / gpus)) for gpus in (4, 1)])["rows"]
    assert [(row["gpus"], row["step_seconds"]["sparse"], row["exchanges"]) for row in rows] == [
        (4, 1.0, 0.125), (1, 4.0, None),
    ]  # fmt: skip
    assert rows[0]["peak_gpu_bytes"] == [3_000_000_000] * 4


def test_a_variant_is_compared_with_the_usual_way_on_one_gpu() -> None:
    names = (("cogvideox, branches apart", 2, 2.5), ("cogvideox", 1, 4.0))
    apart, one = bench_gpus.table([bench_gpus.Run(row, gpus, _on(gpus, seconds)) for row, gpus, seconds in names])[2:]
    assert "| 2.500 | 1.60 |" in apart
    assert "| 4.000 | 1 |" in one


def test_a_row_that_takes_too_long_ends_its_own_processes(tmp_path: Path) -> None:
    """As the launcher does, which a kill would not let do it."""
    ended = tmp_path / "ended"
    program = f"trap 'touch {ended}; kill $!; exit 1' TERM; sleep 60 & wait"
    assert bench_gpus._code(["sh", "-c", program], limit=1) is None
    assert ended.exists()


def test_the_most_gpus_come_first_and_one_deals_no_heads() -> None:
    rows = ["hunyuan adaspa", "hunyuan adaspa, heads in a row"]
    assert list(bench_gpus.wanted([1, 2, 4], rows)) == [
        (rows[0], 4), (rows[0], 2), (rows[0], 1), (rows[1], 4), (rows[1], 2),
    ]  # fmt: skip


@pytest.mark.parametrize("row", bench_gpus.ROWS)
def test_generate_takes_the_flags_of_each_row(row: str) -> None:
    flags = ["--gpus=2", *bench_gpus._USUAL, *bench_gpus.ROWS[row]]
    shown = CliRunner().invoke(app, ["generate", *flags, "--print-config"])
    assert shown.exit_code == 0, shown.output


def test_a_row_that_fails_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_gpus.main(["--gpus", "1", "--rows", "hunyuan full", "--out", str(tmp_path), "--", "--steps=0"]) == 1
    assert "hunyuan full on 1" in capsys.readouterr().err
