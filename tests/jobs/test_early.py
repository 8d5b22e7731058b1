"""What a run says before it begins."""

import io
from pathlib import Path

import pytest

from adaspa_cli.config import resolve
from adaspa_cli.jobs.early import check_early, note_repeated


class Stdin(io.TextIOWrapper):
    """Standard input with one prompt, at a terminal or not."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__(io.BytesIO(b"a red circle\n"))
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_who_waits_for_prompts_at_a_terminal_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("sys.stdin", Stdin(terminal=terminal))
    notes: list[str] = []
    assert check_early(notes.append, resolve({"prompts": "-"}), str(tmp_path)) == ["a red circle"]
    assert notes == (["reading prompts, one a line; Ctrl-D after the last"] if terminal else [])


def test_of_many_repeated_prompts_a_few_are_named() -> None:
    """A file of thousands may be the same twice."""
    said: list[str] = []
    note_repeated(said.append, "prompt", [f"circle {number}" for number in range(1000)] * 2)
    (line,) = said
    assert line.startswith("prompt given more than once, used once: circle 0, circle 1, ")
    assert line.endswith(", circle 7 and 992 more")
