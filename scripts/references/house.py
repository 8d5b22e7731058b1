"""The picture of the packages, row by row as ``tests/test_imports.py`` has them, and what each row is for."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from tests.test_imports import ROWS

# Of each row, by one of its packages; parts in the order of the packages, which is the alphabet's.
NOTES = {
    "__main__": "the command adaspa: takes over Ctrl-C, sets threads",
    "app": "registers the commands; imports nothing heavy",
    "commands": "one module for each command: parses, builds a config, calls the library, prints",
    "gallery": "a page of all videos of a folder",
    "bench": "tables of many runs | the state of a machine | estimates before a run | pictures of attention",
    "jobs": "from prompts and seeds to files: Job in, Made out",
    "report": "the report of a run, typed and versioned, and its page",
    "sampling": "one run: Resolved and a pipeline in, RunResult out; apply() and Handle",
    "caching": "reuse of results of earlier steps; merging of tokens",
    "models": "masks of a whole model in one file | families of diffusers: processors give q, k, v of each call",
    "masks": "methods: for each Call a MaskPolicy gives a CallPlan, and finds a FoundMask",
    "distributed": "several processes that make one video",
    "attention": "operators on a BlockMask | what attaches to a pipeline and comes off | metrics of videos",
    "config": "settings and presets | terminal and JSON | files that are whole or absent",
    "errors": "the GPU kernels, which import nothing of adaspa_cli, and leaves",
}
_WIDTH, _ROW, _BOX, _GAP, _LETTER = 720, 64, 26, 8, 7.9
_STYLE = """
    .page { fill: #ffffff } .row { fill: #eef1f8 } .box { fill: #ffffff; stroke: #5b6bb5 }
    text { font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #1b2030 }
    .note { font: 12.5px system-ui, sans-serif; fill: #4a5166 }
    @media (prefers-color-scheme: dark) {
      .page { fill: #14171f } .row { fill: #1e2330 } .box { fill: #2a3145; stroke: #8fa0e8 }
      text { fill: #e8ebf4 } .note { fill: #aeb6cc }
    }"""


def picture() -> str:
    """An SVG image, the top of the house above."""
    height = _ROW * len(ROWS) + 2 * _GAP
    title = "The packages of adaspa in rows; each row imports those below it alone"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">',
        f"  <title>{title}</title>",
        f"  <style>{_STYLE}\n  </style>",
        f'  <rect class="page" width="{_WIDTH}" height="{height}"/>',
    ]
    for number, packages in enumerate(reversed(ROWS)):
        lines += _row(sorted(packages), _GAP + number * _ROW)
    return "\n".join([*lines, "</svg>"])


def _row(packages: list[str], top: int) -> Iterator[str]:
    yield f'  <rect class="row" x="{_GAP}" y="{top}" width="{_WIDTH - 2 * _GAP}" height="{_ROW - _GAP}" rx="6"/>'
    left = 2.0 * _GAP
    for package in packages:
        width = len(package) * _LETTER + 2 * _GAP
        yield f'  <rect class="box" x="{left:g}" y="{top + 6}" width="{width:g}" height="{_BOX}" rx="4"/>'
        yield f'  <text x="{left + _GAP:g}" y="{top + 24}">{package}</text>'
        left += round(width + _GAP, 1)
    note = next(NOTES[package] for package in packages if package in NOTES)
    yield f'  <text class="note" x="{2 * _GAP}" y="{top + 48}">{escape(note)}</text>'
