"""From the files of a bench's runs to its figures. Every figure names the files that it was computed from."""

from __future__ import annotations

import dataclasses
import datetime
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from adaspa_cli.bench.measure import identical_frames, measurements, quality_path
from adaspa_cli.bench.paper import paper_figures, without_times
from adaspa_cli.bench.plan import PlannedRow, reference_of, report_at, report_of, untouched_of
from adaspa_cli.bench.records import Failure, read_record
from adaspa_cli.bench.runner import failure_path
from adaspa_cli.bench.schema import (
    COMPARED_PARTS,
    PARTS,
    QUALITY,
    Bench,
    BenchRow,
    CompleteRun,
    FailedRun,
    Figure,
    Metric,
    Missing,
    Part,
    PhaseFigures,
    Ratio,
    SpeedUps,
    Summary,
)
from adaspa_cli.bench.spec import RESERVED, BenchSpec
from adaspa_cli.jobs.plan import Job
from adaspa_cli.quality.measurement import Measurement
from adaspa_cli.quality.video_metrics import PSNR_OF_EQUAL_FRAMES
from adaspa_cli.report.schema import Machine, Report, Step
from adaspa_cli.report.steps import typical_attention, typical_seconds

LEFT_OUT = "times are left out"
T = TypeVar("T")

UNTIMED = "attention inside diffusers is not timed"
REFERENCE = "it is the reference of the comparison"  # why the dense row has no PSNR
_QUARTILES_FROM = 4  # values; of fewer the spread is their range


def bench_figures(
    spec: BenchSpec, rows: list[PlannedRow], out: Path, paper: Sequence[Mapping[str, Any]], *, times: bool = True
) -> Bench:
    """Everything that the tables, the plots and the page show; paths are relative to ``out``.

    Args:
        times: give times and speed-ups; otherwise each of them says that it was left out.
    """
    reports = {
        (row.row.name, index): report
        for row in rows
        for index, job in enumerate(row.jobs)
        if job.complete and (report := report_at(report_of(job))) is not None
    }
    entries = [_row(row, rows, reports, out, paper) for row in rows]
    if not times:
        entries = [_without_times(entry) for entry in entries]
    some = list(reports.values())
    machines = _distinct(report.machine for report in some)
    return Bench(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        title=spec.title,
        about=spec.about,
        source=spec.source,
        prompts=tuple(spec.prompts),
        seeds=tuple(spec.seeds),
        machines=machines,
        versions=_distinct(report.versions for report in some),
        times=times,
        random_weights="; ".join(_distinct(r.random_weights for r in some if r.random_weights)) or None,
        estimated=_estimated(entries),
        notes=tuple(_notes(entries, machines)),
        plots=spec.plots,
        rows=tuple(entries),
    )


def _distinct(values: Iterable[T]) -> tuple[T, ...]:
    found: list[T] = []
    for value in values:
        if value not in found:
            found.append(value)
    return tuple(found)


Reports = dict[tuple[str, int], Report]


def _row(
    row: PlannedRow, rows: list[PlannedRow], reports: Reports, out: Path, paper: Sequence[Mapping[str, Any]]
) -> BenchRow:
    dense = reference_of(row, rows)
    done = {index: reports[row.row.name, index] for index in range(len(row.jobs)) if (row.row.name, index) in reports}
    measured = {index: measurements(row.jobs[index], _dense_job(dense, index)) for index in done}
    untouched = untouched_of(row, rows)
    settings = row.resolved.flat()
    return BenchRow(
        name=row.row.name,
        series=row.row.series,
        settings={key: value for key, value in settings.items() if key not in RESERVED},
        differs_in=tuple(row.row.settings),
        random_weights=next((report.random_weights for report in done.values()), None),
        planned=len(row.jobs),
        runs=tuple(_run(row.jobs[index], report, measured[index], out) for index, report in done.items()),
        failures=tuple(_failures(row, out)),
        reference=None if dense is None else dense.row.name,
        diffusers_row=None if untouched is None else untouched.row.name,
        quality=_quality(row, dense, list(measured.values())),
        identical_frames=sum(identical_frames(row.jobs[index], _dense_job(dense, index)) for index in done),
        seconds={part: _seconds(part, list(done.values())) for part in PARTS},
        speed_up=_speed_ups(done, dense, reports),
        speed_up_over_diffusers=_speed_ups(done, untouched, reports) if any(r.untouched for r in rows) else None,
        estimated=next((report.estimated for report in done.values() if report.estimated), None),
        density=summary([report.density for report in done.values() if report.density is not None]),
        skipped=summary([r.cache.skipped for r in done.values() if r.cache and r.cache.skipped is not None]),
        merged=summary([r.merging.merged for r in done.values() if r.merging and r.merging.merged is not None]),
        made_up=summary([r.compensation.work for r in done.values() if r.compensation]),
        own_error=summary([r.compensation.after for r in done.values() if r.compensation and r.compensation.after]),
        phases=_phases(list(done.values())),
        peak_gpu_bytes=max((r.peak_memory.gpu_bytes or 0 for r in done.values()), default=0) or None,
        attention_backend=next((report.attention_backend for report in done.values()), None),
        paper=paper_figures(settings, _chosen(row), paper),
    )


