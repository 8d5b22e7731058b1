"""Write the generated pages of docs/, or check that they are up to date.

python -m scripts.references            # write
python -m scripts.references --check    # exit code 1, and what is stale
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from scripts.references import commands, figures, house, settings

ROOT = Path(__file__).resolve().parent.parent.parent
NOTE = "<!-- Made by `python -m scripts.references`: edit what it is made from, not this page. -->\n\n"
PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/commands.md": commands.page,
    "docs/reference/configuration.md": settings.page,
    "docs/figures.md": figures.page,
    "docs/images/house.svg": house.picture,
}


def made(name: str) -> str:
    """A page as it should be."""
    return NOTE + PAGES[name]().rstrip() + "\n"


def main() -> int:
    check, stale = sys.argv[1:] == ["--check"], []
    for name in PAGES:
        path, text = ROOT / name, made(name)
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"{name}: {'is stale; run python -m scripts.references' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
