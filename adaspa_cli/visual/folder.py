"""A new folder of pictures, renamed into place once it is complete."""

from __future__ import annotations

import contextlib
import errno
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from adaspa_cli.errors import DiskFullError
from adaspa_cli.files.claims import hold, take
from adaspa_cli.files.folders import prepare_folder
from adaspa_cli.files.whole import PARTIAL, cannot_write

_PREFIX = f"{PARTIAL}-"
_CLAIM = "claim"


def whole_folder(out: str, name: str, write: Callable[[Path], None]) -> Path:
    """Make a folder in ``out`` under the first free name of ``name``, ``name-2``, ...; returns it.

    Args:
        write: fills the empty folder that it is given; what it leaves after an exception is removed.

    Raises:
        OutputError: the folder cannot be made or written.
        DiskFullError: the disk is full.
    """
    parent = Path(out).expanduser()
    try:
        prepare_folder(out)
        with _scratch(parent) as partial:
            write(partial)
            return _place(partial, parent / name)
    except (OSError, DiskFullError) as error:
        raise cannot_write(f"to {parent}", error, resumes=False) from error


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A folder beside those that are whole, which goes at the end, with those that killed processes have left."""
    with hold(parent / f"{PARTIAL}.claim") as alone:  # nobody clears a folder that is not claimed yet
        if alone.exclusive:
            _clear(parent)
        scratch = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        claim = take(scratch / _CLAIM)
    try:
        partial = scratch / "pictures"
        partial.mkdir()
        yield partial
    finally:
        if claim is not None:
            claim.release()
        shutil.rmtree(scratch, ignore_errors=True)


def _clear(parent: Path) -> None:
    for scratch in parent.glob(f"{_PREFIX}*/"):
        claim = take(scratch / _CLAIM)
        if claim is not None:  # its process is dead
            shutil.rmtree(scratch, ignore_errors=True)
            claim.release()


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
