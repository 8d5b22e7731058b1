"""Every prompt with every seed through one pipeline: a video and a report each, written whole."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from adaspa_cli.config import GenerateConfig, Resolved
from adaspa_cli.config.architecture import random_weights_note
from adaspa_cli.files.folders import prepare_folder
from adaspa_cli.files.videos import write_lossless, write_video
from adaspa_cli.files.whole import write_json, write_text
from adaspa_cli.jobs.places import find_place, lossless_path, page_path, report_path, video_name
from adaspa_cli.jobs.plan import Job, plan
from adaspa_cli.jobs.prompts import collect_prompts
from adaspa_cli.maskfiles.check import check_name
from adaspa_cli.maskfiles.registry import open_masks
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.report.latency import latency_report
from adaspa_cli.report.page import page
from adaspa_cli.sampling.memory import memory_errors
from adaspa_cli.sampling.run import Observer, RunResult, Session, session


class JobObserver(Observer, Protocol):
    """Is told how jobs go on."""

    def skipped(self, video: Path) -> None: ...


def generate(
    resolved: Resolved, observer: JobObserver, prompts: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Make the videos of a run, and yield the report of each as it is complete (also of those skipped).

    Args:
        prompts: what :func:`collect_prompts` gave, if it was called before: a pipe can be read only once.

    Raises:
        AdaspaError: see :func:`~adaspa_cli.jobs.plan.plan`, :func:`~adaspa_cli.models.loading.load_pipeline`, and
            below.
        RunError: the model made numbers that are no picture.
        OutOfMemoryError: the device's memory does not suffice.
    """
    jobs = plan(resolved, collect_prompts(resolved.config.prompts) if prompts is None else prompts)
    todo = [job for job in jobs if not job.complete]
    for job in jobs:
        if job.complete:
            observer.skipped(job.place)
            yield json.loads(report_path(job.place).read_text(encoding="utf-8"))
    if not todo:
        return
    config = resolved.config
    _check_masks(config)
    observer.loading(config.model.source)
    with memory_errors(config.model.offload):
        pipe = load_pipeline(config.model, decode=config.decodes)
        with session(pipe, resolved, observer) as at_work:
            observer.started(len(todo), config.sampling.steps, at_work.handle.backend)
            for number, job in enumerate(todo):
                observer.video(number, job.prompt, job.seed)
                yield make(at_work, job)


def _check_masks(config: GenerateConfig) -> None:
    """Read the whole mask file, if there is one, before anything slow begins; raises MaskFileError."""
    masks = open_masks(config.method)
    if masks is not None:
        check_name(masks, config.model)
        for _ in masks.verify():
            pass


def make(at_work: Session, job: Job) -> dict[str, Any]:
    """Make one video, write it and its report; return the report.

    Raises:
        AdaspaError: see :meth:`~adaspa_cli.sampling.run.Session.run`.
        OutputError: a file cannot be written.
    """
    prepare_folder(str(job.place.parent))
    return _write(at_work.run(job.prompt, job.seed), job)


def _write(result: RunResult, job: Job) -> dict[str, Any]:
    """Write the files of a video, the report last: what has a report is complete."""
    config = result.session.resolved.config
    begin = time.perf_counter()
    # The place that was free when the run was planned may be taken by another process by now.
    place, _ = find_place(job.place.parent, video_name(job.prompt, job.seed), job.fingerprint, resume=False)
    video = None if result.frames is None else place
    if result.frames is not None:
        write_video(place, result.frames, config.sampling.fps, random_weights_note(config.model))
        if config.output.lossless:
            write_lossless(lossless_path(place), result.frames, config.sampling.fps)
    writing = time.perf_counter() - begin
    report = latency_report(result, video=video, fingerprint=job.fingerprint, writing=writing)
    # A report that was left without its JSON is of no complete video: its page gives way.
    write_text(page_path(place), page(report, video, job.compared), replace=True)
    write_json(report_path(place), report)
    return report