def _chosen(row: PlannedRow) -> set[str]:
    """Keys that the bench sets, beyond what the model and the method are."""
    origins = row.resolved.origins()
    return {key for key, origin in origins.items() if origin.startswith("bench row") and key not in RESERVED}


def _run(job: Job, report: Report, measured: Mapping[str, Measurement], out: Path) -> CompleteRun:
    seconds = {part: part_seconds(part, report) for part in PARTS}
    return CompleteRun(
        job.prompt,
        job.seed,
        report=_relative(report_of(job), out),
        quality=_relative(quality_path(job), out) if measured else None,
        video=_relative(job.place, out) if job.place.is_file() else None,
        metrics={name: one.value for name in QUALITY if (one := measured.get(name)) and one.value is not None},
        seconds={part: value for part, value in seconds.items() if value is not None},
    )


def _relative(path: Path, out: Path) -> str:
    return path.relative_to(out).as_posix()


def _dense_job(dense: PlannedRow | None, index: int) -> Job | None:
    job = None if dense is None else dense.jobs[index]
    return job if job is not None and job.complete else None


def _failures(row: PlannedRow, out: Path) -> Iterator[FailedRun]:
    """Why runs of these settings failed."""
    for job in row.jobs:
        failure = None if job.complete else read_record(Failure, failure_path(job))
        if failure is not None and failure.fingerprint == job.fingerprint:
            yield FailedRun(job.prompt, job.seed, failure.error, failure.hint, _relative(failure_path(job), out))


def summary(values: Sequence[float]) -> Summary | None:
    """Mean, median and spread: the quartiles, or of fewer than four values their range; None without values."""
    if not values:
        return None
    quartiles = len(values) >= _QUARTILES_FROM
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if quartiles else (min(values), 0, max(values))
    spread = "quartiles" if quartiles else "range"
    return Summary(statistics.fmean(values), statistics.median(values), low, high, spread, len(values))


def _quality(
    row: PlannedRow, dense: PlannedRow | None, found: Sequence[Mapping[str, Measurement]]
) -> dict[Metric, Figure]:
    """Summary of each metric over the runs, or the reason why there is none."""
    if row.resolved.config.model.random_weights:
        return dict.fromkeys(QUALITY, Missing("random weights: the video is meaningless"))
    if not row.resolved.config.decodes:
        return dict.fromkeys(QUALITY, Missing("the runs end in latents"))
    figures: dict[Metric, Figure] = {}
    for metric in QUALITY:
        measured = [metrics[metric] for metrics in found if metric in metrics]
        values = [one.value for one in measured if one.value is not None]
        reasons = [one.reason for one in measured if one.reason]
        if metric != "vbench" and row == dense:
            reasons = [REFERENCE]
        elif not reasons:
            reasons = [_not_measured(metric, dense, made=bool(found))]
        figures[metric] = summary(values) or Missing(reasons[0])
    return figures


def _not_measured(metric: Metric, dense: PlannedRow | None, *, made: bool) -> str:
    if not made:
        return "no run is complete"
    lacks_dense = dense is None and metric != "vbench"
    return "no dense row has the same size, frames, steps and model" if lacks_dense else "not measured"


def part_seconds(part: Part, report: Report) -> float | None:
    """Seconds of a part of one run; ``latency`` is text encoding, denoising and decoding, without writing the file.
    With random weights no text is encoded, and of a pipeline as diffusers runs it the time of attention is unknown."""
    seconds = report.seconds
    if part == "latency":
        return seconds.text_encoding + seconds.denoising + seconds.decoding
    if part == "text_encoding" and report.random_weights:
        return None
    if part == "decoding" and report.video.file is None:
        return None
    found: float | None = getattr(seconds, part)
    return found


def _seconds(part: Part, reports: list[Report]) -> Figure:
    if not reports:
        return Missing("no run is complete")
    values = [value for report in reports if (value := part_seconds(part, report)) is not None]
    return summary(values) or Missing(_WHY_NO_SECONDS[part])


_WHY_NO_SECONDS: dict[Part, str] = {
    "text_encoding": "no text is encoded",
    "decoding": "nothing is decoded",
    "attention": UNTIMED,
}


