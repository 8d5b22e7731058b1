"""Tables in Markdown, and docstrings as Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([\w.]+)`")
_ATTRIBUTE = re.compile(r"^ {4}(?P<names>\w+(?:, \w+)*): (?P<text>.*(?:\n {8}.*)*)", re.MULTILINE)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; what would divide a cell is escaped."""
    lines = [titles, ["---"] * len(titles), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: str) -> str:
    """Text as code, and nothing as nothing."""
    return f"`{text}`" if text else ""


def markdown(docstring: str) -> str:
    """A docstring's text in one line of Markdown, for a page that GitHub shows as well."""
    return " ".join(_ROLE.sub(r"`\1`", docstring).replace("``", "`").split())


def sentence(text: str) -> str:
    """With a capital letter, unless it begins with a symbol or with code, and a full stop."""
    begun = text[0].upper() + text[1:] if text[0].isascii() else text
    return begun if begun.endswith(".") else f"{begun}."


def attributes(config: type) -> dict[str, str]:
    """What the docstring of a class says of each name under "Attributes"."""
    _, _, text = inspect.cleandoc(config.__doc__ or "").partition("Attributes:\n")
    found = ((match["names"], markdown(match["text"])) for match in _ATTRIBUTE.finditer(text))
    return {name: said for names, said in found for name in names.split(", ")}
