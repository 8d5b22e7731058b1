"""Pages of runs in a browser: two videos in step, by mouse and keyboard, on wide and narrow windows, light and dark."""

import dataclasses
import io
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adaspa_cli.files.typed_json import from_json
from adaspa_cli.files.videos import write_video
from adaspa_cli.report.compare import Compared
from adaspa_cli.report.difference import measure_difference
from adaspa_cli.report.heat import heats
from adaspa_cli.report.page import page
from adaspa_cli.report.schema import ComparedRun, CompensationUse, LayerCompensation, Report, Search, Setting, Step
from tests.browser import SECONDS, Browser, Tab, check_readable
from tests.reports import small_report

FRAMES, HEIGHT, WIDTH = 8, 48, 64
WHERE = "[...document.querySelectorAll('video')].map((v) => Math.floor(v.currentTime * v.dataset.fps))"
SEEN = (
    "window.seen = []; (function look() { const frame = Number(document.querySelector('.scrub').value);"
    "if (seen.at(-1) !== frame) seen.push(frame); requestAnimationFrame(look); })()"
)
DONE = "[...document.querySelectorAll('video')].every((v) => !v.seeking && v.readyState > 1)"


def at(frame: int) -> str:
    """Whether both videos show a frame. Between two seeks no video is seeking either, and shows an earlier one."""
    return f"{DONE} && {WHERE}.every((frame) => frame === {frame})"


