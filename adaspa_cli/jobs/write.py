"""Writes the files of a run: the video or its latents, the page, and last the report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from adaspa_cli.config.architecture import random_weights_note
from adaspa_cli.files.videos import write_lossless, write_video
from adaspa_cli.files.whole import cannot_write, whole_file, write_json, write_text
from adaspa_cli.jobs.places import ClaimedPlace, latents_path, lossless_path, page_path, report_path
from adaspa_cli.jobs.plan import Job
from adaspa_cli.quality.by_frame import Comparing, silent
from adaspa_cli.report.compare import Compared
from adaspa_cli.report.difference import measure_difference, speed_up
from adaspa_cli.report.latency import latency_report
from adaspa_cli.report.page import page
from adaspa_cli.report.schema import ComparedRun, Report, read_report
from adaspa_cli.sampling.run import RunResult


@dataclass(frozen=True)
class Made:
    """A video that is there, with its report.

    Attributes:
        report: its report.
        place: the path of the video, by which its other files go.
    """

    report: Report
    place: Path

    @property
    def video(self) -> Path | None:
        """The video; None if the run ended in latents."""
        return self.place if self.report.video.file else None

    @property
    def result(self) -> Path:
        """What a user wants to see first: the video, else its latents, else the report."""
        if self.video is not None:
            return self.video
        return latents_path(self.place) if self.report.latents else report_path(self.place)


def write_result(result: RunResult, job: Job, claimed: ClaimedPlace, comparing: Comparing = silent) -> Made:
    """Write the files of a video; after an error none of them is left.

    Args:
        comparing: what it raises ends the writing.

    Raises:
        OutputError: a file cannot be written.
        DiskFullError: the disk is full.
    """
    with _all_or_none(claimed) as written:
        return Made(_write(result, job, claimed.video, written, comparing), claimed.video)


def write_files(
    report: Report, files: Mapping[str, bytes], job: Job, claimed: ClaimedPlace, comparing: Comparing = silent
) -> Made:
    """Write what was made elsewhere under the same name; after an error none of it is left.

    Args:
        report: of the video.
        files: its other files, by name.
        comparing: what it raises ends the writing.

    Raises:
        OutputError: a file cannot be written.
        DiskFullError: the disk is full.
    """
    made = Made(report, claimed.video)
    with _all_or_none(claimed) as written:
        for name, content in files.items():
            path = claimed.video.with_name(name)
            try:
                with whole_file(path) as partial:
                    partial.write_bytes(content)
            except OSError as error:
                raise cannot_write(path, error) from error
            written.append(path)
        return Made(_finish(report, job, claimed.video, made.video, written, comparing), claimed.video)


@contextmanager
def _all_or_none(claimed: ClaimedPlace) -> Iterator[list[Path]]:
    """Yields a list of the files that are there, which are removed if the block fails."""
    claimed.clear()
    written: list[Path] = []
    try:
        yield written
    except BaseException:  # Ctrl-C too must not leave a video without its report
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _finish(
    report: Report, job: Job, place: Path, video: Path | None, written: list[Path], comparing: Comparing
) -> Report:
    """Compare the video if it is to be compared, write the page and, as the last, the report; returns the report."""
    if job.compared is not None:
        report = dataclasses.replace(report, compared=_difference(report, job.compared, video, comparing))
    # A page that was left without its report is of no complete video, and gives way.
    write_text(page_path(place), page(report, video, job.compared), replace=True)
    written.append(page_path(place))
    write_json(report_path(place), report.as_json())
    return report


def complete(job: Job, comparing: Comparing = silent) -> Made:
    """A video that is there; if it is to be compared, its page and report are replaced by ones that show that.

    Args:
        comparing: what it raises ends the comparison.

    Raises:
        ReportError: its report cannot be read.
        OutputError: a file cannot be written.
        DiskFullError: the disk is full.
    """
    made = Made(read_report(report_path(job.place)), job.place)
    if job.compared is None or _shows(made.report, job.compared):
        return made
    report = dataclasses.replace(made.report, compared=_difference(made.report, job.compared, made.video, comparing))
    write_text(page_path(job.place), page(report, made.video, job.compared), replace=True)
    write_json(report_path(job.place), report.as_json(), replace=True)
    return dataclasses.replace(made, report=report)


def _shows(report: Report, compared: Compared) -> bool:
    """Whether a report has the comparison with that run: no two runs take the same time."""
    shown = report.compared
    return shown is not None and shown.reason is None and shown.speed_up == speed_up(report, compared.report)


def _difference(report: Report, compared: Compared, video: Path | None, comparing: Comparing) -> ComparedRun:
    """Of the frames before compression if both runs have kept them, else of the videos."""
    if video is None or compared.video is None:
        return measure_difference(report, compared, None, lossless=False)
    kept = lossless_path(video), lossless_path(compared.video)
    lossless = all(path.is_file() for path in kept)
    files = kept if lossless else (video, compared.video)
    return measure_difference(report, compared, files, lossless=lossless, comparing=comparing)


def _write(result: RunResult, job: Job, place: Path, written: list[Path], comparing: Comparing) -> Report:
    """Write the files; ``written`` grows by each that is there."""
    config = result.session.resolved.config
    begin = time.perf_counter()
    video = latents = None
    if result.frames is not None:
        video = place
        write_video(video, result.frames, config.sampling.fps, random_weights_note(config.model))
        written.append(video)
        if config.output.lossless:
            write_lossless(lossless_path(place), result.frames, config.sampling.fps)
            written.append(lossless_path(place))
    elif not config.model.random_weights:  # those have no latents worth keeping
        latents = latents_path(place)
        write_latents(latents, result, job.fingerprint)
        written.append(latents)
    writing = time.perf_counter() - begin
    report = latency_report(result, video=video, latents=latents, fingerprint=job.fingerprint, writing=writing)
    return _finish(report, job, place, video, written, comparing)


def write_latents(path: Path, result: RunResult, fingerprint: str) -> None:
    """Write the latents of a run as the tensor ``latents``, with what they were made of as metadata.

    Raises:
        OutputError: the file cannot be written.
        DiskFullError: the disk is full.
    """
    assert result.latents is not None
    facts = {"format": "1", "kind": "adaspa latents", "fingerprint": fingerprint}
    facts |= {"model": result.session.resolved.config.model.model, "prompt": result.prompt, "seed": str(result.seed)}
    try:
        with whole_file(path) as partial:
            save_file({"latents": result.latents.cpu().contiguous()}, partial, facts)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
