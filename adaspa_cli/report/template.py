"""Pages from templates, in one style; self-contained, so that they can be moved, sent and read offline."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2

SHARED = Path(__file__).parent  # the folder of style.css


def render(template: Path, **data: Any) -> str:
    """Fill a template; text is escaped, and a name that has no value is an error.

    What no page can hold, such as a byte of a file's name that is not UTF-8, becomes a question mark.
    """
    filled = _environment(template.parent).get_template(template.name).render(**data)
    return filled.encode(errors="replace").decode()


@cache
def _environment(folder: Path) -> jinja2.Environment:
    """Keeps its templates compiled: each video has a page, and compiling takes longer than filling."""
    loader = jinja2.FileSystemLoader([folder, SHARED])
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["when"] = when
    return environment


def when(time: str) -> str:
    """A time of a report, such as ``2026-11-27T17:05:27+00:00``, as people write it."""
    return time.replace("T", " ").replace("+00:00", " UTC")
