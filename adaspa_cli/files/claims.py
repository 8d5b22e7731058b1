"""Claims: names that one process locks while it works on their files.

A claim is a small file that its process keeps locked. The system drops the lock when the process ends, however it ends,
so the claim of a dead process blocks no other; what it noted can still be read.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adaspa_cli.files.whole import cannot_write

_log = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_LONGEST = 10_000  # bytes of a note
_PATIENCE = 0.2  # seconds between two looks at a claim that is waited for


class Claim:
    """A name that is held; also a context manager. See :func:`take`.

    Attributes:
        path: of the file.
        left_over: what a process that died had noted in it; empty if there was none.
        exclusive: whether nobody else holds it: not known on a file system without locks.
    """

    def __init__(self, path: Path, descriptor: int, left_over: str, *, exclusive: bool) -> None:
        self.path, self.left_over, self.exclusive = path, left_over, exclusive
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Release the name. May be called twice."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)  # while it is locked: nobody else's can be hit
            os.close(self._descriptor)
            self._descriptor = None

    def put_back(self) -> None:
        """Give the name free and leave the claim as it was found: what its note tells of is still there."""
        if not self.left_over:
            self.release()
        elif self._descriptor is not None:
            _write_note(self._descriptor, self.path, self.left_over)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def take(path: Path, note: str = "") -> Claim | None:
    """Claim a name; None if a process holds it.

    On a file system without locks every claim succeeds, and a warning is logged.

    Args:
        path: of the claim's file; its folder is there.
        note: a line that :func:`noted` tells other processes while it is held, and whoever takes over if this
            process dies.

    Raises:
        OutputError: the file cannot be written.
        DiskFullError: the disk is full.
    """
    while True:
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            locked = _lock(descriptor, path)
            if locked is not False and _is_file(descriptor, path):  # and not one that its holder has removed meanwhile
                return Claim(path, descriptor, _write_note(descriptor, path, note), exclusive=bool(locked))
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            raise cannot_write(path, error) from error
        os.close(descriptor)
        if locked is False:
            return None


def _write_note(descriptor: int, path: Path, note: str) -> str:
    """Write the note of a claim that is locked; returns the one that was there."""
    left_over = _first_line(os.read(descriptor, _LONGEST))
    content = f"{note}\n".encode()
    try:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
    except OSError:
        if not left_over:
            path.unlink(missing_ok=True)
        raise
    return left_over


def _first_line(content: bytes) -> str:
    return content.decode(errors="replace").partition("\n")[0]


def noted(path: Path) -> str | None:
    """The note of a claim, whether its process is alive or not; None without a claim."""
    for _ in range(100):  # between a claim and its note there is next to nothing
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if content:
            return _first_line(content)
        time.sleep(0.01)
    return ""


@contextmanager
def hold(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[Claim]:
    """Claim a name, and wait while another process holds it.

    Args:
        waiting: is called once if there is something to wait for.

    Raises:
        AdaspaError: as :func:`take`.
    """
    claim = take(path)
    if claim is None:
        waiting()
    while claim is None:
        time.sleep(_PATIENCE)
        claim = take(path)
    with claim:
        yield claim


def _lock(descriptor: int, path: Path) -> bool | None:
    """Whether it is locked now; False if another process has it, None without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning("%s: no file locks here, so two processes may compute the same", path.parent)
        return None
    return True


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
