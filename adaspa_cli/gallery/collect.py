"""The videos of a folder, with what their reports say of them; imports nothing heavy."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adaspa_cli.bench.records import Quality, read_record
from adaspa_cli.config.flat import keys_of
from adaspa_cli.config.parallel import ParallelConfig
from adaspa_cli.config.schema import ModelConfig, SamplingConfig
from adaspa_cli.errors import OutputError, ReportError, UsageError
from adaspa_cli.files.whole import PARTIAL
from adaspa_cli.jobs.places import page_path, report_path
from adaspa_cli.report.schema import Report, read_report
from adaspa_cli.report.words import sparsity_words

_NO_METHOD = (ModelConfig, SamplingConfig, ParallelConfig)
_OF_EXCHANGES = {"head_deal", "collective_timeout"}  # a dense run has no use for them
VIDEOS = (".mp4", ".webm", ".m4v", ".mov")


@dataclass(frozen=True)
class Entry:
    """A video of a gallery.

    Attributes:
        video: its file.
        page: its page; None without one.
        report: its report; None without one that can be read.
        speed_up: total time of the dense run of the same video over its own; None where that is not known.
        psnr: of the video against the dense one, in dB; None where that is not known.
    """

    video: Path
    page: Path | None = None
    report: Report | None = None
    speed_up: float | None = None
    psnr: float | None = None

    @property
    def sparsity(self) -> str | None:
        """Share of the video's blocks that was to be left out, as a text; None where nothing says so."""
        return None if self.report is None else sparsity_words(self.report, "{:g}".format)


def collect(folder: Path, note: Callable[[str], None]) -> list[Entry]:
    """All videos in a folder and below it, by path; hidden folders and files, and lossless copies, are passed over.

    Args:
        note: is told of reports and subfolders that cannot be read.

    Raises:
        UsageError: it is no folder, or no video is in it.
        OutputError: it cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="name a folder of videos, for example adaspa gallery videos")
    entries = [_entry(video, note) for video in sorted(_videos(folder, note))]
    if not entries:
        raise UsageError(
            f"no videos in {folder}", hint=f"a gallery shows files ending in {', '.join(VIDEOS)}, also in subfolders"
        )
    return _with_dense(entries)


def _videos(folder: Path, note: Callable[[str], None]) -> Iterator[Path]:
    def refuse_or_note(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise OutputError(f"cannot read the folder {folder}: {error.strerror}") from error
        note(f"cannot read the folder {error.filename}: {error.strerror}; its videos are left out")

    for parent, folders, files in os.walk(folder, onerror=refuse_or_note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(VIDEOS) and not name.startswith(".") and PARTIAL not in name:
                yield Path(parent, name)


def _entry(video: Path, note: Callable[[str], None]) -> Entry:
    report_file, page = report_path(video), page_path(video)
    quality_file = video.with_name(f"{video.stem}.quality.json")
    report = None
    if report_file.exists():
        try:
            report = read_report(report_file)
        except ReportError as error:
            note(f"{error.message}; its video is listed by file name")
    entry = Entry(video, page if page.exists() else None, report)
    if report is None:
        return entry
    quality = read_record(Quality, quality_file) if quality_file.exists() else None
    if quality is not None and quality.fingerprint == report.fingerprint and "psnr" in quality.metrics:
        entry = dataclasses.replace(entry, psnr=quality.metrics["psnr"].value)
    compared = report.compared
    if compared is not None and compared.dense:
        return dataclasses.replace(entry, speed_up=compared.speed_up, psnr=compared.mean("psnr"))
    return entry


def _with_dense(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, with speed-ups over those among them that are dense runs of the same video on the same machine."""
    dense = {_same(one.report): one.report.seconds.total for one in entries if one.report and one.report.dense}

    def with_speed_up(entry: Entry) -> Entry:
        report = entry.report
        if report is None or report.dense or entry.speed_up is not None or not report.seconds.total:
            return entry
        seconds = dense.get(_same(report))
        return entry if seconds is None else dataclasses.replace(entry, speed_up=seconds / report.seconds.total)

    return [with_speed_up(entry) for entry in entries]


def _same(report: Report) -> tuple[object, ...]:
    """What two runs must share for their times to be compared: all but the method."""
    video = report.video
    keys = sorted({key for section in _NO_METHOD for key in keys_of(section)} - _OF_EXCHANGES | {"linear"})
    return (
        *(report.model.name, report.prompt, report.seed, len(report.steps), report.machine.line()),
        *(video.frames, video.height, video.width),
        *(repr(report.setting(key)) for key in keys if key != "seed"),
    )
