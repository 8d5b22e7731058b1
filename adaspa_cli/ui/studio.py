"""Makes the videos of the page, one at a time, in a thread of its own, by the code that ``adaspa generate`` runs.

The pipeline stays loaded between videos; methods are attached to it and come off again.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from adaspa_cli.errors import AdaspaError, RunError, UsageError
from adaspa_cli.ui.form import DENSE, Start, Wanted
from adaspa_cli.ui.progress import Progress, StoppedError

if TYPE_CHECKING:
    from adaspa_cli.config import ModelConfig, Resolved
    from adaspa_cli.jobs.write import Made

_KEPT = 20  # runs, whose pages are in memory
_LOOK = 0.1  # seconds between two looks at how far a run is
_PATIENCE = 0.5  # seconds that a run has to end when the program does


@dataclass
class Run:
    """One press of the button.

    Attributes:
        wanted: what to make; None where the form was of no use.
        progress: how far it is.
        made: the video; the dense one comes before it.
        page: HTML of its report.
        error: what ended it early.
    """

    wanted: Wanted | None
    progress: Progress = field(default_factory=Progress)
    made: list[Made] = field(default_factory=list)
    page: str | None = None
    error: AdaspaError | None = None
    _over: Event = field(default_factory=Event)

    def follow(self) -> Iterator[Progress]:
        """Its progress again and again, until it is over."""
        while self.wanted is not None and not self._over.wait(_LOOK):
            yield self.progress

    def end(self, error: AdaspaError | None = None) -> None:
        """It is over."""
        self.error = error
        self._over.set()

    def wait(self, seconds: float) -> None:
        """Wait until it is over, but not for longer."""
        self._over.wait(seconds)


class Studio:
    """Takes runs, and makes them in turn.

    Args:
        start: what the command line gave.
        failed: is told of each error, from within its handler.

    Attributes:
        at_work: the run that is made now.
        done: those that came to their end, the last one last; older ones are forgotten.
    """

    def __init__(self, start: Start, failed: Callable[[AdaspaError], None]) -> None:
        self._start, self._failed = start, failed
        self._waiting: Queue[Run] = Queue()
        self.at_work: Run | None = None
        self.done: deque[Run] = deque(maxlen=_KEPT)
        self._loaded: tuple[ModelConfig, bool] | None = None
        self._only_fp8 = False
        self._pipe: Any = None
        Thread(target=self._work, name="adaspa studio", daemon=True).start()

    def begin(self, wanted: Wanted) -> Run:
        """Take a run; it is made once those before it are."""
        run = Run(wanted)
        self._waiting.put(run)
        return run

    def stop(self, run: Run) -> None:
        """End a run: at its next step, or at once if its turn has not come."""
        run.progress.stop()
        if self.at_work is not run:
            run.end(StoppedError())

    def close(self) -> None:
        """End the run that is at work, if it ends soon."""
        run = self.at_work
        if run is not None:
            run.progress.stop()
            run.wait(_PATIENCE)

    def _work(self) -> None:
        while True:
            run = self.at_work = self._waiting.get()
            try:
                self._make(run)
            except StoppedError as error:
                run.end(error)
            except AdaspaError as error:
                self._failed(error)
                run.end(error)
            except Exception as error:
                self._forget()  # nobody knows what state it is in
                text = " ".join(str(error).split()) or type(error).__name__
                shown = RunError(f"{type(error).__name__}: {text}", hint="adaspa ui --debug shows where it happened")
                self._failed(shown)
                run.end(shown)
            else:
                self.done.append(run)
                run.end()
            self.at_work = None

    def _make(self, run: Run) -> None:
        from adaspa_cli.config.vocabulary import check_understood
        from adaspa_cli.report.compare import Compared
        from adaspa_cli.report.page import page

        wanted, dense = run.wanted, None
        assert wanted is not None
        for line in check_understood(self._start.run(wanted).config, [wanted.prompt]):
            run.progress.note(line)
        if wanted.compare and wanted.method != DENSE:
            run.progress.begin("dense video")
            dense = self._video(self._start.run(wanted, dense=True), run)
        compare_with = None if dense is None else _report_of(dense.place)
        run.progress.begin()
        made = self._video(self._start.run(wanted, compare_with=compare_with), run)
        compared = None if dense is None else Compared(dense.report, dense.video)
        run.page = page(made.report, made.video, compared)

    def _video(self, resolved: Resolved, run: Run) -> Made:
        """Make a video, or find it."""
        from adaspa_cli.jobs.early import check_early
        from adaspa_cli.jobs.generate import generate

        config = resolved.config
        prompts = check_early(run.progress.note, resolved, config.output.out)
        made = list(generate(resolved, run.progress, prompts, load=self._load))
        if not made:
            raise UsageError("another process is making this video", hint="try again once it is done")
        run.made += made
        return made[0]

    def _load(self, config: ModelConfig, *, decode: bool, linear: str) -> Any:
        """The pipeline: the one that is loaded, if it is the same. What was loaded for FP8 alone is completed once
        another run needs it, and then serves both."""
        from adaspa_cli.models.loading import choose_device, load_pipeline

        if self._loaded != (config, decode):
            self._forget()
            self._pipe = load_pipeline(config, decode=decode, linear=linear)
            self._loaded, self._only_fp8 = (config, decode), linear == "fp8" and config.offload == "none"
        elif self._only_fp8 and linear != "fp8":
            self._pipe.to(choose_device(config.device))
            self._only_fp8 = False
        return self._pipe

    def _forget(self) -> None:
        """Make room for another pipeline."""
        import torch

        self._loaded = self._pipe = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _report_of(video: Path) -> str:
    from adaspa_cli.jobs.places import report_path

    return str(report_path(video))
