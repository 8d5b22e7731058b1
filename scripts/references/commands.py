"""The reference of the command line, from the signatures that Typer makes the commands from.

Not from what Typer makes of them, nor from ``--help``: neither its version nor the width of a terminal matters so.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import typer

from adaspa_cli.app import app
from scripts.references.tables import code, markdown, table

HEAD = """# Command line

Every command, its options and their defaults, as in `--help`. Options win over files and presets:
[configuration](configuration.md).

Every command takes `--json` (the result as JSON on stdout; progress and messages go to stderr), `--quiet` and
`--debug`. `adaspa --version` shows the version. Exit codes: 0 done, 1 failed while running, 2 wrong use, 130
interrupted.
"""
_DEFAULT = re.compile(r" \(default: (?P<value>.*)\)$")
_PLACEHOLDERS = {str: "TEXT", int: "INT", float: "FLOAT", Path: "PATH", bool: ""}


@dataclass(frozen=True)
class Option:
    """An option or an argument of a command.

    Attributes:
        names: as they are written; of an argument, its placeholder.
        shown: the names with the placeholder of the value, in Markdown.
        text: the help.
        default: what holds if it is not given; empty if nothing does.
        panel: of the help; empty without one.
        argument: whether it is an argument.
    """

    names: tuple[str, ...]
    shown: str
    text: str
    default: str
    panel: str
    argument: bool


@dataclass(frozen=True)
class Command:
    """A command, by its full name, with the docstring of its function."""

    name: str
    text: str
    options: tuple[Option, ...]


def commands(typer_app: typer.Typer = app, before: str = "adaspa") -> Iterator[Command]:
    """All commands of an app, those of its groups after its own."""
    for registered in typer_app.registered_commands:
        callback = registered.callback
        assert callback is not None
        name = registered.name or callback.__name__.replace("_", "-")
        yield Command(f"{before} {name}", inspect.getdoc(callback) or "", tuple(_options(callback)))
    for group in typer_app.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, f"{before} {group.name}")


def _options(callback: Callable[..., Any]) -> Iterator[Option]:
    for parameter in inspect.signature(callback, eval_str=True).parameters.values():
        hint, info = get_args(parameter.annotation)
        if info.hidden:
            continue
        argument = type(info).__name__ == "ArgumentInfo"
        kind = _kind(hint)
        placeholder = _placeholder(info.metavar, kind)
        names = tuple(decl for decl in (info.default, *(info.param_decls or ())) if isinstance(decl, str))
        if argument:
            named = placeholder if info.metavar else parameter.name.upper()
            names = (named if parameter.default is inspect.Parameter.empty else f"[{named}]",)
        elif not names:
            names = (f"--{parameter.name.replace('_', '-')}",)
        names = tuple(part for name in names for part in name.split("/"))
        shown = ", ".join(code(f"{name} {placeholder}".strip() if not place and not argument else name)
                          for place, name in enumerate(names))  # fmt: skip
        text, default = _split(markdown(info.help or ""), parameter.default)
        yield Option(names, shown, text, default, info.rich_help_panel or "", argument)


def _kind(hint: Any) -> type:
    """The type of a value: of an item of a list, and not None."""
    options = [
        option for option in (get_args(hint) if isinstance(hint, UnionType) else (hint,)) if option is not type(None)
    ]
    (only,) = options
    kind: type = get_args(only)[0] if get_origin(only) is list else only
    return kind


def _placeholder(metavar: str | None, kind: type) -> str:
    return metavar if metavar and not metavar.startswith("<") else _PLACEHOLDERS[kind]


def _split(text: str, default: Any) -> tuple[str, str]:
    """Help without the default that it ends in, and the default."""
    found = _DEFAULT.search(text)
    if found:
        return text[: found.start()], found["value"]
    nothing = default is inspect.Parameter.empty or default is None or default is False or default == []
    return text, "" if nothing else "on" if default is True else str(default)


def page() -> str:
    """The whole page."""
    found = list(commands())
    listed = table(
        ("command", "what it does"),
        ((f"[`{command.name}`](#{command.name.replace(' ', '-')})", _first(command.text)) for command in found),
    )
    return "\n\n".join([HEAD.rstrip(), listed, *(_section(command) for command in found)])


def _first(text: str) -> str:
    return markdown(text.partition("\n\n")[0])


def _section(command: Command) -> str:
    said, _, example = command.text.partition("Example: ")
    paragraphs = [markdown(paragraph) for paragraph in said.split("\n\n") if paragraph.strip()]
    arguments = [option for option in command.options if option.argument]
    usage = " ".join([command.name, *("".join(option.names) for option in arguments), "[OPTIONS]"])
    parts = [f"## {command.name}", *paragraphs, f"```text\n{usage}\n```"]
    if example:
        parts.append(f"```sh\n{example.strip()}\n```")
    if arguments:
        parts.append(table(("argument", "meaning"), ((option.shown, option.text) for option in arguments)))
    for panel in dict.fromkeys(option.panel for option in command.options if not option.argument):
        options = [option for option in command.options if option.panel == panel and not option.argument]
        rows = ((option.shown, option.text, code(option.default)) for option in options)
        parts += [f"**{panel}**"] * bool(panel) + [table(("option", "meaning", "default"), rows)]
    return "\n\n".join(parts)
