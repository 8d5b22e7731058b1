"""The site builds without a warning, and its pages load nothing from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.browser import Browser, chromium

ROOT = Path(__file__).resolve().parent.parent
# Lists, tables, links and emphasis that Python-Markdown did not take for such, though GitHub does.
LEFT_OVER = re.compile(r"^\s*\|.*\||^\s*[-*] |^\d+\. |\*\*|\]\(|```|^#+ ", re.MULTILINE)
LOADED_BY = {"script": "src", "img": "src", "iframe": "src", "source": "srcset", "video": "src", "link": "href"}
_CUT = """
[...document.querySelectorAll(":is(.language-sh, .language-bash, .language-text) code")]
  .filter((code) => code.scrollWidth > code.clientWidth)
  .concat([...document.querySelectorAll("code .flag")].filter((flag) => flag.getClientRects().length > 1))
  .map((cut) => cut.textContent.slice(0, 60))
"""


class Read(HTMLParser):
    """What a page loads (not what it links to), and the text of its paragraphs without code."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.paragraphs: list[str] = []
        self._inside: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for key, value in attrs if key == LOADED_BY.get(tag) and value]
        if tag in ("p", "code"):
            self._inside.append(tag)
            self.paragraphs += [""] * (tag == "p")

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if self._inside == ["p"]:
            self.paragraphs[-1] += data


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for package in ("material", "mkdocstrings"):
        pytest.importorskip(package, reason="pip install 'adaspa[docs]'")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # not with --quiet: warnings would not count then
    pages = {page.relative_to(tmp_path).as_posix(): Read(page) for page in tmp_path.rglob("*.html")}
    assert {"index.html", "methods.html", "changelog.html", "reference/python.html"} <= pages.keys()
    elsewhere = [
        f"{name}: {address}"
        for name, read in pages.items()
        for address in read.addresses
        if re.match(r"(https?:)?//", address)
    ]
    for sheet in tmp_path.rglob("*.css"):
        urls = re.findall(r"url\([\"']?(?:https?:)?//[^)]*", sheet.read_text(encoding="utf-8"))
        elsewhere += [f"{sheet.name}: {url}" for url in urls]
    assert elsewhere == []
    texts = [f"{name}: {text}" for name, read in pages.items() for text in read.paragraphs if LEFT_OVER.search(text)]
    assert texts == []
    reference = (tmp_path / "reference" / "python.html").read_text(encoding="utf-8")
    assert "adaspa_cli.sampling.handle.apply" in reference
    assert ":class:" not in reference
    if executable := chromium():
        with Browser(executable) as browser:
            _look(browser, tmp_path)


def _look(browser: Browser, site: Path) -> None:
    """A phone shows whole pages, whose tables scroll in themselves, in the colours that the system asks for.

    Commands are seen whole on it, and no line ends within the name of a flag.
    """
    flags = 0
    pages = ("index", "reference/configuration", "figures", "mask-files", "models", "performance", "recipes")
    for page in (f"{name}.html" for name in pages):
        with browser.tab((site / page).as_uri(), width=390, dark=True) as tab:
            assert tab.too_wide() == []
            assert tab.evaluate("document.body.dataset.mdColorScheme") == "slate"
            assert tab.evaluate(_CUT) == []
            flags += tab.evaluate("document.querySelectorAll('.language-sh code .flag').length")
            assert [address for address in tab.requests if not address.startswith(("file:", "data:"))] == []
            assert tab.errors == []
    assert flags > 50
    with browser.tab((site / "reference" / "python.html").as_uri()) as tab:  # from a folder, without a server
        tab.write(".md-search__input", "remainder")
        tab.press("End")  # the theme reads the field when a key is released, which text put in at once lacks
        tab.wait("document.querySelector('.md-search-result__meta').textContent.includes('matching documents')")
        assert tab.evaluate("document.querySelector('.md-search-result__link').href.includes('adaspa-plus.html')")
        assert tab.errors == []
