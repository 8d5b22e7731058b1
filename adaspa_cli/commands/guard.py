"""The one place that turns errors into messages and exit codes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from adaspa_cli import interrupts
from adaspa_cli.console import Console
from adaspa_cli.distributed.failure import Ended
from adaspa_cli.errors import AdaspaError, RunError

KEPT = "interrupted; complete videos are kept, and the same command with --resume makes the others"


@contextlib.contextmanager
def guard(console: Console, interrupted: str = KEPT) -> Iterator[None]:
    """Run a command's body; 0 done, 1 failed while running, 2 wrong use, 130 interrupted.

    Args:
        interrupted: what to say after Ctrl-C.
    """
    try:
        yield
        interrupts.check()
    except (typer.Exit, typer.Abort):
        raise
    except Ended:  # on the way into or out of `member`
        raise typer.Exit(RunError.exit_code) from None
    except (Exception, KeyboardInterrupt) as error:
        raise typer.Exit(_told(console, error, interrupted)) from None
    finally:
        interrupts.over()


def _told(console: Console, error: Exception | KeyboardInterrupt, interrupted: str) -> int:
    """Say what ended the command; returns its exit code."""
    if isinstance(error, KeyboardInterrupt) or interrupts.pressed():  # an interrupted import may fail in any way
        interrupts.over()
        console.interrupted(interrupted)
        return interrupts.EXIT_CODE
    if not isinstance(error, AdaspaError):
        text = " ".join(str(error).split()) or type(error).__name__
        error = RunError(f"{type(error).__name__}: {text}", hint="--debug shows where it happened")
    console.error(error)
    return error.exit_code
