"""What all commands share: flags from the table, a console, and errors turned into messages.

A command's function names what it needs by type: a :class:`Console` stands for ``--json``, ``--quiet`` and ``--debug``,
a :class:`Given` for the flags of the table that the command takes; other parameters are flags of its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from adaspa_cli.commands.guard import KEPT, guard
from adaspa_cli.commands.options import OUTPUT, Flag
from adaspa_cli.commands.settings import Given
from adaspa_cli.console import Console
from adaspa_cli.errors import UsageError, shortened

_CONSOLE = {
    "as_json": ("--json", "Print the result as JSON on stdout."),
    "quiet": ("--quiet", "-q", "Hide progress and notes."),
    "debug": ("--debug", "Show the traceback of an error."),
}
_PATHS = ("model", "weights", "compare_with", "lora", "lora_high", "lora_low")  # they may hold a path, as text


def command(
    *flags: Flag, panels: bool = True, interrupted: str = KEPT
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command: its signature gets the flags, its body their values.

    Args:
        flags: of the table, in the order of the help.
        panels: whether the help is divided into panels.
        interrupted: what Ctrl-C says.
    """
    shown = flags if panels else [flag.but(panel=None) for flag in flags]

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(body, eval_str=True).parameters.values())
        consoles = [parameter.name for parameter in own if parameter.annotation is Console]
        givens = [parameter.name for parameter in own if parameter.annotation is Given]

        @functools.wraps(body)
        def run(**values: Any) -> None:
            console = Console(**{key: values.pop(key) for key in _CONSOLE})
            with guard(console, interrupted):
                _check_texts(values)
                given = Given.of({flag.key: values.pop(flag.key) for flag in shown})
                filled = dict.fromkeys(consoles, console) | dict.fromkeys(givens, given)
                body(**filled, **values)

        parameters = [parameter for one in own for parameter in _expanded(one, shown, OUTPUT if panels else None)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _check_texts(values: dict[str, Any]) -> None:
    """Refuse what nothing can be done with: bytes that are no text, and home folders of nobody.

    Raises:
        UsageError: names the flag.
    """
    for key, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            try:
                str(item).encode()
            except UnicodeEncodeError:
                shown = shortened(str(item).encode(errors="surrogateescape").decode(errors="backslashreplace"))
                raise UsageError(
                    f"{key.replace('_', '-')} is not valid UTF-8: '{shown}'", hint="use a UTF-8 terminal"
                ) from None
            if isinstance(item, Path) or key in _PATHS:
                try:
                    Path(item or ".").expanduser()
                except RuntimeError:
                    raise UsageError(f"'{shortened(str(item))}' names the home folder of an unknown user") from None


def _expanded(parameter: Parameter, flags: Sequence[Flag], panel: str | None) -> Iterator[Parameter]:
    """The parameters that a parameter of a command's function expands to."""
    if parameter.annotation is Given:
        for flag in flags:
            yield Parameter(flag.key, Parameter.KEYWORD_ONLY, default=None, annotation=flag.annotation)
    elif parameter.annotation is Console:
        for key, (*names, text) in _CONSOLE.items():
            option = typer.Option(*names, help=text, rich_help_panel=panel)
            yield Parameter(key, Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option])
    else:
        yield parameter.replace(kind=Parameter.KEYWORD_ONLY)
