"""Pages are written as GitHub reads them. Python-Markdown reads lists otherwise: this turns one into the other.

GitHub indents what belongs to a list item by the width of its marker, and a list may follow a paragraph at once.
Python-Markdown wants four spaces for each level, and an empty line before the list and after an item's last paragraph.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_ITEM = re.compile(r"(?P<indent> *)(?P<marker>[-*+]|\d+[.)])(?P<space> +)(?=\S)")
_FENCE = re.compile(r" *(```+|~~~+)")
_INDENT = 4


def for_python_markdown(text: str) -> str:
    """The same page with lists as Python-Markdown reads them."""
    return "\n".join(_lines(text.split("\n"))) if text else text


def _lines(lines: list[str]) -> Iterator[str]:
    levels: list[int] = []  # where the text of each open list item begins, outermost first
    fence, before = "", ""
    later = False  # whether the paragraph is not the first of its item
    for line in lines:
        width = len(line) - len(line.lstrip(" "))
        item, fenced = None if fence else _ITEM.match(line), _FENCE.match(line)
        listed = bool(levels)
        if line.strip() and not fence:
            goes_on = width == 0 and before.strip() and item is None and fenced is None  # of the paragraph before
            levels = levels if goes_on else [level for level in levels if level <= width]
            if item is not None and before.strip() and (later or (width == 0 and not listed)):
                yield ""
            later = item is None and bool(levels) and (later or not before.strip())
        yield _moved(line, width, levels) if line.strip() else line
        if item is not None and width < _INDENT + (levels[-1] if levels else 0):  # further in it is code
            levels = [*levels, item.end()]
        if fenced is not None:
            fence = "" if fence and line.strip().startswith(fence) else fence or fenced[1]
        before = line


def _moved(line: str, width: int, levels: list[int]) -> str:
    """A line with the indentation of its level, as Python-Markdown counts it."""
    inner = max(0, width - levels[-1]) if levels else width
    return " " * (_INDENT * len(levels) + inner) + line.lstrip(" ")
