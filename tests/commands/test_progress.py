"""What a run says while it goes on, with and without a terminal."""

import pytest

from adaspa_cli.commands.progress import ProgressObserver
from adaspa_cli.console import Console


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def told(quiet: bool = False) -> None:
    """Two videos of three steps, of 20 s each."""
    console, clock = Console(quiet=quiet), Clock()
    with console.progress() as progress:
        observer = ProgressObserver(console, progress, clock)
        observer.loading("tiny")
        observer.note("the prompt is long")
        observer.started(2, 3, "cpu")
        for number in range(2):
            observer.video(number, "a red circle moves left\n" + 500 * "x", 0)
            for step in range(3):
                clock.now += 20
                observer.step_done(step)


def test_without_a_terminal_there_is_a_line_a_video_and_one_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    told()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["loading tiny", "the prompt is long", "attention backend: cpu"]
    assert [line.partition(",")[0].partition(" x")[0] for line in lines[3:]] == [
        "[1/2] a red circle moves left",
        "[1/2] 2 of 6 steps",
        "[2/2] a red circle moves left",
        "[2/2] 5 of 6 steps",
    ]
    assert all(line.endswith(" left") for line in lines if "step" in line)
    assert max(map(len, lines)) < 110


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    told(quiet=True)
    assert capsys.readouterr().err == ""


def test_a_comparison_says_now_and_then_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console, clock = Console(), Clock()
    with console.progress() as progress:
        observer = ProgressObserver(console, progress, clock)
        for done in range(0, 129, 8):
            clock.now += 4
            observer.comparing(done, 128)
        (task,) = progress.tasks
    assert task.fields["phase"] == "compared 100%"
    assert len(task.fields["phase"]) <= 13  # the width of its column
    assert capsys.readouterr().err.splitlines() == [
        f"compared {share}% of the frames with the other video" for share in (44, 94)
    ]
