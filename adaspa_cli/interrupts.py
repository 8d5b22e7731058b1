"""Ctrl-C at any moment: exit code 130 and one line, from the first instruction to the last.

An exception alone does not do. Raised in the middle of an import, of a destructor or of a callback it is swallowed, or
comes out as another error: libraries catch everything there. Hence three phases. Before a run nothing needs to be put
right, so the process ends at once. During a run KeyboardInterrupt is raised, and raised again until it gets through,
so that half-written files are removed and what is complete is shown. At the end there is nothing left to interrupt.

Imports next to nothing: until the handler is there, Ctrl-C would be a traceback.
"""

from __future__ import annotations

import os
import signal
import sys

EXIT_CODE = 130
_AGAIN = 0.1  # seconds


class Interrupts:
    """Handles SIGINT, and the alarm after which a swallowed interrupt is raised again."""

    def __init__(self) -> None:
        self.pressed = False
        self._unwinds = self._over = False

    def install(self) -> None:
        """Take over SIGINT for the rest of the process, unless it was started to ignore it."""
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self)

    def __call__(self, _number: int, _frame: object) -> None:
        if self._over:
            return
        if not self._unwinds:
            _leave(b"interrupted; nothing was made\n")
        if not self.pressed:
            signal.signal(signal.SIGALRM, self)
            sys.unraisablehook = _without_interrupts
        self.pressed = True
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        if not _unwinding():
            raise KeyboardInterrupt

    def unwind(self) -> None:
        """From now on there may be something to put right: raise KeyboardInterrupt."""
        self._unwinds = True

    def over(self) -> None:
        """From now on there is nothing to stop: the process is about to end."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._over = True


def _current() -> Interrupts | None:
    """The handler of this process; None where a command is called from another program."""
    handler = signal.getsignal(signal.SIGINT)
    return handler if isinstance(handler, Interrupts) else None


def unwind() -> None:
    """From now on an interrupt unwinds the stack, instead of ending the process at once."""
    handler = _current()
    if handler is not None:
        handler.unwind()


def pressed() -> bool:
    """Whether the run was interrupted, whatever became of the exception."""
    handler = _current()
    return handler is not None and handler.pressed


def check() -> None:
    """Raise KeyboardInterrupt if one was swallowed."""
    if pressed():
        raise KeyboardInterrupt


def over() -> None:
    """From now on there is nothing to stop."""
    handler = _current()
    if handler is not None:
        handler.over()


def _leave(line: bytes) -> None:
    os.write(2, line)
    os._exit(EXIT_CODE)


def _unwinding() -> bool:
    """Whether the interrupt is on its way: cleaning up must not be interrupted."""
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _without_interrupts(unraisable: sys.UnraisableHookArgs) -> None:
    """Say nothing of an interrupt in a destructor: it is raised again."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
