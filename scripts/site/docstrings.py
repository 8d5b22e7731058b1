"""An extension of griffe: what docstrings have that it does not read, as it does.

Docstrings name what they mean by Sphinx's roles, and the site is made by Markdown:
``:class:`~adaspa_cli.attention.layout.TokenLayout``` becomes a link with the text ``TokenLayout``, if the reference has
that name, and plain code if not. One line of a list may describe several names (``layers, of: ...``), of which griffe
takes the last for a type.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc|obj):`(?P<short>~)?(?P<name>[\w.]+)`")

_SEVERAL = re.compile(r"^ *\w+(?:, \w+)+: ", re.MULTILINE)
_FIXED_SPACE = "\N{NO-BREAK SPACE}"


def readable(text: str) -> str:
    """A docstring that griffe reads, in Markdown."""
    return _SEVERAL.sub(lambda match: match[0].replace(", ", f",{_FIXED_SPACE}"), without_roles(text))


def without_roles(text: str) -> str:
    """The text in Markdown."""
    return _ROLE.sub(_link, text)


def _link(match: re.Match[str]) -> str:
    name = match["name"]
    shown = name.rpartition(".")[2] if match["short"] else name
    return f'<autoref identifier="{name}" optional><code>{shown}</code></autoref>'


class Docstrings(griffe.Extension):
    """Applies :func:`readable` to every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for each object, when all of its package is read."""
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)
