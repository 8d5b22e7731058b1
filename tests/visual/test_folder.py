"""New folders of pictures: whole or not there, under a name of their own."""

import errno
import os
import signal
from pathlib import Path

import pytest

from adaspa_cli.errors import DiskFullError
from adaspa_cli.visual.folder import whole_folder
from tests.processes import at_once


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        (folder / "half.png").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DiskFullError, match="the disk is full"):
        whole_folder(str(tmp_path), "x", full)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_finds_no_room_is_told_of_by_the_folder_that_stays(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise DiskFullError(f"cannot write {folder / 'video.mp4'}: the disk is full", hint="... --resume ...")

    with pytest.raises(DiskFullError) as told:
        whole_folder(str(tmp_path), "x", full)
    assert told.value.message == f"cannot write to {tmp_path}: the disk is full"
    assert told.value.hint == "free some space or choose another --out"  # pictures know no --resume


def test_a_name_that_another_process_takes_meanwhile_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path) -> None:
        (folder / "mine.png").touch()
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "theirs.png").touch()

    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name != "x" and exists(path))
    assert whole_folder(str(tmp_path), "x", write) == tmp_path / "x-2"
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["theirs.png"]
    assert [path.name for path in (tmp_path / "x-2").iterdir()] == ["mine.png"]


def test_what_a_killed_process_left_goes_and_what_a_live_one_writes_stays(tmp_path: Path) -> None:
    def killed(folder: Path) -> None:
        (folder / "half.png").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def write(folder: Path) -> None:
        (folder / "whole.png").touch()
        whole_folder(str(tmp_path), "y", lambda other: (other / "other.png").touch())

    assert at_once(lambda: whole_folder(str(tmp_path), "x", killed)) == [-signal.SIGKILL]
    assert len(list(tmp_path.iterdir())) == 1
    whole_folder(str(tmp_path), "x", write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["whole.png"]