def clip(shade: int) -> NDArray[np.uint8]:
    """Frames that get lighter, the left half of them by a shade more."""
    frames = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    frames += (np.arange(FRAMES, dtype=np.uint8) * 16 + 40)[:, None, None, None]
    frames[:, :, : WIDTH // 2] += np.uint8(shade)
    return frames


def full_report(**changed: Any) -> Report:
    """A report that fills every part of a page."""
    heads = tuple(0.1 + 0.02 * head for head in range(24))
    report = from_json(Report, small_report(prompt="a circle, and a very long prompt of " + "word" * 30))
    return dataclasses.replace(
        report,
        settings={**report.settings, "magcache_ratios": Setting([1.0 + n / 7 for n in range(30)], "model preset")},
        video=dataclasses.replace(report.video, frames=FRAMES, height=HEIGHT, width=WIDTH),
        steps=tuple(Step(n, "sparse" if n else "cached search", 1.0, 0.25, 0.2, sparsity=0.8) for n in range(50)),
        searches=tuple(Search(layer, "cond", 0, step, False, heads, heads) for layer in range(9) for step in (0, 3)),
        compensation=CompensationUse(
            0.1, 0.1, 0.2, 0.1, steps=(1, 2), layers=(LayerCompensation(0, *[(0.1, 0.2)] * 3),)
        ),
        **changed,
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run with the dense one beside it, whose video has half as many frames a second."""
    folder = tmp_path_factory.mktemp("player")
    write_video(folder / "a.mp4", clip(40), 8)
    write_video(folder / "b.mp4", clip(0), 4)
    dense = full_report()
    dense = dataclasses.replace(dense, video=dataclasses.replace(dense.video, fps=4))
    beside = Compared(dense, folder / "b.mp4")
    files = (folder / "a.mp4", folder / "b.mp4")
    report = full_report(compared=measure_difference(full_report(), beside, files, lossless=False))
    path = folder / "a.report.html"
    path.write_text(page(report, folder / "a.mp4", beside), encoding="utf-8")
    return path.as_uri()


def shows(tab: Tab, *expected: int, within: int) -> None:
    """Check brightnesses along a row of the stage at a tenth, four and seven tenths of it, once they are painted."""
    box = tab.evaluate(
        "(() => { const stage = document.querySelector('.stage'); stage.scrollIntoView();"
        "const b = stage.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; })()"
    )
    end = time.monotonic() + SECONDS
    while True:
        picture = Image.open(io.BytesIO(tab.picture())).convert("RGB").crop(tuple(map(round, box)))
        row = np.asarray(picture)[50].mean(1)
        found = [row[round(share * len(row))] for share in (0.1, 0.4, 0.7)]
        if found == pytest.approx(expected, abs=within):
            return
        assert time.monotonic() < end, (found, expected)


def test_a_page_is_readable_at_every_width(browser: Browser, compared: str) -> None:
    check_readable(browser, compared)


def test_two_videos_play_in_step(browser: Browser, compared: str) -> None:
    with browser.tab(compared) as tab:
        tab.evaluate(SEEN)
        tab.wait("document.querySelector('.scrub').value > 2")  # it starts by itself
        apart = tab.evaluate("[...document.querySelectorAll('video')].map((v) => v.currentTime * v.dataset.fps)")
        assert abs(apart[0] - apart[1]) < 1.5
        tab.wait("seen.some((frame, at) => at && frame < seen[at - 1])")  # and begins anew
        tab.click(".play")
        assert tab.evaluate("[...document.querySelectorAll('video')].every((v) => v.paused)")
        tab.evaluate("document.querySelector('.scrub').focus()")
        tab.press("Home")
        for key in ("ArrowRight", "ArrowRight", ".", ".", ","):
            tab.press(key)
        tab.wait(at(3))
        said = tab.evaluate("document.querySelector('.said').textContent")
        assert re.fullmatch(r"frame 4 of 8 · PSNR 19\.\d\d dB · SSIM 0\.\d{4}", said)
        tab.click(".chart .plot", x=0.999)
        tab.wait(at(FRAMES - 1))
        assert tab.errors == []


@pytest.mark.parametrize(
    ("psnr", "ssim", "axes"),
    [
        ([45.1, 45.3], [0.99, 0.98], ["50", "20", "1.0", "0.8"]),  # a flat line stays flat
        ([100.0, 12.5], [1.0, 0.63], ["100", "10", "1.0", "0.6"]),
        ([20.0, 50.0], [-0.05, 0.8], ["50", "20", "1.0", "-0.1"]),
    ],
)
def test_axes_are_the_same_on_all_pages_unless_a_value_lies_outside(
    browser: Browser, tmp_path: Path, psnr: list[float], ssim: list[float], axes: list[str]
) -> None:
    write_video(tmp_path / "a.mp4", clip(0)[:2], 8)
    video = dataclasses.replace(full_report().video, frames=2)
    run = ComparedRun("full", 1.0, False, tuple(psnr), tuple(ssim), dense=True)
    report = dataclasses.replace(full_report(compared=run), video=video)
    path = tmp_path / "a.report.html"
    path.write_text(page(report, tmp_path / "a.mp4", Compared(report, tmp_path / "a.mp4")), encoding="utf-8")
    with browser.tab(path.as_uri()) as tab:
        said = tab.evaluate("[...document.querySelectorAll('.high, .low')].map((part) => part.textContent)")
        assert said == axes
        lines = tab.evaluate("[...document.querySelectorAll('polyline')].map((line) => line.getAttribute('points'))")
        for line, values, (high, low) in zip(lines, (psnr, ssim), (axes[:2], axes[2:]), strict=True):
            ups = [float(point.split(",")[1]) for point in line.split()]
            top, bottom = float(high), float(low)
            assert ups == pytest.approx([100 * (top - value) / (top - bottom) for value in values], abs=0.01)
        ranges = tab.evaluate("[...document.querySelectorAll('.range')].map((part) => part.textContent)")
        assert ranges[0] == f": {min(psnr):.2f} to {max(psnr):.2f}"
        assert tab.errors == []


def test_slider_and_difference(browser: Browser, compared: str) -> None:
    """The left half of the first video is lighter by 40 than that of the second; the right halves are equal."""
    with browser.tab(compared) as tab:
        tab.wait("document.querySelector('.scrub').value > 0")  # it starts by itself; a click before would start it
        tab.click(".play")
        tab.evaluate("document.querySelector('.scrub').focus()")
        tab.press("Home")
        tab.wait(DONE)
        tab.evaluate("document.querySelectorAll('figcaption, .handle').forEach((part) => part.remove())")
        tab.click("button[data-view=slider]")
        tab.click(".stage", x=0.25)
        shows(tab, 80, 40, 40, within=4)
        for _ in range(3):
            tab.press(".")
        shows(tab, 128, 88, 88, within=4)
        for _ in range(3):
            tab.press(",")
        tab.press("End")  # of the slider, which has the focus: the first video alone
        shows(tab, 80, 80, 40, within=4)
        tab.click("button[data-view=difference]")
        shows(tab, 160, 160, 0, within=16)  # 4 x
        assert tab.evaluate("document.querySelector('button[data-view=difference]').ariaPressed") == "true"
        assert tab.errors == []


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(40), 8)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    beside = Compared(full_report(), tmp_path / "b.mp4")
    found = measure_difference(full_report(), beside, (tmp_path / "a.mp4", tmp_path / "b.mp4"), lossless=False)
    assert (found.psnr, found.mean("psnr")) == ((), None)
    text = page(full_report(compared=found), tmp_path / "a.mp4", beside)
    assert "PSNR and SSIM are not available: cannot read" in text
    write_video(tmp_path / "c.mp4", clip(0)[:4], 8)
    shorter = measure_difference(full_report(), beside, (tmp_path / "a.mp4", tmp_path / "c.mp4"), lossless=False)
    assert shorter.reason == "the videos differ in shape, [8, 48, 64, 3] and [4, 48, 64, 3]"


def test_maps_of_one_figure_share_their_colours() -> None:
    searches = [Search(0, "cond", 0, step, False, (0.1 + step / 10,), (0.9 - step / 10,)) for step in (0, 3)]
    found = heats(searches)
    assert {(heat.name, round(heat.low, 6), round(heat.high, 6), heat.shared) for heat in found} == {
        ("Density", 0.1, 0.4, 2),
        ("Recall", 0.6, 0.9, 2),
    }
    assert [heat.strength(heat.rows[0][1][0]) for heat in found if heat.name == "Density"] == [0, 1]


def test_a_name_cannot_end_the_data_of_the_script(tmp_path: Path) -> None:
    """``<!--<script>`` would keep the element open up to the end of the page."""
    (video := tmp_path / "a.mp4").touch()
    report, name = full_report(), "<!--<script></script>"
    named = dataclasses.replace(report, settings={**report.settings, "method": Setting(name, "flag")})
    text = page(named, video, Compared(report, video))
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', text)
    assert "<" not in data
    assert name in json.loads(data)["names"][0]
