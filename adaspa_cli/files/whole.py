"""Files that are renamed into place once they are complete."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adaspa_cli.errors import AdaspaError, DiskFullError, OutputError

PARTIAL = ".partial"  # in the name of every file that is not whole yet
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_FULL = ("No space left on device", "Disk quota exceeded", "os error 28")  # as libraries in C and Rust say it


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
        if replace:
            partial.replace(path)
        else:
            _name(partial, path)
    finally:  # Ctrl-C too must not leave a broken file
        partial.unlink(missing_ok=True)


def clear_partial(path: Path) -> None:
    """Remove what killed processes left of a file; no process may be writing it."""
    for left in path.parent.glob(f"{glob.escape(path.stem)}{PARTIAL}*{glob.escape(path.suffix)}"):
        left.unlink(missing_ok=True)


def _name(partial: Path, path: Path) -> None:
    """Give a file its name unless there is one of that name: a rename alone would replace it."""
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        path.touch(exist_ok=False)  # a file system without links
        try:
            partial.replace(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def cannot_write(path: Path | str, error: Exception, *, hint: str | None = None, resumes: bool = True) -> AdaspaError:
    """What to raise where a file cannot be written: DiskFullError or OutputError, in one line.

    Args:
        path: the file, or other words after "cannot write".
        hint: what to try next, unless the disk is full.
        resumes: whether ``--resume`` lets the command continue from what is complete.
    """
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:300]  # ffmpeg says much
    full = isinstance(error, DiskFullError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or any(said in reason for said in _FULL):
        kept = "; complete results are kept, and --resume continues from them" if resumes else ""
        return DiskFullError(
            f"cannot write {path}: the disk is full", hint=f"free some space or choose another --out{kept}"
        )
    return OutputError(f"cannot write {path}: {reason}", hint=hint)


def write_json(path: Path, content: dict[str, Any], *, replace: bool = False) -> None:
    """Write a JSON file.

    Raises:
        OutputError: the file cannot be written.
        DiskFullError: the disk is full.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", replace=replace)


def write_text(path: Path, text: str, *, replace: bool = False) -> None:
    """Write a text file.

    Raises:
        OutputError: the file cannot be written.
        DiskFullError: the disk is full.
    """
    try:
        with whole_file(path, replace=replace) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
