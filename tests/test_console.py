"""Results on a terminal."""

import sys
from pathlib import Path

import pytest
from rich.table import Table

from adaspa_cli.commands.masks import info
from adaspa_cli.console import Console
from adaspa_cli.errors import ModelError
from tests.mask_files import small_file


def test_a_narrow_terminal_cuts_no_figure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    table = Table(box=None, pad_edge=False)
    for title in ("density", "lowest recall", "checksum"):
        table.add_column(title, justify="right")
    table.add_row("53.7%", "41.6%", 64 * "0")
    Console().result({}, table)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert {"53.7%", "41.6%", 64 * "0"} <= set(shown.split())


@pytest.mark.parametrize("text", ["cannot read LoRA a:x: no", "[bold]row[/bold] [/nope]", "a :smile: of :cat:"])
def test_what_is_given_is_shown_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Rich knows names between colons as emoji, and tags in brackets."""
    console, table = Console(), Table.grid()
    table.add_row(text)
    console.error(ModelError(text, hint=text))
    console.note(text)
    console.result({}, text)
    console.result({}, table)
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [f"error: {text}", f"  try: {text}", text]
    assert [line.rstrip() for line in shown.out.splitlines()] == [text, text]


def test_masks_are_described_without_cuts_on_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    file = small_file(tmp_path / "masks.safetensors")
    info(file=file.path, as_json=False, quiet=False, debug=False)
    shown = capsys.readouterr().out
    assert file.checksum in shown
    assert "…" not in shown
