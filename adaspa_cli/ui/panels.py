"""The parts of the page that are ours: progress, results and errors as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaspa_cli.report.template import render
from adaspa_cli.report.words import pace, sparsity_words, why_slower
from adaspa_cli.ui.progress import Progress

if TYPE_CHECKING:
    from adaspa_cli.jobs.write import Made
    from adaspa_cli.ui.studio import Run

FILES = "/made"  # where videos and pages are served
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Shown:
    """A video of the result.

    Attributes:
        label: its method.
        figures: what it cost, by name.
    """

    label: str
    video: str
    name: str
    figures: dict[str, str]


def idle() -> str:
    """Before the first run."""
    return render(_HERE / "idle.html.j2")


def words_panel(words: Mapping[str, Sequence[str]]) -> str:
    """What a small model knows."""
    return render(_HERE / "words.html.j2", words=words)


def progress_panel(progress: Progress) -> str:
    """How far a run is."""
    from adaspa_cli.report.page import PHASES

    left = progress.left()
    return render(
        _HERE / "progress.html.j2",
        progress=progress,
        colours=PHASES,
        left=None if left is None or progress.doing != "denoising" else duration(left),
    )


def result_panel(run: Run) -> str:
    """What a run has made, or why it has made nothing."""
    dense = run.made[0] if len(run.made) > 1 else None
    shown = [_shown(made, dense if made is not dense else None) for made in run.made if made.video is not None]
    return render(
        _HERE / "result.html.j2",
        videos=[] if run.error else shown[::-1],
        error=run.error,
        notes=run.progress.notes,
        again=run.progress.again,
    )


def report_panel(run: Run) -> str:
    """The page of the report, within this one."""
    if run.page is None:
        return ""
    return render(_HERE / "report.html.j2", page=f"{FILES}/{page_name(run)}")


def page_name(run: Run) -> str:
    """Under which the page of a run is served."""
    from adaspa_cli.jobs.places import page_path

    return page_path(run.made[-1].place).name


def _shown(made: Made, dense: Made | None) -> Shown:
    report, seconds = made.report, made.report.seconds
    figures = {"denoising": duration(seconds.denoising), "total": duration(seconds.total)}
    if report.density is not None:
        figures["density"] = f"{report.density:.1%}"
    if dense is not None and seconds.denoising:
        why = why_slower(report, dense.report)
        figures["compared with dense"] = pace(seconds.denoising, dense.report.seconds.denoising) + f" ({why})" * bool(
            why
        )
    method, sparsity = report.setting("method"), sparsity_words(report, "{:g}".format)
    label = str(method) if sparsity is None else f"{method}, γ {sparsity}"
    return Shown(label, f"{FILES}/{made.place.name}", made.place.name, figures)


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
