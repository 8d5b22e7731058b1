"""What ``adaspa generate --plan`` shows: the forecast of a run, as a table of figures and one of its steps."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from adaspa_cli.commands.models import shown_bytes

if TYPE_CHECKING:
    from adaspa_cli.forecast.run import Forecast
    from adaspa_cli.forecast.steps import PlannedStep


def rendered(found: Forecast) -> RenderableType:
    """For people. Estimates are marked as such."""
    return Group(_figures(found), Text(""), _steps(found), *(Text(note) for note in found.notes))


def _figures(found: Forecast) -> Table:
    from adaspa_cli.forecast.steps import phases

    work, held = found.work, found.memory
    grid = work.layout
    passes = "" if work.branches == 1 else f", {work.branches} passes a step"
    shown = ", ".join(f"{count} {phase}" for phase, count in phases(found.steps).items())
    parts = {"weights": held.weights, "activations": held.activations, "masks": held.masks}
    of = " + ".join(f"{part} {shown_bytes(size)}" for part, size in parts.items() if size is None or size >= 1e6)
    free = "" if held.available is None else f"; free {shown_bytes(held.available)} of {shown_bytes(held.device_total)}"
    verdict = {True: ", which fits", False: ", which does not fit", None: ""}[held.fits]
    lines = {
        "model": f"{found.model}, {found.dtype} on {found.device}",
        "method": found.method if found.backend is None else f"{found.method}, attention backend {found.backend}",
        "tokens": f"{grid.video_tokens:,} of video ({grid.frames} x {grid.height} x {grid.width}), "
        + (f"about {grid.text_tokens} of text" if grid.text_tokens else "text apart"),
        "attention": f"{found.layers} layers of {work.heads} heads of {work.head_dim}{passes}",
        "steps": f"{len(found.steps)}: {shown}",
        "density, estimated": f"{found.density:.1%}",
        "attention work, estimated": _flops(work.attention_flops(found.steps)),
        "peak memory, estimated": f"{shown_bytes(held.total)} ({of}){free}{verdict}",
        "denoising, estimated": _time(found),
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for key, value in lines.items():
        table.add_row(Text(key), Text(value))
    return table


def _time(found: Forecast) -> str:
    if found.denoising is None or found.rates is None:
        return "not predicted"
    each = f"{_seconds(found.denoising)}, of which attention {_seconds(found.attention or 0.0)}"
    all_of_them = "" if found.videos == 1 else f"; {found.videos} videos {_seconds(found.denoising * found.videos)}"
    return f"{each}{all_of_them} (calibrated in {found.rates.seconds:.1f} s)"


def _steps(found: Forecast) -> Table:
    """One line for each run of steps that are alike."""
    table = Table(box=None, pad_edge=False)
    for title in ("steps", "phase", "sparsity", "density, est.", "a step, est.", "attention, est."):
        table.add_column(title, justify="left" if title == "phase" else "right")
    for _, group in groupby(found.steps, key=lambda step: (step.phase, step.sparsity, step.stage)):
        alike = list(group)
        first, last = alike[0], alike[-1]
        number = f"{first.step}" if first is last else f"{first.step}-{last.step}"
        time = found.times[first.step] if found.times else None
        shown = ("n/a", "n/a") if time is None else (_seconds(time.seconds), _seconds(time.attention))
        table.add_row(number, first.phase, _sparsity(first), f"{first.density:.1%}", *shown)
    return table


def _sparsity(step: PlannedStep) -> str:
    return "" if step.sparsity is None or step.density == 1.0 else f"{step.sparsity:g}"


def _seconds(value: float) -> str:
    if value >= 5400:
        return f"{value / 3600:.1f} h"
    return f"{value / 60:.1f} min" if value >= 90 else f"{value:.2g} s" if value < 10 else f"{value:.0f} s"


def _flops(count: float) -> str:
    return f"{count / 1e12:,.1f} TFLOP" if count >= 1e12 else f"{count / 1e9:,.1f} GFLOP"
