"""Claims: one process holds a name at a time, and one that died holds nobody up."""

import errno
import fcntl
import logging
import os
import signal
import threading
from pathlib import Path

import pytest

from adaspa_cli.errors import DiskFullError, OutputError
from adaspa_cli.files.claims import Claim, hold, noted, take
from tests.processes import at_once


def taken(path: Path, note: str = "") -> Claim:
    claim = take(path, note)
    assert claim is not None
    return claim


def test_a_name_is_held_by_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.claim"
    with taken(path, "first"):
        assert take(path, "second") is None
        assert noted(path) == "first"
    assert noted(path) is None
    with taken(path, "second") as claim:
        assert claim.left_over == ""
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_process_that_was_killed_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "x.claim"

    def die() -> None:
        _held = take(path, "a long note of a process that dies")
        os.kill(os.getpid(), signal.SIGKILL)

    assert at_once(die) == [-signal.SIGKILL]
    assert noted(path) == "a long note of a process that dies"
    with taken(path, "next") as claim:
        assert claim.left_over == "a long note of a process that dies"
        assert noted(path) == "next"
    assert list(tmp_path.iterdir()) == []


def test_who_waits_gets_the_name_when_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "x.claim"
    first = taken(path)
    waiting: list[int] = []

    def release() -> None:
        waiting.append(1)
        threading.Timer(0.1, first.release).start()

    with hold(path, release):
        assert waiting == [1]
        assert take(path) is None


def test_a_claim_that_its_holder_removes_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "x.claim", fcntl.flock
    calls: list[int] = []

    def removed_before(descriptor: int, operation: int) -> None:
        calls.append(1)
        if len(calls) == 1:
            path.unlink()
        real(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", removed_before)
    with taken(path):
        assert path.exists()
        assert take(path) is None


def test_without_locks_everything_is_free_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_here(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none_here)
    with caplog.at_level(logging.WARNING), taken(tmp_path / "x.claim"):
        assert take(tmp_path / "x.claim") is not None
    assert "no file locks" in caplog.text


def test_a_claim_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        take(tmp_path / "missing" / "x.claim")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFullError, match="the disk is full"):
        take(tmp_path / "x.claim")
    assert list(tmp_path.iterdir()) == []
