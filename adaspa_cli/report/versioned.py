"""Reads JSON files with a ``kind`` and a ``format`` into dataclasses.

A format grows: a file may lack what later versions added, and then reads as the field's default. A key that is not
known here is passed over. A change that an old reader would misunderstand raises the format, and a file of another
format, older or newer, is refused by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from adaspa_cli.errors import ReportError
from adaspa_cli.files.typed_json import ShapeError, from_json, to_json


@dataclass(frozen=True, kw_only=True)
class Versioned:
    """What such a file holds. The defaults that a subclass gives both fields are what is written and read."""

    format: int = 1
    kind: str = ""

    def as_json(self) -> dict[str, Any]:
        """As it is written."""
        content: dict[str, Any] = to_json(self)
        return content


V = TypeVar("V", bound=Versioned)


def read_versioned(kind: type[V], path: Path) -> V:
    """Read a file.

    Raises:
        ReportError: it cannot be read, is of another kind or format, or is not whole.
    """
    name = kind.kind.removeprefix("adaspa ")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ReportError(f"cannot read the {name.split()[-1]} {path}: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != kind.kind:
        raise ReportError(f"{path} is not a {name}")
    found = content.get("format")
    if found != kind.format:
        raise ReportError(
            f"{path} is a {name} of format {found!r:.20}, and this version of adaspa reads format {kind.format}",
            hint="create it again with this version, or read it with the version that wrote it",
        )
    try:
        return from_json(kind, content)
    except ShapeError as error:
        raise ReportError(f"{path} is not a complete {name} of format {kind.format}: {error}") from error
