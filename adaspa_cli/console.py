"""The only place that prints: results on stdout (text or JSON), progress and messages on stderr."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import rich.console
from rich.console import RenderableType
from rich.progress import Progress

from adaspa_cli import interrupts
from adaspa_cli.errors import AdaspaError, RunError, shortened
from adaspa_cli.progress_bar import columns

_NARROW, _WIDEST = 100, 10_000  # columns
_PLAIN: Any = {"highlight": False, "markup": False, "emoji": False}  # "LoRA a:x: ..." and "[row]" are what they are
_MOST = 500  # letters of an error: it may quote what was given, which may be anything


class _Messages(rich.console.Console):
    """stderr; a run may outlive its reader."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _discard(sys.stderr)


class Console:
    """Prints for one command."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        self.as_json, self.quiet, self.debug = as_json, quiet, debug
        self._delivered = False
        # Nothing is cut to the width of a narrow terminal, which wraps lines itself, or where there is none.
        self._out = rich.console.Console(**_PLAIN)
        self._out.width = max(self._out.width, _NARROW) if sys.stdout.isatty() else _WIDEST
        self._err = _Messages(stderr=True, **_PLAIN)

    @property
    def live(self) -> bool:
        """Whether a progress bar can be seen: on a terminal, without --quiet."""
        return self._err.is_terminal and not self.quiet

    def muted(self) -> Console:
        """A console that prints only errors."""
        return Console(as_json=self.as_json, quiet=True, debug=self.debug)

    def result(self, data: Any, text: RenderableType) -> None:
        """The result of a command: ``data`` with --json, otherwise ``text``.

        Raises:
            RunError: stdout cannot be written.
        """
        self._delivered = True
        try:
            if self.as_json:
                self._out.file.write(_as_json(data, self._out.encoding) + "\n")
            else:
                self._out.print(text)
            self._out.file.flush()
        except BrokenPipeError:  # as in `adaspa ... | head -1`: who closed it has what was wanted
            _discard(sys.stdout)
            raise SystemExit(1) from None
        except OSError as error:
            _discard(sys.stdout)
            raise RunError(f"cannot write the result to stdout: {error.strerror}") from error

    def note(self, message: str, *, wrap: bool = False) -> None:
        """Something worth knowing; not shown with --quiet.

        Args:
            wrap: between words, to the width of a terminal; else the line stays whole, as a path must.
        """
        if not self.quiet:
            self._say(message, wrap=wrap and self._err.is_terminal)

    def error(self, error: AdaspaError) -> None:
        """One line that says what was wrong, and one with what to try next; with --debug after the traceback."""
        if self.debug:
            self._say(traceback.format_exc())
        message = shortened(error.message, _MOST)
        if self._as_json(message, error.hint):
            return
        self._say(f"error: {message}", style="bold red")
        if error.hint:
            self._say(f"  try: {error.hint}")

    def interrupted(self, message: str) -> None:
        """What Ctrl-C left, in one line."""
        if not self._as_json("interrupted", message):
            self.note(message)

    def _say(self, message: str, style: str | None = None, *, wrap: bool = False) -> None:
        with contextlib.suppress(OSError):  # as a full disk behind stderr: no reason to give up a run
            self._err.print(message, soft_wrap=not wrap, style=style)

    def _as_json(self, error: str, hint: str | None) -> bool:
        """With --json, put an error on stdout, unless a result is there: a second value would make both unreadable."""
        if not self.as_json or self._delivered:
            return False
        self.result({"error": error, "hint": hint}, "")
        return True

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """A progress bar on stderr, gone when the block ends; invisible with --quiet or without a terminal.

        From here on Ctrl-C raises KeyboardInterrupt, so that the bar goes and files are not left half-written.
        """
        interrupts.unwind()
        # Steps of big models take longer than rich's window of 30 s: without all of them there would be no estimate.
        with Progress(
            *columns(self._err),
            console=self._err,
            transient=True,
            disable=not self.live,
            speed_estimate_period=24 * 3600,
        ) as progress:
            yield progress


def prepare_streams() -> None:
    """Make the standard streams usable: closed ones lead nowhere, and nothing fails for a letter they do not know."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # else the next file that is opened would be stdout
        pass
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _as_json(data: Any, encoding: str) -> str:
    return json.dumps(data, ensure_ascii=encoding.lower().replace("-", "") != "utf8")


def _discard(stream: Any) -> None:
    """Let nothing more fail that is written there, such as what is flushed at the end of the process."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: it is no file
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
