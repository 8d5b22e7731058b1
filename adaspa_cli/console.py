"""The one sink: results on stdout (text for people, JSON for programs), progress and messages on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import rich.console
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adaspa_cli.errors import AdaspaError


class Console:
    """Prints for one command."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        self.as_json, self.quiet, self.debug = as_json, quiet, debug
        # Off a terminal nothing is cut to its width: paths must stay whole.
        width = None if sys.stdout.isatty() else 10_000
        self._out = rich.console.Console(highlight=False, width=width)
        self._err = rich.console.Console(stderr=True, highlight=False)

    def result(self, data: Any, text: RenderableType) -> None:
        """The result of a command: ``data`` with --json, otherwise ``text``."""
        if self.as_json:
            self._out.file.write(json.dumps(data, ensure_ascii=False) + "\n")
        else:
            self._out.print(text, markup=False)

    def note(self, message: str) -> None:
        """Something worth knowing; not shown with --quiet."""
        if not self.quiet:
            self._err.print(message, markup=False, soft_wrap=True)

    def error(self, error: AdaspaError) -> None:
        """One line that says what was wrong, and one with what to try next; with --debug after the traceback."""
        if self.debug:
            self._err.print(traceback.format_exc(), markup=False, soft_wrap=True)
        if self.as_json:
            self._out.file.write(json.dumps({"error": error.message, "hint": error.hint}, ensure_ascii=False) + "\n")
            return
        self._err.print(f"error: {error.message}", style="bold red", markup=False, soft_wrap=True)
        if error.hint:
            self._err.print(f"  try: {error.hint}", markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """A progress bar on stderr, gone when the block ends; invisible with --quiet or without a terminal."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[phase]:<13}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        hidden = self.quiet or not self._err.is_terminal
        # Steps of big models take longer than rich's window of 30 s: without all of them there would be no estimate.
        with Progress(
            *columns, console=self._err, transient=True, disable=hidden, speed_estimate_period=24 * 3600
        ) as progress:
            yield progress
