"""The one place that turns errors into messages and exit codes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from adaspa_cli.console import Console
from adaspa_cli.errors import AdaspaError, RunError

INTERRUPTED = 130
KEPT = "interrupted; complete videos are kept, and --resume goes on where this stopped"


@contextlib.contextmanager
def guard(console: Console, interrupted: str = KEPT) -> Iterator[None]:
    """Run a command's body; 0 done, 1 failed while running, 2 wrong use, 130 interrupted.

    Args:
        interrupted: what to say after Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        console.note(interrupted)
        raise typer.Exit(INTERRUPTED) from None
    except AdaspaError as error:
        console.error(error)
        raise typer.Exit(error.exit_code) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        console.error(RunError(f"{type(error).__name__}: {text}", hint="--debug shows where it happened"))
        raise typer.Exit(RunError.exit_code) from None
