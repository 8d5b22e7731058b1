"""Paired differences of a bench whose figures are known."""

import json
import math
from pathlib import Path

import pytest

from scripts.paired_rows import main, paired, table, videos
from tests.reports import small_bench, small_quality, small_report, small_row

ROWS = {
    "full": [],
    "adaspa sparsity=0.9": [30.0, 32.0, 28.0],
    "plus sparsity=0.9": [40.0, 44.0, 39.0],
    "plus cache=magcache": [40.0],
}


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    rows = []
    for name, psnr in ROWS.items():
        folder = tmp_path / "runs" / name.replace(" ", "-")
        folder.mkdir(parents=True)
        for number, value in enumerate(psnr):
            made_up = {"work": 0.02, "pooled": None, "before": 0.1, "after": 0.05} if name.startswith("plus") else None
            cache = {"name": "magcache", "unit": "steps", "computed": 1, "possible": 2, "skipped": 0.5}
            report = small_report(prompt=f"caption {number}", seed=number % 2, density=0.3, compensation=made_up)
            report["cache"] = cache if name.endswith("magcache") else None
            (folder / f"{number}.report.json").write_text(json.dumps(report))
            (folder / f"{number}.quality.json").write_text(json.dumps(small_quality(psnr=value)))
        rows.append(small_row(name=name, settings={"sparsity": 0.9}))
    (tmp_path / "bench.json").write_text(json.dumps(small_bench(rows=rows)))
    return tmp_path


def test_differences_are_paired_by_video(bench: Path) -> None:
    folders = [bench / "runs" / name for name in ("plus-sparsity=0.9", "adaspa-sparsity=0.9")]
    mean, error, count = paired(*map(videos, folders)) or (0.0, 0.0, 0)
    assert (mean, count) == (11.0, 3)
    assert error == pytest.approx(1 / math.sqrt(3))


def test_one_video_has_no_standard_error(bench: Path) -> None:
    found = videos(bench / "runs" / "plus-sparsity=0.9")
    one = dict(list(found.items())[:1])
    assert paired(one, found) is None


def test_the_table_has_work_difference_and_estimate(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = table(bench, "adaspa sparsity={sparsity}")
    assert lines[2] == "| adaspa sparsity=0.9 | 0.300 | 30.00 | – | – | 3 | – |"
    assert lines[3] == "| plus sparsity=0.9 | 0.320 | 41.00 | adaspa sparsity=0.9 | +11.00 ± 0.58 | 3 | 5.0% |"
    assert lines[4].startswith("| plus cache=magcache | 0.160 | 40.00 |")
    assert [line.split(" | ")[5] for line in table(bench, "none", [0])[2:]] == ["2", "2", "1"]
    main([str(bench)])
    assert capsys.readouterr().out.splitlines() == lines
