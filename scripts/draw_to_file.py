"""The command line of scripts that draw one picture of the docs: it names the file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def draw_to_file(draw: Callable[[Path], None], doc: str | None) -> None:
    """Draw to the file that the command line names; the first line of ``doc`` is the help."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    draw(parser.parse_args().out)
