"""A bench's figures as text: the cells of its tables, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adaspa_cli.bench.schema import (
    PARTS,
    QUALITY,
    Bench,
    BenchRow,
    Figure,
    Metric,
    Missing,
    PaperFigures,
    Part,
    PhaseFigures,
    Ratio,
    Summary,
)

TITLES: dict[str, str] = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "st_lpips": "ST-LPIPS",
    "lpips": "LPIPS",
    "vbench": "VBench-6 %",
}
Middle = Literal["mean", "median"]
_DIGITS: dict[str, int] = {"psnr": 2, "ssim": 4, "st_lpips": 4, "lpips": 4, "vbench": 2}
_NAMED = 6  # rows that a note names one by one
_OF_THE_PAPER: tuple[Metric, ...] = ("psnr", "ssim", "lpips", "vbench")


@dataclass(frozen=True)
class Table:
    """A heading, column titles, and lines of cells; ``notes`` explain cells."""

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def tables(bench: Bench) -> list[Table]:
    """The tables of a bench, in the order in which they are read."""
    found = [_latency_table(bench), _phase_table(bench)]
    if not all(row.settings["random_weights"] for row in bench.rows):
        found.insert(0, _quality_table(bench))
    if any(row.paper for row in bench.rows):
        found.append(_paper_table(bench))
    if any(row.failures for row in bench.rows):
        found.append(_failure_table(bench))
    return [table for table in found if table.lines]


def _quality_table(bench: Bench) -> Table:
    """PSNR and SSIM always have a column, a metric that no row has is a note alone."""
    shown = [
        metric
        for metric in QUALITY
        if metric in ("psnr", "ssim") or any(isinstance(row.quality[metric], Summary) for row in bench.rows)
    ]
    lines = []
    for row in bench.rows:
        cells = [_cell(row, metric, _spread) for metric in shown]
        lines.append([row.name, *cells, f"{len(row.runs)} of {row.planned}"])
    return Table(
        "Quality against the dense video of the same prompt and seed",
        ["method", *(TITLES[metric] for metric in shown), "runs"],
        lines,
        ["Mean over the runs; in brackets the quartiles, or of fewer than four runs the range.", *_reasons(bench)],
    )


def _reasons(bench: Bench) -> list[str]:
    """Why cells are n/a, each reason once for all the metrics and rows that it holds for."""
    rows_of: dict[tuple[str, str], list[str]] = {}
    for row in bench.rows:
        for metric in QUALITY:
            figure = row.quality[metric]
            if isinstance(figure, Missing) and not _needs_none(row, metric):
                rows_of.setdefault((metric, figure.missing), []).append(row.name)
    metrics_of: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (name, reason), rows in rows_of.items():
        metrics_of.setdefault((reason, tuple(rows)), []).append(TITLES[name].split()[0])
    return [
        f"{', '.join(metrics)} n/a{_which(bench, rows)}: {reason}." for (reason, rows), metrics in metrics_of.items()
    ]


def _which(bench: Bench, rows: Sequence[str]) -> str:
    """Which rows, in brackets; the number where they are many, and nothing where it is all that are compared."""
    compared = [row for row in bench.rows if not _needs_none(row, "psnr")]
    if len(rows) >= len(compared):
        return ""
    return f" ({', '.join(rows) if len(rows) <= _NAMED else f'{len(rows)} of {len(compared)} rows'})"


def _needs_none(row: BenchRow, metric: Metric) -> bool:
    """Whether the row is the one that the metric compares others with."""
    return metric != "vbench" and row.reference == row.name


def _cell(row: BenchRow, metric: Metric, form: Callable[[Figure, int, Middle], str]) -> str:
    return "–" if _needs_none(row, metric) else form(row.quality[metric], _DIGITS[metric], "mean")


def _latency_table(bench: Bench) -> Table:
    columns: dict[str, list[str]] = {"method": [row.name for row in bench.rows]}
    notes = []
    if bench.times:
        columns |= _time_columns(bench)
        notes += _time_notes(bench)
    columns["density"] = [_share(row.density, "n/a") for row in bench.rows]
    notes.append("Density: share of the blocks computed, over all attention calls made, dense steps and text included.")
    if any(row.skipped or row.merged for row in bench.rows):
        columns["skipped"] = [_share(row.skipped) for row in bench.rows]
        columns["merged"] = [_share(row.merged) for row in bench.rows]
        notes.append("Skipped: share of blocks or attention calls that a cache left out. Merged: of the video tokens.")
    if any(row.made_up for row in bench.rows):
        columns["compensation"] = [_share(row.made_up) for row in bench.rows]
        columns["error estimate"] = [_share(row.own_error) for row in bench.rows]
        notes.append(
            "Compensation: cost of summaries and probes as a share of dense attention, in addition to "
            "the density. Error estimate: distance from dense attention, estimated on the runs' probes."
        )
    if bench.estimated:
        columns["steps computed"] = [_computed(row) for row in bench.rows]
    gpu = [row.peak_gpu_bytes for row in bench.rows]
    if any(gpu):
        columns["GPU GiB"] = ["n/a" if peak is None else f"{peak / 2**30:.1f}" for peak in gpu]
    columns["backend"] = [row.attention_backend or "n/a" for row in bench.rows]
    return Table(
        "Latency" if bench.times else "What was computed",
        list(columns),
        list(zip(*columns.values(), strict=True)),
        notes,
    )


def _share(figure: Summary | None, none: str = "–") -> str:
    return none if figure is None else f"{figure.median:.1%}"


def _time_columns(bench: Bench) -> dict[str, list[str]]:
    over_diffusers = [row.speed_up_over_diffusers for row in bench.rows]
    second = {"over diffusers": [_times(figures["latency"]) for figures in over_diffusers if figures]}
    return {
        "latency s": _part(bench, "latency"),
        "speed-up": [_times(row.speed_up["latency"]) for row in bench.rows],
        **(second if any(over_diffusers) else {}),
        "text s": _part(bench, "text_encoding"),
        "denoising s": _part(bench, "denoising"),
        "attention s": _part(bench, "attention"),
        "decoding s": _part(bench, "decoding"),
        "speed-up of attention": [_times(row.speed_up["attention"]) for row in bench.rows],
    }


def _time_notes(bench: Bench) -> list[str]:
    notes = [
        "Latency is text encoding, denoising and decoding; attention is part of denoising.",
        "Median over the runs; in brackets the quartiles, or of fewer than four runs the range.",
        "Speed-up: median of the dense runs of this bench (full, same model and size) over the row's, same prompts and "
        "seeds.",
    ]
    if any(row.speed_up_over_diffusers for row in bench.rows):
        notes.append("Over diffusers: the same ratio, to the runs of method diffusers.")
    return notes


def _computed(row: BenchRow) -> str:
    if not row.runs:
        return "n/a"
    estimated = row.estimated
    return f"{estimated.computed_steps} of {estimated.of}" if estimated else "all"


def _part(bench: Bench, part: Part) -> list[str]:
    return [_spread(row.seconds[part], 2, "median") for row in bench.rows]


def _phase_table(bench: Bench) -> Table:
    columns, lines = ["method", "phase", "steps"], []
    if bench.times:
        columns += ["median s", "of it attention s"]
    for row in bench.rows:
        for phase, figure in row.phases.items():
            times = [_number(seconds, 3, "n/a") for seconds in (figure.seconds, figure.attention)]
            lines.append([row.name, phase, _steps(figure), *(times if bench.times else [])])
    return Table("A denoising step by phase", columns, lines)


def _steps(figure: PhaseFigures) -> str:
    return str(figure.steps) if figure.steps == figure.computed else f"{figure.steps} ({figure.computed} computed)"


def _paper_table(bench: Bench) -> Table:
    columns: dict[str, str] = {**{metric: TITLES[metric] for metric in _OF_THE_PAPER}, "vbench": "VBench %"}
    if all(row.settings["random_weights"] for row in bench.rows):
        columns = {}
    notes = ["The paper used other prompts, machines and kernels, so its figures can't be compared directly."]
    if columns:
        notes.append("The paper's VBench is the total score, ours the mean of six dimensions.")
    if bench.times:
        columns |= {"latency": "latency s", "speed_up": "speed-up"}
    lines = []
    for row in bench.rows:
        paper = row.paper
        if not paper:
            continue
        for whose, cells in (("ours", _our_cells(row)), (f"paper, {paper.machine}", _paper_cells(paper))):
            lines.append([row.name, whose, *(cells[key] for key in columns)])
    title = "Beside the paper's figures (arXiv 2502.21079), which were not measured here"
    return Table(title, ["method", "whose", *columns.values()], lines, notes)


def _our_cells(row: BenchRow) -> dict[str, str]:
    quality: dict[str, str] = {metric: _cell(row, metric, _plain) for metric in QUALITY}
    latency = _plain(row.seconds["latency"], 2, "median")
    return {**quality, "latency": latency, "speed_up": _times(row.speed_up["latency"])}


def _paper_cells(paper: PaperFigures) -> dict[str, str]:
    quality: dict[str, str] = {metric: _number(getattr(paper, metric), _DIGITS[metric]) for metric in _OF_THE_PAPER}
    speed_up = "–" if paper.speed_up is None else f"{paper.speed_up:.2f} x"
    return {**quality, "latency": _number(paper.latency, 2), "speed_up": speed_up}


def _failure_table(bench: Bench) -> Table:
    lines = [
        [row.name, f"{failure.prompt} (seed {failure.seed})", failure.error, failure.hint or ""]
        for row in bench.rows
        for failure in row.failures
    ]
    return Table("Runs that failed", ["method", "run", "reason", "try"], lines)


def _number(value: float | None, digits: int, none: str = "–") -> str:
    return none if value is None else f"{value:.{digits}f}"


def _plain(figure: Figure, digits: int, middle: Middle) -> str:
    if isinstance(figure, Missing):
        return "n/a"
    return f"{getattr(figure, middle):.{digits}f}"


def _spread(figure: Figure, digits: int, middle: Middle) -> str:
    """A figure with its spread in brackets; without one where there is only one run."""
    text = _plain(figure, digits, middle)
    if isinstance(figure, Missing) or figure.count == 1:
        return text
    return f"{text} ({figure.low:.{digits}f}–{figure.high:.{digits}f})"


def _times(figure: Ratio | Missing) -> str:
    return "n/a" if isinstance(figure, Missing) else f"{figure.value:.2f} x"


def warnings(bench: Bench) -> list[str]:
    """What every output says first."""
    left_out = None if bench.times else "times and speed-ups are left out: other work may have run on the machine"
    return [said for said in (bench.random_weights, bench.estimated, left_out) if said]


def machine_lines(bench: Bench) -> list[str]:
    """The machines and versions, one line each."""
    lines = [machine.line() for machine in bench.machines]
    for versions in bench.versions:
        lines.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    return lines


def markdown(bench: Bench) -> str:
    """The whole bench as Markdown."""
    parts = [f"# {bench.title}"]
    parts += [f"**{said[0].upper()}{said[1:]}.**" for said in warnings(bench)]
    if bench.about:
        parts.append(bench.about.strip())
    parts.append("\n".join(f"- {line}" for line in [*machine_lines(bench), *bench.notes]))
    seeds = ", ".join(map(str, bench.seeds))
    parts.append(f"Prompts: {len(bench.prompts)}; seeds: {seeds}; from {bench.source}.")
    for table in tables(bench):
        rule = ["---", *["---:"] * (len(table.columns) - 1)]
        lines = [_markdown_line(line) for line in (table.columns, rule, *table.lines)]
        parts += [f"## {table.title}", "\n".join(lines), *table.notes]
    parts.append("`bench.json` holds the values of each run, and names its files.")
    return "\n\n".join(parts) + "\n"


def _markdown_line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def rows_csv(bench: Bench) -> str:
    """One line per row, only numbers; an empty cell where there is none."""
    lines = []
    for row in bench.rows:
        line: dict[str, Any] = {"method": row.name, "runs": len(row.runs), "failed": len(row.failures)}
        for metric in QUALITY:
            line |= _csv_figure(metric, row.quality[metric], "mean")
        if bench.times:
            line |= _csv_times(row)
        for share in ("density", "skipped", "merged", "made_up", "own_error"):
            line[share] = getattr(getattr(row, share), "median", None)
        line["peak_gpu_bytes"] = row.peak_gpu_bytes
        line["random_weights"] = row.random_weights
        if bench.estimated:
            line["computed_steps"] = row.estimated and row.estimated.computed_steps
        lines.append(line)
    return _csv(lines)


def _csv_times(row: BenchRow) -> dict[str, Any]:
    line: dict[str, Any] = {}
    for part in PARTS:
        line |= _csv_figure(f"{part}_seconds", row.seconds[part], "median")
    for key, figures in (("speed_up", row.speed_up), ("speed_up_over_diffusers", row.speed_up_over_diffusers or {})):
        for part, figure in figures.items():
            line[f"{key}_of_{part}"] = figure.value if isinstance(figure, Ratio) else None
    return line


def _csv_figure(name: str, figure: Figure, middle: Middle) -> dict[str, float | None]:
    columns = {name: middle, f"{name}_low": "low", f"{name}_high": "high"}
    return {column: getattr(figure, key, None) for column, key in columns.items()}


def _csv(lines: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()
