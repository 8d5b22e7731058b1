"""The progress bar: what is made, how far it is, the phase and the time left, in one line of any terminal.

What is made is cut first: the step and the time left are what one looks for.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_PHASE, _TIME, _LEFT = 13, 7, " left"
_NARROW = 60  # columns of a terminal below which the bar is short and the time left says no word


def columns(console: Console) -> tuple[ProgressColumn, ...]:
    """The columns of a bar on a console whose width may change."""
    bar = BarColumn(bar_width=8 if console.width < _NARROW else 20)
    phase = TextColumn(f"{{task.fields[phase]:<{_PHASE}}}", markup=False)
    return _Description(console, bar), bar, MofNCompleteColumn(), phase, _TimeLeft(console)


class _Description(ProgressColumn):
    def __init__(self, console: Console, bar: BarColumn) -> None:
        super().__init__()
        self._console, self._bar = console, bar

    def render(self, task: Task) -> Text:
        count = 2 * len(str(int(task.total or 0))) + 1
        gaps = 4
        others = (self._bar.bar_width or 0) + count + _PHASE + _TIME + len(_left(self._console)) + gaps
        text = Text(task.description, no_wrap=True)
        text.truncate(max(0, self._console.width - others), overflow="ellipsis")
        return text


class _TimeLeft(TimeRemainingColumn):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> Text:
        return super().render(task).append(_left(self._console))


def _left(console: Console) -> str:
    return "" if console.width < _NARROW else _LEFT
