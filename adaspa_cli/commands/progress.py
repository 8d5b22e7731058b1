"""How a run looks on the terminal: one bar over all prompts and steps, with the phase and the time left."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress, TaskID

from adaspa_cli.console import Console
from adaspa_cli.masks import Action


class ProgressObserver:
    """An :class:`~adaspa_cli.jobs.generate.JobObserver` that shows what it is told."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._progress = console, progress
        self._task: TaskID = progress.add_task("loading", total=None, phase="")
        self._videos = 0

    def loading(self, model: str) -> None:
        self._progress.update(self._task, description=f"loading {model}")

    def started(self, videos: int, steps: int, backend: str | None) -> None:
        self._videos = videos
        self._progress.reset(self._task, total=videos * steps)
        self._console.note(f"attention backend: {backend}" if backend else "attention as diffusers has it")

    def video(self, number: int, prompt: str, seed: int) -> None:
        short = prompt if len(prompt) <= 24 else prompt[:23] + "…"
        place = f"[{number + 1}/{self._videos}] " if self._videos > 1 else ""
        self._progress.update(self._task, description=f"{place}{short}", phase="text")
        if self._progress.disable:
            self._console.note(f"{place}{prompt} (seed {seed})")

    def action(self, action: Action) -> None:
        self._progress.update(self._task, phase=action.value)

    def step_done(self, step: int) -> None:  # noqa: ARG002
        self._progress.advance(self._task)

    def decoding(self) -> None:
        self._progress.update(self._task, phase="decoding")

    def skipped(self, video: Path) -> None:
        self._console.note(f"complete already: {video}")

    def elsewhere(self, video: Path) -> None:
        self._console.note(f"another process is making it: {video}")


class BenchProgress(ProgressObserver):
    """A :class:`~adaspa_cli.bench.runner.BenchObserver`: one bar over all runs that are left."""

    def planned(self, runs: int, complete: int, steps: int) -> None:
        self._videos = runs
        self._progress.reset(self._task, total=steps)
        self._console.note(f"{runs} runs to make, {complete} are complete")

    def failed(self, row: str, reason: str) -> None:
        self._console.note(f"failed: {row}: {reason}")


class SearchProgress(ProgressObserver):
    """A :class:`~adaspa_cli.jobs.search_masks.SearchObserver`."""

    def estimated(self, file_bytes: int, sums_bytes: int) -> None:
        sums = f", and {_size(sums_bytes)} of block sums beside it until the search is over" if sums_bytes else ""
        self._console.note(f"the masks will take about {_size(file_bytes)}{sums}")


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size / 10:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1e3:.1f} kB"
