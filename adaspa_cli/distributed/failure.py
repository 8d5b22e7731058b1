"""Ends a process whose team fails: within seconds, whatever it waits for, with one line for all processes.

A signal reaches Python only between two instructions, and an exchange of tensors waits within one. So a thread hears of
signals too, and ends the process if it has not ended by itself after a moment.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

from adaspa_cli import interrupts
from adaspa_cli.errors import RunError

GRACE = 3.0  # seconds
_EVERY = 0.02  # seconds between looks whether SIGTERM came
_CODES = {signal.SIGTERM: 1, signal.SIGINT: 130}


class Ended(BaseException):
    """The launcher ends this process, because another one failed: there is nothing more to say."""


class Ending:
    """Handles SIGTERM: raises :class:`Ended` once at most, and nothing once this process ends by itself.

    A handler runs between any two instructions, also while an error is handled or said.
    """

    def __init__(self) -> None:
        self._told = self._begun = False

    def begin(self) -> None:
        """From now on this process ends by itself, and may have something to say: SIGTERM raises nothing."""
        self._begun = True

    def told(self, patience: float) -> bool:
        """Whether SIGTERM came, or comes within so many seconds."""
        until = time.monotonic() + patience
        while not self._told and time.monotonic() < until:
            time.sleep(_EVERY)
        return self._told

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        raises = not self._begun and not interrupts.pressed()  # after Ctrl-C it is ending already
        self._told = self._begun = True
        if raises:
            sys.unraisablehook = _without_ended
            raise Ended


class LostContactError(RunError):
    """Another process is gone, or has failed and says why."""

    def __init__(self) -> None:
        super().__init__(
            "lost contact with another process that computes this video", hint="--debug shows where it happened"
        )


def watch_signals(ending: Ending, interrupted: str) -> None:
    """From now on SIGTERM calls ``ending``, and it as well as SIGINT ends the process after a moment.

    Args:
        ending: raises :class:`Ended`.
        interrupted: what SIGINT then says, for the process could not.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, ending)
    threading.Thread(target=_listen, args=(ours, interrupted), daemon=True).start()


def _without_ended(unraisable: sys.UnraisableHookArgs) -> None:
    """Say nothing of the end in a destructor: the thread that listens ends the process."""
    if not issubclass(unraisable.exc_type, Ended):
        sys.__unraisablehook__(unraisable)


def _listen(signals: socket.socket, interrupted: str) -> None:
    while True:
        number = signals.recv(1)[0]
        if number in _CODES:
            time.sleep(GRACE)
            if number == signal.SIGINT:
                os.write(2, interrupted.encode())
            os._exit(_CODES[signal.Signals(number)])


def end_soon(code: int) -> None:
    """End this process in a moment if it has not ended by itself: leaving a group may wait for those that are gone."""
    timer = threading.Timer(2 * GRACE, os._exit, [code])
    timer.daemon = True
    timer.start()


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error is only the consequence of another process's failure."""
    import torch.distributed as dist

    if isinstance(error, LostContactError | dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(sign in text for sign in ("gloo", "NCCL", "Connection closed"))
