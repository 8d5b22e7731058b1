"""The site builds without a warning, and its pages load nothing from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOADED_BY = {"script": "src", "img": "src", "iframe": "src", "source": "srcset", "video": "src", "link": "href"}


class Loaded(HTMLParser):
    """The addresses that a page loads, not those that it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for key, value in attrs if key == LOADED_BY.get(tag) and value]


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for package in ("material", "mkdocstrings"):
        pytest.importorskip(package, reason="pip install 'adaspa[docs]'")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # not with --quiet: warnings would not count then
    pages, elsewhere = [*tmp_path.rglob("*.html")], []
    assert {"index.html", "methods.html", "changelog.html"} <= {page.name for page in pages}
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        elsewhere += [f"{page.name}: {address}" for address in loaded.addresses if re.match(r"(https?:)?//", address)]
    for sheet in tmp_path.rglob("*.css"):
        urls = re.findall(r"url\([\"']?(?:https?:)?//[^)]*", sheet.read_text(encoding="utf-8"))
        elsewhere += [f"{sheet.name}: {url}" for url in urls]
    assert elsewhere == []
    reference = (tmp_path / "reference" / "python.html").read_text(encoding="utf-8")
    assert "adaspa_cli.sampling.handle.apply" in reference
    assert ":class:" not in reference
