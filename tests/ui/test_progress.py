"""How far a run is, and how it ends early."""

import pytest

from adaspa_cli.ui.panels import progress_panel
from adaspa_cli.ui.progress import Progress, StoppedError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_counts_down_within_a_step() -> None:
    clock = Clock()
    progress = Progress(clock=clock)
    progress.started(1, 4, "cpu")
    progress.video(0, "a circle", 0)
    assert progress.left() is None
    clock.now = 2.0
    progress.phase("dense")
    progress.step_done(0)
    assert progress.left() == 6.0
    clock.now = 3.5
    assert progress.left() == 4.5
    clock.now = 20.0
    assert progress.left() == 0.0
    progress.phases = []  # another video begins while the page is drawn
    assert progress.left() is None


def test_the_panel_has_a_cell_for_each_step() -> None:
    progress = Progress()
    progress.begin("dense video")
    progress.loading("tiny")
    assert "dense video: <b>loading tiny</b>" in progress_panel(progress)
    progress.started(1, 4, "cpu")
    progress.video(0, "a circle", 0)
    for step, phase in enumerate(("dense", "search")):
        progress.phase(phase)
        progress.step_done(step)
    progress.phase("sparse")
    progress.note("tiny doesn't know: <zebra>")
    shown = progress_panel(progress)
    assert "<b>2 of 4 steps</b>, now sparse" in shown
    assert shown.count("<i") == 4 + 2  # of the steps, and of the legend
    assert 'title="step 1: search"' in shown
    assert "&lt;zebra&gt;" in shown


def test_a_run_that_is_stopped_ends_at_its_next_step() -> None:
    progress = Progress()
    progress.phase("dense")
    progress.stop()
    with pytest.raises(StoppedError):
        progress.step_done(0)
    with pytest.raises(StoppedError):
        Progress.begin(progress)


def test_a_comparison_can_be_stopped() -> None:
    progress = Progress()
    progress.begin()
    progress.comparing(8, 33)
    assert "8 of 33 frames" in progress_panel(progress)
    progress.stop()
    with pytest.raises(StoppedError):
        progress.comparing(16, 33)
