"""The Markdown table of docs/kernels.md, from what ``scripts/bench_kernels.py --json`` wrote.

python -m scripts.kernel_table docs/results/kernels-h200.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = {
    "kernel": "kernel", "block": "block", "mask": "mask, overlap of neighbours", "density": "kept",
    "milliseconds": "ms", "spread": "spread", "teraflops": "TFLOP/s", "of_ceiling": "of ceiling",
    "sustained_teraflops": "sustained", "of_dense": "of dense", "error": "error",
}  # fmt: skip
FORMS = {
    "density": ".1%", "milliseconds": ".2f", "spread": ".1%", "teraflops": ".0f", "of_ceiling": ".0%",
    "sustained_teraflops": ".0f", "of_dense": ".3f", "error": ".1e",
}  # fmt: skip


def table(found: dict[str, Any], head_dim: int) -> str:
    """The rows of one head dimension; what could not run says why in place of figures."""
    rows = [row for row in found["rows"] if row["head_dim"] == head_dim]
    lines = [f"| {' | '.join(COLUMNS.values())} |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [_cell(name, row[name]) for name in COLUMNS]
        if row["problem"]:
            cells = [*cells[:4], row["problem"], *[""] * (len(COLUMNS) - 5)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "block":
        return f"{value}x{value}"
    return format(value, FORMS[name]) if name in FORMS else str(value)


def main() -> int:
    found = json.loads(Path(sys.argv[1]).read_text())
    (ceiling,) = (row for row in found["rows"] if row["head_dim"] == 0)
    speeds = f"{ceiling['teraflops']:.0f} TFLOP/s, sustained {ceiling['sustained_teraflops']:.0f}"
    print(f"Ceiling ({ceiling['kernel']}): {speeds}")
    for head_dim in (128, 64):
        tokens = next(row["tokens"] for row in found["rows"] if row["head_dim"] == head_dim)
        print(f"\nD = {head_dim}, {tokens:,} tokens, 12 heads:\n\n{table(found, head_dim)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
