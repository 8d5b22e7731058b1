"""The driver that other tests look at pages with: it finds what is wrong with a page."""

from pathlib import Path

import pytest

from tests.browser import Browser, BrowserError

PAGE = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body { margin: 0; color: #999; background: #fff; }
@media (prefers-color-scheme: dark) { body { background: #000; } } div { overflow-x: auto; }</style></head>
<body><p style="width: 600px">wide</p><div><p style="width: 600px">scrolls</p></div>
<input id="in"><button onclick="this.textContent = document.getElementById('in').value">press</button>
<script>console.error("told", 7); setTimeout(() => missing());</script></body></html>"""


@pytest.fixture
def page(tmp_path: Path) -> str:
    path = tmp_path / "page.html"
    path.write_text(PAGE, encoding="utf-8")
    return path.as_uri()


def test_it_finds_what_is_wrong_with_a_page(browser: Browser, page: str) -> None:
    with browser.tab(page, width=390) as tab:
        assert tab.evaluate("document.title") == "A page"
        assert tab.too_wide() == ["p.: 600 of 390 px", "page: 600 px"]
        assert tab.faint() == ["wide: 2.85 (p)", "scrolls: 2.85 (p)"]
        tab.wait("true")
        assert [error.split("\n")[0] for error in tab.errors] == ["told 7", "ReferenceError: missing is not defined"]
        assert tab.requests == [page]
        tab.look(width=800, dark=True)
        assert tab.too_wide() == []
        assert tab.faint() == []


def test_it_clicks_and_types(browser: Browser, page: str) -> None:
    with browser.tab(page) as tab:
        tab.write("#in", "words")
        tab.press("x")
        tab.press("Tab")
        tab.press("Enter")
        assert tab.evaluate("document.querySelector('button').textContent") == "wordsx"
        with pytest.raises(BrowserError, match="there is no #no"):
            tab.click("#no")
        with pytest.raises(BrowserError, match="ReferenceError"):
            tab.evaluate("nothing + 1")
