"""The page of a bench: one HTML file that holds its plots and pictures and loads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from adaspa_cli.bench.pictures import pictures
from adaspa_cli.bench.plots import plots
from adaspa_cli.bench.text import machine_lines, tables


def page(bench: dict[str, Any], out: Path) -> str:
    """The page as HTML; videos are read from ``out``."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("page.html.j2").render(
        bench=bench,
        machines=machine_lines(bench),
        tables=tables(bench),
        plots=plots(bench),
        pictures=pictures(bench, out),
    )
