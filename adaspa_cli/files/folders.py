"""Output folders: checked before anything slow begins, created when there is something to write."""

from __future__ import annotations

import os
from pathlib import Path

from adaspa_cli.errors import OutputError
from adaspa_cli.files.whole import PARTIAL, cannot_write

_HINT = "choose another folder with --out"


def check_folder(out: str) -> Path:
    """The output folder, checked to be creatable and writable; creates nothing.

    Raises:
        OutputError: it could not, or has no name.
    """
    if not out.strip():
        raise OutputError("the output folder has no name", hint="name one: --out videos; --out . is this folder")
    folder = Path(out).expanduser()
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise cannot_write(f"to {folder}", error, hint=_HINT) from error
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "is not a folder" if not existing.is_dir() else "is not writable"
        raise OutputError(f"cannot write to {folder}: {existing} {reason}", hint=_HINT)
    return folder


def prepare_folder(out: str) -> Path:
    """Make the output folder and prove that it can be written.

    Raises:
        OutputError: it cannot.
        DiskFullError: the disk is full.
    """
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{PARTIAL}.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise cannot_write(f"to {folder}", error, hint=_HINT) from error
    return folder
