"""Files that take their name once they are whole."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adaspa_cli.errors import OutputError

PARTIAL = ".partial"  # in the name of every file that is not whole yet


@contextlib.contextmanager
def whole_file(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what is written there takes the name when the block succeeds.

    Args:
        replace: take the place of a file that is there, as what is made from other files may.

    Raises:
        FileExistsError: without ``replace``, another process took the name meanwhile; its file is left as it is.
    """
    partial = path.with_name(f"{path.stem}{PARTIAL}{os.getpid()}{path.suffix}")
    try:
        yield partial
        if not replace:
            path.touch(exist_ok=False)  # a rename alone would replace what is there
        partial.replace(path)
    finally:  # Ctrl-C too must not leave a broken file
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any], *, replace: bool = False) -> None:
    """Write a JSON file.

    Raises:
        OutputError: the file cannot be written.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", replace=replace)


def write_text(path: Path, text: str, *, replace: bool = False) -> None:
    """Write a text file.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        with whole_file(path, replace=replace) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
