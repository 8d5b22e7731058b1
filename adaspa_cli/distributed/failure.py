"""Ends a process whose team fails: within seconds, whatever it waits for, with one line for all processes.

A signal reaches Python only between two instructions, and an exchange of tensors waits within one. So a thread hears of
signals too, and ends the process if it has not ended by itself after a moment.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from types import FrameType

from adaspa_cli import interrupts
from adaspa_cli.errors import RunError

GRACE = 3.0  # seconds
_CODES = {signal.SIGTERM: 1, signal.SIGINT: 130}


class Ended(BaseException):
    """The launcher ends this process, because another one failed: there is nothing more to say."""


class LostContactError(RunError):
    """Another process is gone, or has failed and says why."""

    def __init__(self) -> None:
        super().__init__(
            "lost contact with another process that computes this video", hint="--debug shows where it happened"
        )


def watch_signals(interrupted: str) -> None:
    """From now on SIGTERM raises :class:`Ended`, and it as well as SIGINT ends the process after a moment.

    Args:
        interrupted: what SIGINT then says, for the process could not.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_listen, args=(ours, interrupted), daemon=True).start()


def _end(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not interrupts.pressed():  # it is ending already, and may have something to say
        raise Ended


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
