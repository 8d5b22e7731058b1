"""Where the files of a video are: descriptive names without collisions, claimed before use."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from adaspa_cli.errors import ReportError
from adaspa_cli.files.claims import Claim, noted, take
from adaspa_cli.files.whole import PARTIAL
from adaspa_cli.report.schema import read_report


def video_name(prompt: str, seed: int) -> str:
    """A file name, without suffix, that says what the video shows."""
    ascii_text = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")[:60].strip("-")
    return f"{slug or 'video'}-seed{seed}"


def report_path(video: Path) -> Path:
    """The report that belongs to a video."""
    return video.with_name(f"{video.stem}.report.json")


def page_path(video: Path) -> Path:
    """The report as a page."""
    return video.with_name(f"{video.stem}.report.html")


def lossless_path(video: Path) -> Path:
    """The frames of a video as they were before compression."""
    return video.with_name(f"{video.stem}.lossless.mkv")


def latents_path(video: Path) -> Path:
    """The latents of a run that does not decode them."""
    return video.with_name(f"{video.stem}.latents.safetensors")


def claim_path(video: Path) -> Path:
    """What the process that makes a video holds meanwhile; it notes the fingerprint."""
    return video.with_name(f".{video.stem}.claim")


def find_place(
    folder: Path, name: str, fingerprint: str, *, resume: bool, taken: Collection[Path] = ()
) -> tuple[Path, bool]:
    """Find where a video goes: the first free name, or with ``resume`` a complete video of the same settings.

    With ``resume`` also the place of one that was begun with the same settings; nothing else is ever overwritten.

    Args:
        taken: places given to other videos of the same run.

    Returns:
        The video's path, and whether it is already complete.
    """
    for video in _numbered(folder, name):
        if video in taken:
            continue
        if resume and is_complete(video, fingerprint):
            return video, True
        if not _occupied(video) or (resume and noted(claim_path(video)) == fingerprint):
            later = _complete_later(folder, name, fingerprint, taken) if resume else None
            return (video, False) if later is None else (later, True)
    raise AssertionError("unreachable")


def _complete_later(folder: Path, name: str, fingerprint: str, taken: Collection[Path]) -> Path | None:
    """A complete video of the same settings under some other number: those before it may be gone by now."""
    reports = sorted(folder.glob(f"{name}-*.report.json"))
    videos = (path.with_name(f"{path.name.removesuffix('.report.json')}.mp4") for path in reports)
    return next((video for video in videos if video not in taken and is_complete(video, fingerprint)), None)


def is_complete(video: Path, fingerprint: str) -> bool:
    """Whether a video, or the latents that a run ended in, is there with a report of these settings.

    A report is written last, so what it names was whole.
    """
    try:
        report = read_report(report_path(video))
    except ReportError:
        return False
    made = ((video, report.video.file), (latents_path(video), report.latents))
    return report.fingerprint == fingerprint and all(path.exists() for path, name in made if name)


@dataclass(frozen=True)
class ClaimedPlace:
    """A place that this process holds; also a context manager.

    Attributes:
        video: the video's path, by which the others go.
        claim: what holds it.
        begun: whether a process died while it made the same here; what it left gives way.
    """

    video: Path
    claim: Claim
    begun: bool

    def is_free(self) -> bool:
        """Whether nothing is there that must not be overwritten."""
        return self.begun or not _occupied(self.video)

    def clear(self) -> None:
        """Remove what a process that died has left of the same video."""
        folder, stem = self.video.parent, self.video.stem
        partial = [path for pattern in (f"{stem}{PARTIAL}*", f"{stem}.*{PARTIAL}*") for path in folder.glob(pattern)]
        results = _results(self.video) if self.begun else ()
        for path in (*results, *partial):
            path.unlink(missing_ok=True)

    def give_back(self) -> None:
        """Give the place free; what another process began, and this one did not replace, can still be told by it."""
        if _occupied(self.video) and not report_path(self.video).exists():
            self.claim.put_back()
        else:
            self.claim.release()

    def __enter__(self) -> ClaimedPlace:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()


def claim_place(place: Path, name: str, fingerprint: str, *, resume: bool) -> ClaimedPlace | None:
    """Claim a place for a video, so that no other process makes it too or takes the name.

    Args:
        place: where it goes if that is still free; else the next number.
        name: of :func:`video_name`.
        resume: share the work with other processes.

    Returns:
        None, with ``resume``, if another process is making the same or has made it meanwhile.

    Raises:
        OutputError: the folder cannot be written.
        DiskFullError: the disk is full.
    """
    passed = False
    for video in _numbered(place.parent, name):
        if resume and is_complete(video, fingerprint):
            return None
        passed = passed or video == place
        begun = resume and noted(claim_path(video)) == fingerprint
        if not begun and (not passed or _occupied(video)):
            continue
        claim = take(claim_path(video), fingerprint)
        if claim is None:
            if resume and noted(claim_path(video)) == fingerprint:
                return None
            continue
        claimed = ClaimedPlace(video, claim, begun=resume and claim.left_over == fingerprint)
        if resume and is_complete(video, fingerprint):  # by the process that held it until now
            claim.release()
            return None
        if claimed.is_free():
            return claimed
        claimed.give_back()
    raise AssertionError("unreachable")


def _numbered(folder: Path, name: str) -> Iterator[Path]:
    """``name.mp4``, ``name-2.mp4``, ..."""
    number = 1
    while True:
        yield folder / (f"{name}.mp4" if number == 1 else f"{name}-{number}.mp4")
        number += 1


def _results(video: Path) -> tuple[Path, Path, Path]:
    return video, lossless_path(video), latents_path(video)


def _occupied(video: Path) -> bool:
    """Whether a place holds something that must not be overwritten; a page without its report gives way."""
    return any(path.exists() for path in (report_path(video), *_results(video)))
