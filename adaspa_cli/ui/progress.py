"""How far a run is, as the page shows it; told by the run, read by another thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from adaspa_cli.errors import AdaspaError


class StoppedError(AdaspaError):
    """The user pressed *Stop*, closed the page or ended the program."""

    def __init__(self) -> None:
        super().__init__("stopped")


@dataclass
class Progress:
    """A :class:`~adaspa_cli.jobs.generate.JobObserver` that keeps what it is told.

    It also ends the run, from within, once it is stopped.

    Attributes:
        what: which video of the run is made, where there are two.
        doing: what is going on, in words.
        current: phase of the step that is going on.
        phases: of the steps that are done.
        steps: of the video.
        notes: what is worth knowing, a line each.
        again: whether the video was there already.
        clock: the time in seconds.
    """

    what: str = ""
    doing: str = "waiting for the video before this one"
    current: str = ""
    phases: list[str] = field(default_factory=list)
    steps: int = 0
    notes: list[str] = field(default_factory=list)
    again: bool = False
    clock: Callable[[], float] = time.monotonic
    _begun: float | None = None
    _last: float | None = None
    _stopped: Event = field(default_factory=Event)

    def begin(self, what: str = "") -> None:
        """Another video of the same run."""
        self.what, self.doing, self.current, self.phases, self.steps, self.again = what, "starting", "", [], 0, False
        self._begun = self._last = None
        self.check()

    def note(self, line: str) -> None:
        """Something worth knowing."""
        if line not in self.notes:
            self.notes.append(line)

    def stop(self) -> None:
        """Let the run end at its next step."""
        self._stopped.set()

    def check(self) -> None:
        """Raise StoppedError if it is to end."""
        if self._stopped.is_set():
            raise StoppedError

    def left(self) -> float | None:
        """Seconds until the last step is done, by the steps so far; None before the first."""
        begun, last, done = self._begun, self._last, len(self.phases)  # the run may go on to another video meanwhile
        if begun is None or last is None or not done:
            return None
        at_last = (last - begun) / done * (self.steps - done)
        return max(0.0, at_last - (self.clock() - last))

    def loading(self, model: str) -> None:
        self.check()
        self.doing = f"loading {model}"

    def started(self, videos: int, steps: int, backend: str | None) -> None:  # noqa: ARG002
        self.check()
        self.steps = steps

    def video(self, number: int, prompt: str, seed: int) -> None:  # noqa: ARG002
        self.check()
        self.doing, self.current, self._begun = "reading the prompt", "", self.clock()

    def phase(self, phase: str) -> None:
        self.doing, self.current = "denoising", phase

    def step_done(self, step: int) -> None:  # noqa: ARG002
        self.phases.append(self.current)
        self._last = self.clock()
        self.check()

    def decoding(self) -> None:
        self.doing = "decoding"
        self.check()

    def comparing(self, done: int, frames: int) -> None:
        self.check()
        self.doing = f"comparing with the dense video, {done} of {frames} frames"

    def skipped(self, video: Path) -> None:  # noqa: ARG002
        self.again = True

    def elsewhere(self, video: Path) -> None:
        self.note(f"another process is making it: {video}")
