"""Pages that are written for GitHub, as Python-Markdown reads them."""

import re

import pytest

from scripts.site.github_markdown import for_python_markdown

CASES = {
    "a paragraph under an item": ("- one\n\n  more\n- two", "- one\n\n    more\n\n- two"),
    "a paragraph of two lines": ("1. one\n\n   more\n   still\n2. two", "1. one\n\n    more\n    still\n\n2. two"),
    "a table under an item": ("- one\n\n  | a |\n  |---|\n  | b |\n", "- one\n\n    | a |\n    |---|\n    | b |\n"),
    "code under an item": ("- one:\n\n      run it\n\n  more", "- one:\n\n        run it\n\n    more"),
    "a list in a list": ("- one\n  - two\n    more\n- three", "- one\n    - two\n        more\n- three"),
    "numbers": ("1. one\n   more\n2. two", "1. one\n    more\n2. two"),
    "a list right after a paragraph": ("These:\n- one\n- two", "These:\n\n- one\n- two"),
    "a paragraph after a list": ("- one\n\nmore\n    code", "- one\n\nmore\n    code"),
    "code alone": ("text\n\n    - no item\n      at all", "text\n\n    - no item\n      at all"),
    "a fence": ("```\ntext\n- no item\n  at all\n```\n- one", "```\ntext\n- no item\n  at all\n```\n\n- one"),
    "a fence under an item": ("- one\n\n  ```sh\n  a\n    b\n  ```", "- one\n\n    ```sh\n    a\n      b\n    ```"),
}


@pytest.mark.parametrize("case", CASES)
def test_lists_become_those_of_python_markdown(case: str) -> None:
    text, expected = CASES[case]
    assert for_python_markdown(text) == expected


def test_docstrings_become_what_griffe_reads() -> None:
    pytest.importorskip("griffe", reason="pip install 'adaspa[docs]'")
    from scripts.site.docstrings import readable

    assert readable("Attributes:\n    a, b: c, d: e") == "Attributes:\n    a,\N{NO-BREAK SPACE}b: c, d: e"
    shown = re.sub(r"<[^>]*>", "", readable("See :class:`~adaspa_cli.a.B` and :func:`apply`; ``code`` stays."))
    assert shown == "See B and apply; ``code`` stays."
