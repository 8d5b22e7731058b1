"""``index.html`` of a folder: a contact sheet of its videos that filters and sorts in the browser."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from adaspa_cli.errors import OutputError
from adaspa_cli.files.claims import hold
from adaspa_cli.files.whole import cannot_write, clear_partial, write_text
from adaspa_cli.gallery.collect import Entry, collect
from adaspa_cli.gallery.poster import poster
from adaspa_cli.report.template import render

PAGE = "index.html"
_GENERATOR = "adaspa gallery"  # in the head of the page, by which it is known
_READ = 4000  # letters of a page in which that stands


@dataclass(frozen=True)
class Filter:
    """A choice by which a gallery can be narrowed: the key of a card's data, and its values."""

    key: str
    name: str
    values: Sequence[str]


def write_gallery(folder: Path, note: Callable[[str], None]) -> tuple[Path, int]:
    """Write or renew the gallery of a folder; returns its page, and the number of its videos.

    Several processes may do so at once: the last one shows what all have made.

    Args:
        note: is told of reports that cannot be read.

    Raises:
        UsageError: it is no folder, or no video is in it.
        OutputError: it cannot be written, or another page is there.
        DiskFullError: the disk is full.
    """
    page = folder / PAGE
    if not folder.is_dir():
        collect(folder, note)  # says what is wrong
    with hold(
        folder / ".gallery.claim", lambda: note("waiting for another process that is writing the gallery")
    ) as claim:
        _check_own(page)
        entries = collect(folder, note)
        if claim.exclusive:
            clear_partial(page)
        write_text(page, gallery(entries, folder), replace=True)
    return page, len(entries)


def _check_own(page: Path) -> None:
    """Refuse to replace a page that is no gallery."""
    try:
        with page.open(encoding="utf-8", errors="replace") as file:
            own = f'content="{_GENERATOR}"' in file.read(_READ)
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot_write(page, error) from error
    if not own:
        raise OutputError(
            f"{page} exists and was not made by adaspa gallery", hint="rename it, or choose another folder"
        )


def gallery(entries: Sequence[Entry], folder: Path) -> str:
    """The page as HTML; its links are relative to ``folder``."""
    reports = [entry.report for entry in entries if entry.report]
    choices = (
        Filter("model", "model", _values(report.model.name for report in reports)),
        Filter("method", "method", _values(str(report.setting("method")) for report in reports)),
        Filter("sparsity", "sparsity γ", _values(entry.sparsity for entry in entries)),
        Filter("seed", "seed", _values(str(report.seed) for report in reports)),
    )
    sorts = {"name": "name", "made": "newest first"} if reports else {"name": "name"}
    sorts |= {"seconds": "shortest time"} if reports else {}
    sorts |= {"speed": "speed-up"} if any(entry.speed_up for entry in entries) else {}
    sorts |= {"psnr": "PSNR"} if any(entry.psnr for entry in entries) else {}
    return render(
        Path(__file__).parent / "gallery.html.j2",
        generator=_GENERATOR,
        title=folder.resolve().name or "Videos",
        entries=entries,
        poster=_middle,
        missing=any(
            one.report and not one.report.dense and (one.speed_up is None or one.psnr is None) for one in entries
        ),
        link=lambda path: quote(os.fsencode(path.relative_to(folder).as_posix())),
        place=lambda path: path.relative_to(folder).as_posix(),
        filters=[choice for choice in choices if len(choice.values) > 1],
        sorts=sorts,
    )


def _middle(entry: Entry) -> str | None:
    """The frame in the middle of a video, or the first one where nothing says how long it is."""
    shown = None if entry.report is None else entry.report.video
    return poster(entry.video, shown.frames / 2 / shown.fps if shown and shown.fps else 0.0)


def _values(found: Iterable[str | None]) -> list[str]:
    """Each value once; numbers by size."""
    values = {value for value in found if value is not None}
    return sorted(values, key=lambda value: (0, float(value), "") if _is_number(value) else (1, 0.0, value))


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
