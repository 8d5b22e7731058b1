"""A new folder of pictures, which appears when all of it is there."""

from __future__ import annotations

import errno
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

from adaspa_cli.files.folders import prepare_folder
from adaspa_cli.files.whole import cannot_write


def whole_folder(out: str, name: str, write: Callable[[Path], None]) -> Path:
    """Make a folder in ``out`` under the first free name of ``name``, ``name-2``, ...; returns it.

    Args:
        write: fills the empty folder that it is given; what it leaves after an exception is removed.

    Raises:
        OutputError: the folder cannot be made or written.
        DiskFullError: the disk is full.
    """
    parent = prepare_folder(out)
    try:
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=parent) as scratch:
            partial = Path(scratch) / "pictures"
            partial.mkdir()
            write(partial)
            return _place(partial, parent / name)
    except OSError as error:
        raise cannot_write(f"to {parent}", error) from error


def _place(partial: Path, folder: Path) -> Path:
    """Give a complete folder the first name that is free."""
    for number in itertools.count(1):
        target = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if target.exists():
            continue
        try:
            return partial.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process took the name meanwhile
                raise
    raise AssertionError("unreachable")
