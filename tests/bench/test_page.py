"""The page of a bench: whole in itself, well-formed, and with the pictures of its videos."""

import base64
import dataclasses
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from PIL import Image

from adaspa_cli.bench.plots import figure_of, plots
from adaspa_cli.bench.render import markdown
from adaspa_cli.bench.schema import Bench, PaperFigures, Ratio, read_bench
from tests.bench.benches import PROMPTS, make, small_bench
from tests.browser import Browser, check_readable
from tests.pages import Page, loads_nothing, read

Made = tuple[str, Page, Bench]


@pytest.fixture(scope="module")
def made(hunyuan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("page")
    curve = {"plots": [{"x": "sparsity", "y": "speed_up"}], "about": "It's <b>small</b> & quick."}
    rows = [{"method": "full"}, {"method": "adaspa", "each": {"sparsity": [0.5, 0.7]}}]
    make(small_bench(folder, hunyuan_folder, rows=rows, **curve), folder / "out")
    text = (folder / "out" / "bench.html").read_text(encoding="utf-8")
    return text, read(text), read_bench(folder / "out" / "bench.json")


def test_it_is_well_formed(made: Made) -> None:
    text, page, _ = made
    assert text.startswith("<!DOCTYPE html>")
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    drawings = re.findall(r"<svg xmlns.*?</svg>", text, re.DOTALL)
    assert len(drawings) == len(plots(made[2])) >= 2
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert ids


def test_it_loads_nothing(made: Made) -> None:
    text, page, _ = made
    loads_nothing(text, page)


def test_what_a_bench_is_called_is_text(made: Made) -> None:
    text, page, _ = made
    assert "A <small> bench" in "".join(page.text)
    assert "It's <b>small</b> & quick." in "".join(page.text)
    assert "<b>small</b>" not in text


def test_strips_and_videos_of_each_row_and_prompt_are_inside(made: Made) -> None:
    _, page, bench = made
    images = [str(attributes["src"]) for tag, attributes in page.tags if tag == "img"]
    videos = [str(attributes["src"]) for tag, attributes in page.tags if tag == "video" and "src" in attributes]
    assert len(images) == len(videos) == len(PROMPTS) * len(bench.rows)
    strip = Image.open(io.BytesIO(base64.b64decode(images[0].removeprefix("data:image/jpeg;base64,"))))
    assert strip.size == (5 * (48 + 3), 32)
    assert b"ftyp" in base64.b64decode(videos[0].removeprefix("data:video/mp4;base64,"))[:16]


def test_it_is_readable_and_plays_each_row_beside_the_dense_one(browser: Browser, made: Made, tmp_path: Path) -> None:
    text, _, bench = made
    path = tmp_path / "bench.html"
    path.write_text(text, encoding="utf-8")
    check_readable(browser, path.as_uri())
    with browser.tab(path.as_uri()) as tab:
        said = tab.wait("document.querySelector('.said').textContent")
        assert re.match(r"frame 1 of 5 · PSNR \d+\.\d\d dB · SSIM", said)
        names = tab.evaluate(
            "[...document.querySelectorAll('.player')[0].querySelectorAll('option')].map((o) => o.text)"
        )
        assert names[: len(bench.rows) - 1] == [row.name for row in bench.rows[1:]]
        tab.evaluate("document.querySelector('.chooser').focus()")
        tab.press("ArrowDown")
        tab.wait(f"document.querySelector('.a figcaption').textContent === {bench.rows[2].name!r}")
        assert tab.evaluate(
            "document.querySelector('.a video').src === document.getElementById('video-0-2').src"
            " && document.querySelector('.b video').src === document.getElementById('video-0-0').src"
        )
        assert tab.errors == []


def test_figures_of_the_tables_are_on_the_page(made: Made) -> None:
    _, page, bench = made
    words = "".join(page.text)
    for row in bench.rows:
        assert row.name in words
        speed_up = row.speed_up["latency"]
        assert isinstance(speed_up, Ratio)
        assert f"{speed_up.value:.2f} x" in words


def test_the_papers_figures_are_marked_as_the_papers(made: Made) -> None:
    """No test can run what the paper ran, so its figures are put in by hand."""
    _, _, bench = made
    place = {"table": "main table", "machine": "one A100-80GB"}
    figures = PaperFigures(**place, psnr=29.07, latency=1810.23, speed_up=1.78)
    ours = dataclasses.replace(bench.rows[1], paper=figures)
    text = markdown(dataclasses.replace(bench, rows=(bench.rows[0], ours)))
    assert "Beside the paper's figures (arXiv 2502.21079), which were not measured here" in text
    (line,) = [line for line in text.splitlines() if "paper, one A100-80GB" in line]
    assert "29.07 | – | – | – | 1810.23 | 1.78 x" in line
    assert "paper," not in markdown(bench)


def test_markdown_shows_row_names_as_they_are(made: Made) -> None:
    """``<b>`` would be taken for HTML, and ``|`` ends a cell."""
    _, _, bench = made
    named = dataclasses.replace(bench.rows[0], name="full <b> | x")
    assert "| full &lt;b> \\| x |" in markdown(dataclasses.replace(bench, rows=(named, *bench.rows[1:])))


def test_dense_attention_is_no_point_over_a_setting_of_sparse_attention(made: Made) -> None:
    _, _, bench = made
    assert [figure_of(row, "sparsity") for row in bench.rows] == [None, 0.5, 0.7]
    assert [figure_of(row, "search_steps") for row in bench.rows] == [None, 1, 1]
    assert [figure_of(row, "frames") for row in bench.rows] == [5, 5, 5]
    assert figure_of(bench.rows[0], "psnr") is None
    assert figure_of(bench.rows[1], "speed_up") == bench.rows[1].speed_up["latency"].value
