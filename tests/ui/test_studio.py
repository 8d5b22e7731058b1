"""Runs of the page, made one after another on one pipeline."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from adaspa_cli.config import resolve
from adaspa_cli.errors import AdaspaError
from adaspa_cli.files.typed_json import from_json
from adaspa_cli.jobs.write import Made
from adaspa_cli.models import loading
from adaspa_cli.report.schema import Report
from adaspa_cli.ui.form import Start, Wanted
from adaspa_cli.ui.panels import report_panel, result_panel
from adaspa_cli.ui.progress import StoppedError
from adaspa_cli.ui.studio import Run, Studio
from tests.pipelines import PROMPT, cogvideox_image, save, small_run
from tests.reports import small_report

Make = Callable[..., Run]


@pytest.fixture
def said() -> list[AdaspaError]:
    return []


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Models that were loaded."""
    load, found = loading.load_pipeline, []

    def counted(config: Any, **more: Any) -> Any:
        found.append(config)
        return load(config, **more)

    monkeypatch.setattr(loading, "load_pipeline", counted)
    return found


@pytest.fixture
def wanted(hunyuan_folder: Path) -> Wanted:
    return Wanted(str(hunyuan_folder), "adaspa", PROMPT, seed=0, steps=4, height=32, width=48, frames=5)


@pytest.fixture
def studio(hunyuan_folder: Path, tmp_path: Path, said: list[AdaspaError]) -> Iterator[Studio]:
    settings = small_run(hunyuan_folder, tmp_path)
    of_the_form = ("prompt", "seed", "steps", "height", "width", "frames", "method", "sparsity")
    settings = {key: value for key, value in settings.items() if key not in of_the_form}
    one = Studio(Start(settings), said.append)
    yield one
    one.close()


def made(studio: Studio, wanted: Wanted) -> Run:
    run = studio.begin(wanted)
    for _ in run.follow():
        pass
    return run


def test_videos_of_several_methods_on_one_pipeline(studio: Studio, wanted: Wanted, loads: list[Any]) -> None:
    for method in ("adaspa", "full", "adaspa"):
        run = made(studio, replace(wanted, method=method))
        assert run.error is None
        assert run.made[-1].report.setting("method") == method
        assert run.made[-1].place.is_file()
        assert run.page is not None
    assert run.progress.again  # the third was there
    assert len(studio.done) == 3
    assert len(loads) == 1


def test_the_dense_video_beside_it(studio: Studio, wanted: Wanted, loads: list[Any]) -> None:
    run = made(studio, replace(wanted, compare=True))
    assert [one.report.setting("method") for one in run.made] == ["full", "adaspa"]
    shown = result_panel(run)
    assert shown.index(run.made[1].place.name) < shown.index(run.made[0].place.name)
    assert "compared with dense" in shown
    assert f"{run.made[1].place.stem}.report.html" in report_panel(run)
    again = made(studio, replace(wanted, compare=True))
    assert again.page is not None
    assert again.page.count("data:video/mp4") == 2  # though both were there already
    assert len(loads) == 1


def test_what_was_loaded_for_fp8_serves_other_runs_once_it_is_whole(
    studio: Studio, hunyuan_folder: Path, loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a dense video beside one in FP8; the meta device stands for a GPU."""
    monkeypatch.setattr(loading, "choose_device", lambda _: torch.device("meta"))
    config = resolve({"model": str(hunyuan_folder), "device": "cpu"}).config.model
    places, pipes = [], []
    for linear in ("fp8", "model", "fp8"):
        pipe = studio._load(config, decode=True, linear=linear)
        pipes.append(pipe)
        places.append(pipe.transformer.transformer_blocks[0].attn.to_q.weight.device.type)
    assert places == ["cpu", "meta", "meta"]
    assert len(loads) == len({id(pipe) for pipe in pipes}) == 1


def test_what_a_model_does_not_know_is_said_of_the_video_alone(
    studio: Studio, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the dense one too, whose line differs where sparse attention may not be faster."""
    said = lambda config, _prompts: [f"not trained on this, with {config.method.method}"]  # noqa: E731
    monkeypatch.setattr("adaspa_cli.config.vocabulary.check_understood", said)
    run = made(studio, replace(wanted, compare=True))
    assert run.progress.notes == ["not trained on this, with adaspa"]


def test_a_run_that_took_longer_than_dense() -> None:
    report = from_json(Report, small_report())
    seconds = replace(report.seconds, denoising=report.seconds.denoising / 1.1)
    dense = replace(report, seconds=seconds)
    made = [Made(dense, Path("dense.mp4")), Made(report, Path("a.mp4"))]
    shown = result_panel(Run(None, made=made))
    assert "compared with dense <b>1.10 times as slow" in shown
    assert "compared with dense <b>1.10 times as fast" in result_panel(Run(None, made=made[::-1]))


def test_a_video_from_a_picture(tmp_path: Path, said: list[AdaspaError]) -> None:
    from PIL import Image

    folder, picture = save(cogvideox_image(), tmp_path / "model"), tmp_path / "picture.png"
    Image.new("RGB", (48, 32), "red").save(picture)
    settings = {"model": str(folder), "out": str(tmp_path), "device": "cpu", "dtype": "float32"}
    start = Start(settings | {"attention_backend": "reference", "block_size": 16})
    studio = Studio(start, said.append)
    wanted = Wanted(str(folder), "adaspa", PROMPT, seed=0, steps=4, height=32, width=48, frames=9)
    assert start.offer(str(folder), "adaspa").takes_image
    assert made(studio, wanted).error is not None
    assert "from a picture" in said[0].message
    run = made(studio, replace(wanted, image=str(picture)))
    assert run.error is None
    assert run.made[0].report.pictures


def test_a_wrong_size_is_an_error_in_the_page(studio: Studio, wanted: Wanted, said: list[AdaspaError]) -> None:
    run = made(studio, replace(wanted, frames=6))
    assert run.error is said[0]
    shown = result_panel(run)
    assert "4k + 1 frames, got 6" in shown
    assert "try: nearest" in shown
    assert made(studio, wanted).error is None


def test_what_nobody_expected_is_an_error_too(
    studio: Studio, wanted: Wanted, said: list[AdaspaError], loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaspa_cli.jobs import generate

    with monkeypatch.context() as patched:
        patched.setattr(generate, "write_result", lambda *_: 1 / 0)
        run = made(studio, wanted)
    assert "ZeroDivisionError" in result_panel(run)
    assert len(said) == 1
    assert made(studio, wanted).error is None
    assert len(loads) == 2  # nobody knew what state the first one was in


def test_stop(
    studio: Studio, wanted: Wanted, said: list[AdaspaError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that is made, and of one that waits."""
    load, stopped = loading.load_pipeline, Event()

    def held(config: Any, **more: Any) -> Any:
        stopped.wait(60)
        return load(config, **more)

    monkeypatch.setattr(loading, "load_pipeline", held)
    first, second, third = (studio.begin(replace(wanted, seed=seed)) for seed in range(3))
    studio.stop(second)
    assert list(second.follow()) == []
    while studio.at_work is not first:
        time.sleep(0.01)
    studio.stop(first)
    stopped.set()
    for run in (first, third):
        for _ in run.follow():
            pass
    assert isinstance(first.error, StoppedError)
    assert isinstance(second.error, StoppedError)
    assert third.error is None
    assert said == []
    assert [path.name for path in tmp_path.glob("*.mp4")] == [third.made[0].place.name]
