"""The Markdown tables of what ``scripts/bench_kernels.py --json`` wrote.

    python -m scripts.kernel_table docs/results/kernels-h200.json            # print the summary
    python -m scripts.kernel_table docs/results/kernels-h200.json --write    # put it into docs/kernels.md

``--write`` also writes all rows beside the JSON file, as docs/results/kernels-h200.md.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "kernels.md"
BEGIN, END = "<!-- scripts/kernel_table.py: begin -->", "<!-- end -->"
HEAD_DIMS = (128, 64)
COLUMNS = {
    "kernel": "kernel", "block": "block", "mask": "mask, overlap of neighbours", "density": "density",
    "milliseconds": "ms", "spread": "spread", "teraflops": "TFLOP/s", "of_ceiling": "of ceiling",
    "sustained_teraflops": "sustained", "of_dense": "of dense", "error": "error",
}  # fmt: skip
SUMMARY = {"milliseconds": "ms", "teraflops": "TFLOP/s", "sustained_teraflops": "sustained", "of_dense": "of dense"}
FORMS = {
    "density": ".1%", "milliseconds": ".2f", "spread": ".1%", "teraflops": ".0f", "of_ceiling": ".0%",
    "sustained_teraflops": ".0f", "of_dense": ".3f", "error": ".1e",
}  # fmt: skip
NAMES = {"sparse, hopper": "sparse, Gluon", "sparse, portable": "sparse, Triton",
         "block sums, hopper": "block sums, Gluon", "block sums, portable": "block sums, Triton"}  # fmt: skip


def table(found: dict[str, Any], head_dim: int) -> str:
    """All rows of one head dimension; what could not run says why instead of figures."""
    rows = [row for row in found["rows"] if row["head_dim"] == head_dim]
    lines = [f"| {' | '.join(COLUMNS.values())} |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [_cell(name, row[name]) for name in COLUMNS]
        if row["problem"]:
            cells = [*cells[:4], row["problem"], *[""] * (len(COLUMNS) - 5)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(found: dict[str, Any]) -> str:
    """One line for each kernel, block size and density, both head dimensions side by side; sparse masks: uniform."""
    rows = [row for row in found["rows"] if row["head_dim"] in HEAD_DIMS and _in_summary(row)]
    by_line: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        density = row["mask"].removeprefix("uniform ") if "uniform" in row["mask"] else "100%"
        line = NAMES.get(row["kernel"], row["kernel"]), _cell("block", row["block"]), density
        by_line.setdefault(line, {})[row["head_dim"]] = row
    headings = ["kernel", "block", "density", *(f"D = {dim}: {name}" for dim in HEAD_DIMS for name in SUMMARY.values())]
    lines = [f"| {' | '.join(headings)} |", "|---|---|---|" + "---:|" * (len(headings) - 3)]
    for line, by_dim in sorted(by_line.items(), key=_place):
        cells = [_cell(name, by_dim[dim][name]) if dim in by_dim else "" for dim in HEAD_DIMS for name in SUMMARY]
        lines.append(f"| {' | '.join([*line, *cells])} |")
    return "\n".join(lines)


def setting(found: dict[str, Any]) -> str:
    """Machine, versions, sizes and the measured ceiling, in one paragraph."""
    (ceiling,) = (row for row in found["rows"] if row["head_dim"] == 0)
    tokens = {row["head_dim"]: row["tokens"] for row in found["rows"]}
    sizes = " and ".join(f"{tokens[dim]:,} tokens at D = {dim}" for dim in HEAD_DIMS)
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("torch", "cuda", "triton", "python"))
    return (
        f"One {found['machine']['gpu']}, {versions}. 12 heads; {sizes}. A matrix product of 8192^3 reaches "
        f"{ceiling['teraflops']:.0f} TFLOP/s, sustained {ceiling['sustained_teraflops']:.0f}: the ceiling."
    )


def _in_summary(row: dict[str, Any]) -> bool:
    return row["problem"] is None and (row["mask"] == "dense" or row["mask"].startswith("uniform"))


def _place(item: tuple[tuple[str, str, str], Any]) -> tuple[int, str, str]:
    """Dense kernels first, then the sparse ones, each with its densities together, then the search."""
    (kernel, block, density), _ = item
    order = [
        "dense",
        "sparse, Gluon",
        "sparse, Triton",
        "FlexAttention",
        "block sums",
        "mask selection",
        "whole search",
    ]
    first = next(place for place, name in enumerate(order) if kernel.startswith(name))
    return (first, f"{len(block)}{block}", f"{len(density)}{density}") if first else (0, "", "")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "block":
        return f"{value}x{value}"
    return format(value, FORMS[name]) if name in FORMS else str(value)


def full_page(found: dict[str, Any]) -> str:
    """All rows as a page of their own."""
    tables = (f"D = {head_dim}:\n\n{table(found, head_dim)}\n" for head_dim in HEAD_DIMS)
    return "\n".join(["# Kernels: all rows", "", setting(found), "", f"    {found['command']}", "", *tables])


def generated(found: dict[str, Any]) -> str:
    """What stands between the marks of docs/kernels.md."""
    return f"{BEGIN}\n{setting(found)}\n\n    {found['command']}\n\n{summary(found)}\n{END}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--write", action="store_true", help="into docs/kernels.md and beside the JSON file")
    options = parser.parse_args()
    found = json.loads(options.json.read_text())
    if not options.write:
        print(generated(found))
        return
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: generated(found), page, flags=re.DOTALL))
    options.json.with_suffix(".md").write_text(full_page(found))


if __name__ == "__main__":
    main()
