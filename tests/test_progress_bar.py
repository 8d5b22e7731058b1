"""The progress bar on terminals of any width."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from adaspa_cli.progress_bar import columns


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_step_the_phase_and_the_time_left_stay(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    progress = Progress(*columns(console), console=console, get_time=iter(range(100)).__next__)
    task = progress.add_task("[1/12] a red circle moves left on a blue background", total=168, phase="cached search")
    progress.advance(task, 84)
    progress.advance(task, 1)
    console.print(progress)
    shown = console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]
    assert "\n" not in shown
    assert len(shown) <= width
    assert "━" * 4 in shown
    assert "85/168 cached search 0:01:23" in shown
    assert ("[1/12] a red" in shown) == (width >= 80)
    assert ("blue background" in shown) == (width == 200)
