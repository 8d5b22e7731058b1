"""Pages read as a browser would: whether they are well formed, and whether they load anything."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "input"}
LOADING = {"src", "href", "poster", "data", "action", "srcset"}


class Page(HTMLParser):
    """Reads a page, and checks on the way that what is opened is closed and that nothing is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(text: str) -> Page:
    """Parse a page, and check that everything is closed at its end."""
    page = Page()
    page.feed(text)
    page.close()
    assert text.startswith("<!DOCTYPE html>")
    assert page.open == []
    return page


def loads_nothing(text: str, page: Page) -> None:
    """Check that no tag, style or script takes anything from elsewhere, and that the browser is told so too."""
    (policy,) = [attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes]
    assert str(policy).startswith("default-src 'none'; ")
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base")
        assert tag != "script" or "src" not in attributes
        for name in LOADING & set(attributes):
            assert str(attributes[name]).startswith(("data:", "#")), (tag, name)
        for name, value in attributes.items():
            if name.endswith(":href"):
                assert str(value).startswith(("data:", "#"))
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
