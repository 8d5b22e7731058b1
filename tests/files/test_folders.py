"""Output folders: made and proved, or refused."""

from pathlib import Path

import pytest

from adaspa_cli.errors import OutputError
from adaspa_cli.files.folders import check_folder, prepare_folder


def test_the_output_folder_is_made_and_proved(tmp_path: Path) -> None:
    folder = prepare_folder(str(tmp_path / "a" / "b"))
    assert folder.is_dir()
    assert list(folder.iterdir()) == []
    assert prepare_folder(str(folder)) == folder


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for impossible in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/adaspa")):
        with pytest.raises(OutputError, match=f"cannot write to {impossible}: .+") as caught:
            prepare_folder(str(impossible))
        assert "--out" in str(caught.value.hint)


def test_a_folder_without_a_name_is_refused() -> None:
    """It would be the current folder."""
    with pytest.raises(OutputError, match="the output folder has no name"):
        check_folder("")
