"""The files of a bench: measurements first, then JSON, Markdown, CSV and the page, all from the same figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaspa_cli.bench.figures import bench_figures
from adaspa_cli.bench.measure import measure_bench
from adaspa_cli.bench.page import page
from adaspa_cli.bench.plan import PlannedRow, current
from adaspa_cli.bench.render import markdown, rows_csv
from adaspa_cli.bench.schema import Bench
from adaspa_cli.bench.spec import BenchSpec
from adaspa_cli.files.claims import hold
from adaspa_cli.files.folders import prepare_folder
from adaspa_cli.files.whole import clear_partial, write_json, write_text

FILES = ("bench.json", "bench.md", "bench.html", "rows.csv")


def write_bench(
    spec: BenchSpec,
    planned: Sequence[PlannedRow],
    out: Path,
    paper: Sequence[Mapping[str, Any]],
    note: Callable[[str], None],
    *,
    times: bool = True,
) -> Bench:
    """Measure what is there, and write the tables of it; returns what ``bench.json`` holds.

    Of several processes one does so at a time, and the last one's tables hold all runs.

    Args:
        paper: tables of the paper, see :func:`~adaspa_cli.bench.paper.load_tables`.
        note: receives messages about the progress.
        times: with times and speed-ups.

    Raises:
        OutputError: a file cannot be written or a video cannot be read.
    """
    prepare_folder(str(out))
    with hold(out / ".tables.claim", lambda: note("another process is writing the tables; waiting for it")) as claim:
        if claim.exclusive:
            for name in FILES:
                clear_partial(out / name)
        rows = [current(row, spec) for row in planned]
        measure_bench(rows, note)
        bench = bench_figures(spec, rows, out, paper, times=times)
        write_json(out / "bench.json", bench.as_json(), replace=True)
        write_text(out / "bench.md", markdown(bench), replace=True)
        write_text(out / "rows.csv", rows_csv(bench), replace=True)
        write_text(out / "bench.html", page(bench, out), replace=True)
    return bench
