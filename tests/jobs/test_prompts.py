"""Prompts: in the order they were given, from files as people write them; none and empty ones are refused."""

from pathlib import Path

import pytest

from adaspa_cli.config.schema import PromptConfig
from adaspa_cli.errors import ConfigError
from adaspa_cli.jobs.prompts import collect_prompts


def test_prompts_come_in_order_those_of_the_file_last(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("three\nfour\n")
    assert collect_prompts(PromptConfig(("one", "two"), str(file))) == ["one", "two", "three", "four"]


def test_empty_lines_and_comments_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# a list\n\n  a circle  \n   \n#another\na # in the middle stays\n")
    assert collect_prompts(PromptConfig((), str(file))) == ["a circle", "a # in the middle stays"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_line_endings_of_other_systems(tmp_path: Path, ending: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(f"ein grüner Kreis{ending or chr(10)}🟢{ending}".encode())
    assert collect_prompts(PromptConfig((), str(file))) == ["ein grüner Kreis", "🟢"]


@pytest.mark.parametrize("within", ["\u2028", "\x0b", "\x0c", "\x85", "\x1c"])
def test_what_does_not_end_a_line_in_an_editor_does_not_end_a_prompt(tmp_path: Path, within: str) -> None:
    """Word processors and web pages put these where a line wraps."""
    path = tmp_path / "prompts.txt"
    path.write_text(f"a red circle{within}moves left\na star\n", encoding="utf-8")
    assert collect_prompts(PromptConfig(prompts=str(path))) == ["a red circle moves left", "a star"]


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a circle\n", encoding="utf-8-sig")
    assert collect_prompts(PromptConfig((), str(file))) == ["a circle"]
    file.write_text("# a comment\na circle\n", encoding="utf-8-sig")
    assert collect_prompts(PromptConfig((), str(file))) == ["a circle"]


def test_a_path_below_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompts.txt").write_text("a circle\n")
    assert collect_prompts(PromptConfig((), "~/prompts.txt")) == ["a circle"]


def test_no_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match="no prompt was given") as caught:
        collect_prompts(PromptConfig())
    assert "--prompt" in str(caught.value.hint)


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(ConfigError, match="a prompt is empty"):
        collect_prompts(PromptConfig(("a circle", prompt)))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read prompts from .*missing\.txt: No such file"):
        collect_prompts(PromptConfig((), str(tmp_path / "missing.txt")))
    with pytest.raises(ConfigError, match="Is a directory"):
        collect_prompts(PromptConfig((), str(tmp_path)))
    latin = tmp_path / "latin.txt"
    latin.write_bytes("ein grüner Kreis".encode("latin-1"))
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        collect_prompts(PromptConfig((), str(latin)))


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(text)
    with pytest.raises(ConfigError, match="holds no prompt"):
        collect_prompts(PromptConfig((), str(file)))
