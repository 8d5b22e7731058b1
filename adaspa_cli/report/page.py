"""The page of a latency report: one HTML file with the video in it, readable on a phone, that loads nothing."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaspa_cli.report.compare import Compared
from adaspa_cli.report.machine import machine_line
from adaspa_cli.report.media import data_uri
from adaspa_cli.report.template import render

PHASES = {
    "dense": "#3b6ea5",
    "merged": "#3a8ea5",
    "search": "#d1622b",
    "cached search": "#e0a03a",
    "sparse": "#2f8f6b",
    "estimate": "#a4457f",
    "skipped": "#5c5c8a",
}
_REST = "#c3cad3"
_OTHER_PARTS = {"text encoding": "#7a6a2f", "decoding": "#8a5c5c", "writing": "#b9a7a7", "other": "#e3e7ec"}
_OWN_HEAT = 4  # search steps that get heat maps of their own; more of them are averaged
_NUMBERS = 8  # heads up to which a heat map's cells are wide enough for their number


@dataclass(frozen=True)
class Part:
    """A share of a run's time, in seconds."""

    name: str
    seconds: float
    colour: str


@dataclass(frozen=True)
class Run:
    """A run as the page shows it."""

    name: str
    report: dict[str, Any]
    parts: list[Part]
    video: str | None


@dataclass(frozen=True)
class Heat:
    """Density or recall by layer (row) and head, with the bounds of its colours."""

    title: str
    rows: list[tuple[int, list[float]]]
    low: float
    high: float
    numbers: bool

    def strength(self, value: float) -> float:
        """Place of a value between the bounds, 0 to 1."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5


def page(report: dict[str, Any], video: Path | None, compared: Compared | None = None) -> str:
    """The page as HTML.

    Args:
        report: what :func:`~adaspa_cli.report.latency.latency_report` gave.
        video: file of the video, None if the run ended in latents.
        compared: the run to show beside it.
    """
    runs = [_run(report, video)]
    if compared is not None:
        runs.append(_run(compared.report, compared.video))
    return render(
        Path(__file__).parent / "report.html.j2",
        report=report,
        runs=runs,
        notes=_notes(report, compared),
        longest=max(run.report["seconds"]["total"] for run in runs),
        slowest=max(step["seconds"] for run in runs for step in run.report["steps"]),
        phases=PHASES,
        rest=_REST,
        heats=heats(report["searches"]),
        settings={key: setting for key, setting in report["settings"].items() if setting["value"] is not None},
    )


def _run(report: dict[str, Any], video: Path | None) -> Run:
    method, sparsity = (report["settings"][key]["value"] for key in ("method", "sparsity"))
    name = method if report["settings"]["algorithm"]["value"] == "full" else f"{method}, {sparsity:.0%} left out"
    inside = None if video is None else data_uri("video/mp4", video.read_bytes())
    return Run(name, report, time_parts(report), inside)


def time_parts(report: dict[str, Any]) -> list[Part]:
    """Where the total time went, in the order of a run; the parts sum to the total.

    Attention is split by the phase of its step, so that a step's search stands in one part with the dense attention
    that it needs.
    """
    seconds = report["seconds"]
    attention: dict[str, float] = defaultdict(float)
    for step in report["steps"]:
        attention[step["phase"]] += step["attention"]
    parts = [Part("text encoding", seconds["text_encoding"], _OTHER_PARTS["text encoding"])]
    parts += [Part(f"attention, {phase}", attention[phase], PHASES[phase]) for phase in PHASES if attention[phase]]
    parts.append(Part("rest of denoising", seconds["denoising"] - seconds["attention"], _REST))
    parts += [Part(key, seconds[key], _OTHER_PARTS[key]) for key in ("decoding", "writing")]
    known = sum(part.seconds for part in parts)
    return [*parts, Part("other", max(0.0, seconds["total"] - known), _OTHER_PARTS["other"])]


def heats(searches: Sequence[dict[str, Any]]) -> list[Heat]:
    """Heat maps of density and recall, by guidance branch and step; of many steps the mean."""
    steps = sorted({search["step"] for search in searches})
    apart = len(steps) <= _OWN_HEAT
    groups: dict[tuple[str, int], dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for search in searches:
        groups[search["branch"], search["step"] if apart else -1][search["layer"]].append(search)
    branches = {search["branch"] for search in searches}
    found = []
    for (branch, step), layers in groups.items():
        when = f"step {step}" if apart else f"mean of steps {steps[0]} to {steps[-1]}"
        where = f"{when}, {branch}" if len(branches) > 1 else when
        for key in ("density", "recall"):
            rows = [(layer, _mean([s[key] for s in its])) for layer, its in sorted(layers.items()) if its[0][key]]
            if rows:
                values = [value for _, row in rows for value in row]
                numbers = len(rows[0][1]) <= _NUMBERS
                found.append(Heat(f"{key.capitalize()}, {where}", rows, min(values), max(values), numbers))
    return found


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    """Mean by head."""
    return [statistics.fmean(values) for values in zip(*rows, strict=True)]


def _notes(report: dict[str, Any], compared: Compared | None) -> list[str]:
    """What the reader must know to judge the figures."""
    notes = [
        f"{report['model']['name']} ({report['model']['layers']} layers, {report['model']['heads']} heads of "
        f"{report['model']['head_dim']}, {report['model']['dtype']}), attention backend {report['attention_backend']}",
        _machine(report),
    ]
    if compared is not None and _machine(compared.report) != notes[1]:
        notes.append(f"not the same machine: the run beside it was made on {_machine(compared.report)}")
    work = {key: report.get(key) for key in ("cache", "merging")}
    if work["cache"]:
        notes.append(f"{work['cache']['name']} skipped {work['cache']['skipped']:.1%} of {work['cache']['unit']} calls")
    if work["merging"]:
        notes.append(f"{work['merging']['name']} merged {work['merging']['merged']:.1%} of the video tokens")
    return notes


def _machine(report: dict[str, Any]) -> str:
    known = report["versions"]
    versions = ", ".join(f"{name} {known[name]}" for name in ("torch", "diffusers", "adaspa"))
    return f"{machine_line(report['machine'])}; {versions}"
