"""A disk that fills up at any write: nothing half-written is left, and the message says what to do."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adaspa_cli.app import app
from adaspa_cli.config import resolve
from adaspa_cli.errors import DiskFullError
from tests.pipelines import Listener, make_reports, small_run

LINK, REPLACE = os.link, os.replace


class Disk:
    """Room for so many files; the next one is cut off in the middle."""

    def __init__(self, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._room, self.written = room, 0
        monkeypatch.setattr(os, "link", self._named(LINK))
        monkeypatch.setattr(os, "replace", self._named(REPLACE))

    def _named(self, real: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def give_name(partial: Any, path: Any) -> None:
            if self.written == self._room:
                Path(partial).write_bytes(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial))
            self.written += 1
            real(partial, path)

        return give_name


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Disk]:
    return lambda room: Disk(room, monkeypatch)


@pytest.mark.parametrize("flags", [{"lossless": True}, {"decode": False}], ids=["video", "latents"])
def test_whatever_is_written_when_the_disk_is_full_leaves_no_file(
    hunyuan_folder: Path, tmp_path: Path, disks: Callable[[int], Disk], flags: dict[str, Any]
) -> None:
    count = 4 if flags.get("lossless") else 3
    for room in range(count):
        disks(room)
        with pytest.raises(DiskFullError, match="the disk is full") as told:
            list(make_reports(resolve(small_run(hunyuan_folder, tmp_path, **flags)), Listener()))
        assert "free some space" in str(told.value.hint)
        assert told.value.exit_code == 1
        assert list(tmp_path.iterdir()) == [], f"the disk was full at write {room}"
    enough = disks(count)
    list(make_reports(resolve(small_run(hunyuan_folder, tmp_path, **flags)), Listener()))
    assert enough.written == count == len(list(tmp_path.iterdir()))


def test_the_command_ends_with_1_and_keeps_what_is_complete(
    hunyuan_folder: Path, tmp_path: Path, disks: Callable[[int], Disk]
) -> None:
    out, flags = tmp_path / "out", small_run(hunyuan_folder, tmp_path, steps=2, search_steps="0")
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in flags.items() if key not in ("prompt", "out")]
    disks(3 + 2)
    arguments += ["--prompt", "a circle", "--seed", "1", "--seed", "2", "--out", str(out)]
    result = CliRunner().invoke(app, ["generate", *arguments])
    assert result.exit_code == 1, result.output
    assert "the disk is full" in result.output
    assert sorted(path.name for path in out.iterdir()) == [
        f"a-circle-seed1{ending}" for ending in (".mp4", ".report.html", ".report.json")
    ]
