"""Files: nothing half-written, nothing overwritten."""

import json
from pathlib import Path

import pytest

from adaspa_cli.errors import OutputError
from adaspa_cli.files.whole import clear_partial, whole_file, write_json, write_text


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    with whole_file(target) as partial:
        partial.write_text("content")
        assert partial.suffix == ".txt"
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]
    assert target.read_text() == "content"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("begun", [True, False])
def test_what_is_interrupted_leaves_nothing(tmp_path: Path, error: type[BaseException], begun: bool) -> None:
    def write() -> None:
        with whole_file(tmp_path / "x.txt") as partial:
            if begun:
                partial.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert list(tmp_path.iterdir()) == []


def test_json_is_readable_utf8(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"prompt": "ein grüner Kreis 🟢", "n": [1, 2.5, None]})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"prompt": "ein grüner Kreis 🟢", "n": [1, 2.5, None]}
    assert "grüner" in text
    assert text.endswith("}\n")


def test_json_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_json(tmp_path / "missing" / "x.json", {})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_was_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"

    def write() -> None:
        with whole_file(path) as partial:
            partial.write_text("mine")
            path.write_text("another process's")

    with pytest.raises(FileExistsError):
        write()
    assert path.read_text() == "another process's"
    assert list(tmp_path.iterdir()) == [path]


def test_text_replaces_only_where_it_may(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    write_text(path, "old")
    with pytest.raises(OutputError):
        write_text(path, "new")
    assert path.read_text() == "old"
    write_text(path, "new", replace=True)
    assert path.read_text() == "new"


def test_what_killed_processes_left_of_one_file_goes(tmp_path: Path) -> None:
    for name in ("a[1].json", "a[1].partial7.json", "a1.partial7.json", "a[1].partial7.csv"):
        (tmp_path / name).touch()
    clear_partial(tmp_path / "a[1].json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a1.partial7.json", "a[1].json", "a[1].partial7.csv"]
