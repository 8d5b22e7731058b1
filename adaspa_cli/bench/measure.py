"""Compares the videos of a bench with the dense ones; each result is a file beside its run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adaspa_cli.bench.plan import PlannedRow, reference_of, report_of
from adaspa_cli.bench.records import Quality, read_record
from adaspa_cli.files.claims import hold
from adaspa_cli.files.videos import read_frames
from adaspa_cli.files.whole import write_json
from adaspa_cli.jobs.places import lossless_path
from adaspa_cli.jobs.plan import Job
from adaspa_cli.models.loading import choose_device
from adaspa_cli.quality import vbench
from adaspa_cli.quality.measurement import Measurement
from adaspa_cli.quality.video_metrics import METRICS, VideoMetrics, import_torchmetrics
from adaspa_cli.report.machine import versions

Pair = tuple[Job, Job | None]  # a run, and the dense run of the same prompt and seed


def quality_path(job: Job) -> Path:
    """Where the measurements of a run are."""
    return job.place.with_name(f"{job.place.stem}.quality.json")


def check_metrics(rows: Sequence[PlannedRow]) -> None:
    """Refuse, before the first run is made, what would keep its videos from being measured.

    Raises:
        BackendError: torchmetrics cannot be imported.
    """
    if any(row.resolved.config.output.lossless for row in rows):
        import_torchmetrics()


def measure_bench(rows: Sequence[PlannedRow], note: Callable[[str], None]) -> None:
    """Measure every complete run that has a video and is not measured yet.

    What could not be measured is tried again the next time; what was measured is kept.

    Args:
        note: receives messages about the progress.
    """
    pairs = [pair for row in rows for pair in _pairs(row, list(rows))]
    _measure_against_dense(pairs, rows, note)
    _score(pairs, note)


def _pairs(row: PlannedRow, rows: list[PlannedRow]) -> list[Pair]:
    if not row.resolved.config.output.lossless:  # random weights, or no video
        return []
    reference = reference_of(row, rows)
    dense: Sequence[Job | None] = [None] * len(row.jobs) if reference is None else reference.jobs
    return [
        (job, other if other is not None and other.complete else None)
        for job, other in zip(row.jobs, dense, strict=True)
        if job.complete
    ]


def _measure_against_dense(pairs: list[Pair], rows: Sequence[PlannedRow], note: Callable[[str], None]) -> None:
    todo = [(job, dense) for job, dense in pairs if dense is not None and dense != job and _lacks(job, dense, METRICS)]
    if not todo:
        return
    metrics = VideoMetrics(choose_device(rows[0].resolved.config.model.device))
    reasons = {name: Measurement(None, reason) for name, reason in metrics.reasons.items()}
    for name, measurement in reasons.items():
        note(f"{name} is n/a: {measurement.reason}")
    for job, dense in todo:
        with hold(job.place.with_name(f".{job.place.stem}.quality.claim")):
            found, identical = reasons, None
            if _lacks(job, dense, [name for name in METRICS if name not in reasons]):  # nor was it measured meanwhile
                video, reference = (read_frames(lossless_path(run.place)) for run in (job, dense))
                found, identical = metrics.compare(video, reference), _identical(video, reference)
            _write(job, dense, found, identical_frames=identical)


def _identical(video: NDArray[np.uint8], reference: NDArray[np.uint8]) -> int:
    """Frames [F, H, W, 3] that do not differ: their PSNR is a convention."""
    same_shape = video.shape == reference.shape
    return int((video == reference).all(axis=(1, 2, 3)).sum()) if same_shape else 0


def _score(pairs: list[Pair], note: Callable[[str], None]) -> None:
    todo = [(job, dense) for job, dense in pairs if _lacks(job, dense, ("vbench",))]
    if not todo:
        return
    try:
        scores = vbench.score([job.place for job, _ in todo])
    except vbench.VBenchError as error:
        note(f"vbench is n/a: {error}")
        for job, dense in todo:
            _write(job, dense, {"vbench": Measurement(None, str(error))})
        return
    for (job, dense), dimensions in zip(todo, scores, strict=True):
        mean = Measurement(100 * statistics.mean(dimensions.values())) if dimensions else Measurement(None, "no score")
        _write(job, dense, {"vbench": mean}, vbench_dimensions=dimensions)


def _lacks(job: Job, dense: Job | None, names: Sequence[str]) -> bool:
    """Whether one of the metrics has no value of these two videos."""
    found = measurements(job, dense)
    return any(name not in found or found[name].value is None for name in names)


def measurements(job: Job, dense: Job | None) -> Mapping[str, Measurement]:
    """What was measured of these two videos, by metric; empty if nothing was, or of others."""
    quality = _quality(job, dense)
    return {} if quality is None else quality.metrics


def identical_frames(job: Job, dense: Job | None) -> int:
    """How many frames of these two videos do not differ."""
    quality = _quality(job, dense)
    return 0 if quality is None else quality.identical_frames or 0


def _quality(job: Job, dense: Job | None) -> Quality | None:
    """The run's file, if it is of these two videos."""
    quality = read_record(Quality, quality_path(job))
    if quality is None or quality.fingerprint != job.fingerprint:
        return None
    return quality if quality.reference_fingerprint == (dense and dense.fingerprint) else None


def _write(
    job: Job,
    dense: Job | None,
    found: Mapping[str, Measurement],
    *,
    identical_frames: int | None = None,
    vbench_dimensions: Mapping[str, float] | None = None,
) -> None:
    """Add measurements to a run's file; a value that is there is not replaced by a reason."""
    before = _quality(job, dense)
    metrics = dict(before.metrics) if before else {}
    for name, measurement in found.items():
        if name not in metrics or metrics[name].value is None:
            metrics[name] = measurement
    quality = Quality(
        fingerprint=job.fingerprint,
        reference_fingerprint=None if dense is None else dense.fingerprint,
        report=report_of(job).name,
        reference_report=None if dense is None else f"{dense.place.parent.name}/{report_of(dense).name}",
        versions=versions("torchmetrics", "stlpips-pytorch"),
        metrics=metrics,
        identical_frames=before.identical_frames if before and identical_frames is None else identical_frames,
        vbench_dimensions=before.vbench_dimensions if before and vbench_dimensions is None else vbench_dimensions,
    )
    write_json(quality_path(job), quality.as_json(), replace=True)
