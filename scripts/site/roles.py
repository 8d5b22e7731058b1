"""An extension of griffe: docstrings name what they mean by Sphinx's roles, and the site is made by Markdown.

``:class:`~adaspa_cli.attention.layout.TokenLayout``` becomes a link with the text ``TokenLayout``, if the reference has
that name, and plain code if not.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc|obj):`(?P<short>~)?(?P<name>[\w.]+)`")


def without_roles(text: str) -> str:
    """The text in Markdown."""
    return _ROLE.sub(_link, text)


def _link(match: re.Match[str]) -> str:
    name = match["name"]
    shown = name.rpartition(".")[2] if match["short"] else name
    return f'<autoref identifier="{name}" optional><code>{shown}</code></autoref>'


class Roles(griffe.Extension):
    """Applies :func:`without_roles` to every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for each object, when all of its package is read."""
        if obj.docstring is not None:
            obj.docstring.value = without_roles(obj.docstring.value)