def _speed_ups(done: dict[int, Report], reference: PlannedRow | None, reports: Reports) -> SpeedUps:
    """Of the latency, of denoising and of attention, over the runs of another row."""
    name = None if reference is None else reference.row.name
    theirs = {index: reports[name, index] for index in done if name is not None and (name, index) in reports}
    return {part: _speed_up(part, done, theirs) for part in COMPARED_PARTS}


def _speed_up(part: Part, done: dict[int, Report], dense: dict[int, Report]) -> Ratio | Missing:
    """Median seconds of the dense runs over the median of the row's, over the prompts and seeds that both have."""
    if not dense:
        return Missing("no dense run to compare with" if done else "no run is complete")
    pairs = [(done[index], dense[index]) for index in dense]
    if any(_machine(ours) != _machine(theirs) for ours, theirs in pairs):
        return Missing("the dense runs are of another machine or other versions")
    if any(part_seconds(part, report) is None for pair in pairs for report in pair):
        return Missing(UNTIMED)
    own, full = (statistics.median(part_seconds(part, pair[side]) or 0.0 for pair in pairs) for side in (0, 1))
    if not own:
        return Missing(f"no time was spent on {part}")
    return Ratio(full / own, len(pairs))


def _machine(report: Report) -> tuple[Machine, Mapping[str, str]]:
    return report.machine, report.versions


def _phases(reports: list[Report]) -> dict[str, PhaseFigures]:
    """Typical seconds of a denoising step that was computed, and of its attention, by the phase of the step."""
    steps: dict[str, list[Step]] = defaultdict(list)
    for report in reports:
        for step in report.steps:
            steps[step.phase].append(step)
    figures = {}
    for phase, of_phase in steps.items():
        computed = [step for step in of_phase if not step.estimated]
        figures[phase] = PhaseFigures(
            len(of_phase), len(computed), seconds=typical_seconds(computed), attention=typical_attention(computed)
        )
    return figures


def _estimated(entries: Sequence[BenchRow]) -> str | None:
    """What every output says if steps of some run were not computed."""
    numbers = sorted({entry.estimated.steps_per_phase for entry in entries if entry.estimated})
    if not numbers:
        return None
    first = " or ".join(map(str, numbers))
    return (
        f"estimated: only steps at the beginning of each phase (steps_per_phase: {first}) and every search were "
        f"computed; each other step counts as the median of its phase"
    )


def _without_times(entry: BenchRow) -> BenchRow:
    """A row without times and speed-ups, the paper's too."""
    left_out = Missing(LEFT_OUT)
    over_diffusers = entry.speed_up_over_diffusers
    return dataclasses.replace(
        entry,
        runs=tuple(dataclasses.replace(run, seconds={}) for run in entry.runs),
        seconds=dict.fromkeys(PARTS, left_out),
        speed_up=dict.fromkeys(COMPARED_PARTS, left_out),
        speed_up_over_diffusers=over_diffusers and dict.fromkeys(COMPARED_PARTS, left_out),
        phases={
            phase: dataclasses.replace(figures, seconds=None, attention=None) for phase, figures in entry.phases.items()
        },
        paper=entry.paper and without_times(entry.paper),
    )


def _notes(entries: Sequence[BenchRow], machines: Sequence[Machine]) -> list[str]:
    """What a reader must know to read the figures right."""
    notes = []
    if len(machines) > 1:
        notes.append(f"The runs are of {len(machines)} different machines: compare times only within one.")
    complete, planned = (sum(count) for count in zip(*((len(e.runs), e.planned) for e in entries), strict=True))
    if complete < planned:
        notes.append(f"{complete} of {planned} runs are complete.")
    compiled = [entry.name for entry in entries if entry.settings["compile"]]
    if 0 < len(compiled) < len(entries):
        notes.append(f"Blocks ran through torch.compile in {', '.join(compiled)}; in the other rows they did not.")
    fp8 = [entry.name for entry in entries if entry.settings.get("linear") == "fp8"]
    if fp8:
        notes.append(f"Linear layers of the blocks multiplied in FP8 in {', '.join(fp8)}.")
    if any(entry.random_weights for entry in entries):
        notes.append(
            "With random weights attention is nearly uniform. Methods that decide by content (head-adaptive sparsity, "
            "minference, adacache and other caches) may take other times on real weights."
        )
    equal = [f"{entry.identical_frames} of {entry.name}" for entry in entries if entry.identical_frames]
    if equal:
        notes.append(f"Frames equal to the dense ones count as {PSNR_OF_EQUAL_FRAMES:.0f} dB: {', '.join(equal)}.")
    if any(isinstance(entry.quality["vbench"], Summary) for entry in entries):
        notes.append("VBench is the mean of its six dimensions for custom videos, not the total score of papers.")
    return notes
