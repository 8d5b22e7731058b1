"""``adaspa gallery``: what it shows of a folder, and the page in a browser."""

import base64
import errno
import io
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from adaspa_cli.app import app
from adaspa_cli.errors import OutputError, UsageError
from adaspa_cli.files.videos import write_video
from adaspa_cli.gallery.collect import collect
from adaspa_cli.gallery.page import write_gallery
from adaspa_cli.gallery.poster import poster
from tests.browser import Browser, Tab, check_readable
from tests.pages import read
from tests.processes import at_once
from tests.reports import small_quality, small_report


def settings(**values: Any) -> dict[str, Any]:
    return {"settings": {key: {"value": value, "origin": ""} for key, value in values.items()}}


DENSE = settings(method="full", algorithm="full")
SPARSE = settings(method="adaspa", algorithm="adaspa", sparsity=0.8)
FASTER = {"total": 2.0, "text_encoding": 0.1, "denoising": 1.5, "attention": 1.0, "decoding": 0.2, "writing": 0.1}


def put(folder: Path, name: str, report: dict[str, Any] | None = None) -> Path:
    """A small video, with a report and a page if it has them."""
    folder.mkdir(parents=True, exist_ok=True)
    video = folder / f"{name}.mp4"
    write_video(video, np.full((5, 32, 48, 3), 90, np.uint8), 8)
    if report is not None:
        report["video"]["file"] = video.name
        (folder / f"{name}.report.json").write_text(json.dumps(report))
        (folder / f"{name}.report.html").write_text("<title>the page</title>")
    return video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense and a sparse run of the same video, one that was compared, one that was measured, and a bare video."""
    folder = tmp_path_factory.mktemp("gallery") / "my <videos>"
    put(folder / "dense", "circle", small_report(**DENSE))
    put(folder, "circle & more #1", small_report(**SPARSE, seconds=FASTER, prompt="a circle"))
    beside = {"method": "full", "dense": True, "speed_up": 3.0, "lossless": False, "psnr": [30, 34], "ssim": [1, 1]}
    put(
        folder,
        "star",
        small_report(**SPARSE, seed=7, prompt="a <b>star</b>", compared=beside, created="2026-02-01T00:00"),
    )
    put(
        folder, "square", small_report(**settings(method="adaspa", algorithm="adaspa", sparsity=0.9), prompt="a square")
    )
    (folder / "square.quality.json").write_text(json.dumps(small_quality(25.0)))
    put(folder, "holiday")
    put(folder / ".hidden", "no")
    (folder / "holiday.lossless.mkv").write_bytes(b"no video of a gallery")
    return folder


def test_what_is_known_of_each_video(folder: Path) -> None:
    found = {entry.video.relative_to(folder).as_posix(): entry for entry in collect(folder, pytest.fail)}
    assert list(found) == ["circle & more #1.mp4", "dense/circle.mp4", "holiday.mp4", "square.mp4", "star.mp4"]
    figures = {name: (entry.sparsity, entry.speed_up, entry.psnr) for name, entry in found.items()}
    assert figures == {
        "circle & more #1.mp4": ("0.8", 2.0, None),  # 4 s of the dense run over 2 s
        "dense/circle.mp4": (None, None, None),
        "holiday.mp4": (None, None, None),
        "square.mp4": ("0.9", None, 25.0),
        "star.mp4": ("0.8", 3.0, 32.0),
    }
    assert found["holiday.mp4"].page is None


def test_a_run_with_a_cache_is_no_dense_run(tmp_path: Path) -> None:
    cache = {"name": "pab", "unit": "attention", "computed": 1, "possible": 2, "skipped": 0.5}
    put(tmp_path, "cached", small_report(**DENSE, cache=cache))
    put(tmp_path, "sparse", small_report(**SPARSE))
    assert [entry.speed_up for entry in collect(tmp_path, pytest.fail)] == [None, None]


def test_a_ramp_is_named_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    step = {"phase": "sparse", "seconds": 1.5, "attention": 0.5, "density": 0.2}
    steps = [{**step, "step": number, "sparsity": value} for number, value in enumerate((0.4, 0.95))]
    put(tmp_path, "ramp", small_report(**SPARSE, steps=steps))
    assert [entry.sparsity for entry in collect(tmp_path, pytest.fail)] == ["0.4 rising to 0.95"]
    page, _ = write_gallery(tmp_path, pytest.fail)
    assert "0.4 rising to 0.95" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "other", [{"gpus": 4}, {"linear": "fp8"}, {"compile": True}, {"guidance_scale": 1.0}, {"offload": "model"}], ids=str
)
def test_a_speed_up_is_of_the_method_alone(tmp_path: Path, other: dict[str, Any]) -> None:
    sparse = {"method": "adaspa", "algorithm": "adaspa", "sparsity": 0.8}
    put(tmp_path, "dense", small_report(**DENSE))
    put(tmp_path, "other", small_report(**settings(**sparse, **other)))
    put(tmp_path, "same", small_report(**settings(**sparse, head_deal="even")))
    assert [entry.speed_up for entry in collect(tmp_path, pytest.fail)] == [None, None, 1.0]


def test_a_report_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    put(tmp_path, "old", small_report(format=99))
    notes: list[str] = []
    (entry,) = collect(tmp_path, notes.append)
    assert entry.report is None
    assert "format 99" in notes[0]


def test_broken_reports_and_odd_names(tmp_path: Path) -> None:
    """A report that never ends in brackets, one of no time at all, and letters that UTF-8 has not."""
    put(tmp_path, "deep", small_report())
    (tmp_path / "deep.report.json").write_text("[" * 100_000)
    put(tmp_path, "dense", small_report(**DENSE))
    put(tmp_path, "none", small_report(**SPARSE, seconds=FASTER | {"total": 0.0}, prompt="a circle"))
    put(tmp_path, "half", small_report(prompt="half a letter: \ud83d"))
    (tmp_path / os.fsdecode(b"\xff#.mp4")).touch()
    notes: list[str] = []
    page, count = write_gallery(tmp_path, notes.append)
    assert count == 5
    assert ["deep.report.json is not JSON" in note for note in notes] == [True]
    text = page.read_text(encoding="utf-8")
    assert 'href="%FF%23.mp4">?#.mp4<' in text
    assert "half a letter: ?" in text


def test_folders_that_cannot_be_read_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "x")
    put(tmp_path / "closed", "y")
    scan = os.scandir

    def refuse(path: str) -> Any:
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    closed, notes = tmp_path / "closed", []
    assert [entry.video.name for entry in collect(tmp_path, notes.append)] == ["x.mp4"]
    assert "closed: Permission denied" in notes[0]
    closed = tmp_path
    with pytest.raises(OutputError, match="Permission denied"):
        collect(tmp_path, pytest.fail)


def test_what_is_no_folder_of_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        write_gallery(tmp_path / "none", pytest.fail)
    with pytest.raises(UsageError, match="no videos in"):
        write_gallery(tmp_path, pytest.fail)
    assert list(tmp_path.iterdir()) == []


def test_tiles_have_pictures_before_their_videos_are_loaded(folder: Path, tmp_path: Path) -> None:
    parsed = read(write_gallery(folder, pytest.fail)[0].read_text(encoding="utf-8"))
    posters = [str(attributes["poster"]) for tag, attributes in parsed.tags if tag == "video"]
    assert len(posters) == 5
    for found in posters:
        picture = Image.open(io.BytesIO(base64.b64decode(found.removeprefix("data:image/jpeg;base64,"))))
        assert picture.size == (48, 32)
        assert np.asarray(picture.convert("L")) == pytest.approx(90, abs=4)
    (tmp_path / "x.mp4").write_bytes(b"no video")
    assert poster(tmp_path / "x.mp4") is None


def test_it_says_how_to_get_speed_up_and_psnr_where_they_are_missing(folder: Path, tmp_path: Path) -> None:
    put(tmp_path, "dense", small_report(**DENSE))
    assert "--compare-with" not in write_gallery(tmp_path, pytest.fail)[0].read_text(encoding="utf-8")
    assert "--compare-with" in write_gallery(folder, pytest.fail)[0].read_text(encoding="utf-8")


def test_a_page_of_others_is_not_replaced(tmp_path: Path) -> None:
    put(tmp_path, "x")
    (tmp_path / "index.html").write_text("my site")
    with pytest.raises(OutputError, match="was not made by adaspa gallery"):
        write_gallery(tmp_path, pytest.fail)
    assert (tmp_path / "index.html").read_text() == "my site"


def test_several_processes_renew_it_at_once(tmp_path: Path) -> None:
    put(tmp_path, "x")
    write_gallery(tmp_path, pytest.fail)
    put(tmp_path, "y")
    assert at_once(*[partial(write_gallery, tmp_path, print)] * 4) == [0] * 4
    page = read((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert [attributes["data-src"] for tag, attributes in page.tags if tag == "video"] == ["x.mp4", "y.mp4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "x.mp4", "y.mp4"]


def test_the_command(folder: Path) -> None:
    result = CliRunner().invoke(app, ["gallery", str(folder), "--json"])
    assert json.loads(result.stdout) == {"page": str(folder / "index.html"), "videos": 5}
    refused = CliRunner().invoke(app, ["gallery", str(folder / "none")])
    assert refused.exit_code == 2
    assert "is not a folder" in refused.stderr


def test_nothing_heavy_is_imported(folder: Path) -> None:
    code = (
        f"import sys; sys.argv = ['adaspa', 'gallery', {str(folder)!r}]; from adaspa_cli.app import main; "
        "assert main() == 0; assert not {'torch', 'diffusers', 'numpy', 'matplotlib'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def names(tab: Tab) -> list[str]:
    """Titles of the cards that are shown, in their order."""
    shown = tab.evaluate("[...document.querySelectorAll('.card:not([hidden]) .name')].map((name) => name.textContent)")
    return list(shown)


def choose(tab: Tab, selector: str, value: str) -> None:
    tab.evaluate(
        f"(() => {{ const field = document.querySelector({selector!r}); field.value = {value!r};"
        "field.dispatchEvent(new Event('change')); })()"
    )


def test_it_filters_sorts_and_plays(browser: Browser, folder: Path) -> None:
    page, _ = write_gallery(folder, pytest.fail)
    with browser.tab(page.as_uri()) as tab:
        assert names(tab) == ["a circle", "a circle", "holiday.mp4", "a square", "a <b>star</b>"]
        assert tab.evaluate("[...document.querySelectorAll('select[data-key]')].map((s) => s.dataset.key)") == [
            *("method", "sparsity", "seed")
        ]
        choose(tab, "#sort", "speed")
        assert names(tab) == ["a <b>star</b>", "a circle", "a circle", "holiday.mp4", "a square"]
        choose(tab, "#sort", "psnr")
        assert names(tab)[:2] == ["a <b>star</b>", "a square"]
        choose(tab, "#sort", "seconds")
        assert names(tab)[0] == "a circle"
        choose(tab, "[data-key=method]", "adaspa")
        choose(tab, "[data-key=sparsity]", "0.8")
        assert names(tab) == ["a circle", "a <b>star</b>"]
        tab.write("#text", "STAR b")
        assert names(tab) == ["a <b>star</b>"]
        assert tab.evaluate("document.getElementById('count').textContent") == "1 of 5 videos"
        tab.write("#text", "zebra")
        tab.click("#clear")
        assert len(names(tab)) == 5
        tab.wait("document.querySelector('video').readyState > 1")
        tab.hover(".frame")
        tab.wait("document.querySelector('video').currentTime > 0.2")
        tab.hover("h1")
        tab.wait("document.querySelector('video').paused")
        tab.evaluate("document.querySelector('.frame').focus()")
        tab.press("Enter")
        tab.wait("!document.querySelector('video').paused")
        assert tab.errors == []
        tab.click(".card .name")
        tab.wait("document.title === 'the page'")


def test_it_is_readable_at_every_width(browser: Browser, folder: Path) -> None:
    check_readable(browser, write_gallery(folder, pytest.fail)[0].as_uri())
