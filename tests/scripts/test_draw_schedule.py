"""The picture of a run's schedule shows what the methods really do."""

from pathlib import Path

from scripts.draw_schedule import bars, draw


def test_the_bars_are_the_methods_own_plans() -> None:
    found = list(bars("adaspa"))
    assert [step for step, bar in enumerate(found) if bar.phase == "dense"] == list(range(10))
    assert [found[step].phase for step in (10, 11, 30, 49)] == ["search", "sparse", "cached search", "sparse"]
    assert abs(found[11].density - 0.2) < 1e-9
    ramp = [bar.density for bar in bars("adaspa-plus")]
    assert ramp[0] == 1
    assert ramp == sorted(ramp, reverse=True)
    assert abs(ramp[-1] - 0.05) < 1e-9


def test_it_draws_a_file(tmp_path: Path) -> None:
    draw(tmp_path / "schedule.png")
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")
