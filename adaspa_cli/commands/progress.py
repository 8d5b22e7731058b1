"""The progress of a run on the terminal: one bar over all prompts and steps, with the phase and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from rich.progress import Progress, TaskID

from adaspa_cli import interrupts
from adaspa_cli.console import Console
from adaspa_cli.errors import shortened

_EVERY = 30.0  # seconds between lines where no bar is seen


class ProgressObserver:
    """A :class:`~adaspa_cli.jobs.generate.JobObserver` that shows what it is told.

    Where no bar can be seen it writes a line for each video, and one now and then with the step and the time left.
    It also raises an interrupt that was swallowed in what it hears of.

    Args:
        clock: the time in seconds.
    """

    def __init__(self, console: Console, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._progress, self._clock = console, progress, clock
        self._task: TaskID = progress.add_task("loading", total=None, phase="")
        self._videos = 0
        self._place = ""
        self._said = clock()

    def loading(self, model: str) -> None:
        interrupts.check()
        self._progress.update(self._task, description=f"loading {model}")
        self._line(f"loading {model}")

    def note(self, line: str) -> None:
        self._console.note(line, wrap=True)

    def started(self, videos: int, steps: int, backend: str | None) -> None:
        self._videos = videos
        self._progress.reset(self._task, total=videos * steps)
        self._console.note(f"attention backend: {backend}" if backend else "attention by diffusers")

    def video(self, number: int, prompt: str, seed: int) -> None:
        interrupts.check()
        self._place = f"[{number + 1}/{self._videos}] " if self._videos > 1 else ""
        self._progress.update(self._task, description=f"{self._place}{shortened(prompt, 24)}", phase="text")
        self._line(f"{self._place}{shortened(prompt)} (seed {seed})")

    def phase(self, phase: str) -> None:
        self._progress.update(self._task, phase=phase)

    def step_done(self, step: int) -> None:  # noqa: ARG002
        interrupts.check()
        self._progress.advance(self._task)
        if self._clock() - self._said >= _EVERY:
            (task,) = self._progress.tasks
            left = "" if task.time_remaining is None else f", {timedelta(seconds=int(task.time_remaining))} left"
            self._line(f"{self._place}{int(task.completed)} of {int(task.total or 0)} steps{left}")

    def decoding(self) -> None:
        interrupts.check()
        self._progress.update(self._task, phase="decoding")

    def comparing(self, done: int, frames: int) -> None:
        interrupts.check()
        share = f"{done / frames:.0%}" if frames else ""
        self._progress.update(self._task, phase=f"compared {share}")
        if self._clock() - self._said >= _EVERY:
            self._line(f"{self._place}compared {share} of the frames with the other video")

    def skipped(self, video: Path) -> None:
        self._console.note(f"already complete: {video}")

    def elsewhere(self, video: Path) -> None:
        self._console.note(f"another process is making it: {video}")

    def _line(self, text: str) -> None:
        if not self._console.live:
            self._console.note(text)
            self._said = self._clock()


class RayProgress(ProgressObserver):
    """A :class:`~adaspa_cli.jobs.ray_run.RayObserver`: a bar over all videos, which advances at the end of each."""

    def workers(self, number: int, kind: str) -> None:
        self._console.note(f"{number} Ray workers, each with a {kind}; each loads the model for its first video")

    def started(self, videos: int, steps: int, backend: str | None) -> None:  # noqa: ARG002
        self._videos = videos
        self._progress.reset(self._task, total=videos * steps)

    def lost(self, video: Path) -> None:
        self._console.note(f"the worker that was making {video} died; another worker makes it again")


class BenchProgress(ProgressObserver):
    """A :class:`~adaspa_cli.bench.runner.BenchObserver`: one bar over all runs that are left."""

    def planned(self, runs: int, complete: int, steps: int) -> None:
        self._videos = runs
        self._progress.reset(self._task, total=steps)
        self._console.note(f"{runs} runs to make, {complete} are complete")

    def failed(self, row: str, reason: str) -> None:
        interrupts.check()
        self._console.note(f"failed: {row}: {reason}")


class SearchProgress(ProgressObserver):
    """A :class:`~adaspa_cli.jobs.search_masks.SearchObserver`."""

    def estimated(self, file_bytes: int, sums_bytes: int) -> None:
        sums = f", and {_size(sums_bytes)} of block sums on disk during the search" if sums_bytes else ""
        self._console.note(f"the masks will take about {_size(file_bytes)}{sums}")


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size / 10:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1e3:.1f} kB"
