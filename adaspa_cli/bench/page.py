"""The page of a bench: one offline HTML file with its plots and pictures."""

from __future__ import annotations

from pathlib import Path

from adaspa_cli.bench.pictures import pictures, players
from adaspa_cli.bench.plots import plots
from adaspa_cli.bench.render import machine_lines, tables, warnings
from adaspa_cli.bench.schema import Bench
from adaspa_cli.report.meanings import PSNR
from adaspa_cli.report.template import render


def page(bench: Bench, out: Path) -> str:
    """The page as HTML; videos are read from ``out``."""
    shown = pictures(bench, out)
    return render(
        Path(__file__).parent / "page.html.j2",
        bench=bench,
        machines=machine_lines(bench),
        warnings=warnings(bench),
        tables=tables(bench),
        plots=plots(bench),
        pictures=shown,
        players=players(shown),
        psnr=PSNR,
    )
