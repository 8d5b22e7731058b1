"""Errors that a user can act on, and their exit codes.

Every message says what was wrong, what was given, what is allowed; ``hint`` says what to try next.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class AdaspaError(Exception):
    """Base of all errors that are shown without a traceback. Exit code 1: failed while running."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(AdaspaError):
    """The request itself cannot be carried out: bad flag, file, size or name. Exit code 2."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting has no such name, the wrong type or an impossible value."""


class ReportError(ConfigError):
    """A file is not a readable report: damaged, foreign or of another format."""


class ModelError(UsageError):
    """A checkpoint is missing, gated, incomplete or of a family that adaspa does not know."""


class BackendError(UsageError):
    """The requested attention backend cannot run here."""


class MaskFileError(UsageError):
    """A mask file is corrupt, foreign, or doesn't fit the run."""


class OutputError(UsageError):
    """A result cannot be written to the requested place."""


class RunError(AdaspaError):
    """Something failed while running."""


class DiskFullError(RunError):
    """A result cannot be written because the disk is full."""


class OutOfMemoryError(RunError):
    """Not enough memory for the run. Exit code 2: smaller settings help."""

    exit_code = 2


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or an empty string."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def shortened(text: str, most: int = 80) -> str:
    """A text for a message or a line of progress: one line of at most ``most`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
