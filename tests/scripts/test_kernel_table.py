"""The figures of docs/kernels.md are those of the benchmark's JSON."""

import json
from pathlib import Path

import pytest

from scripts import kernel_table

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_table_of_the_docs_is_that_of_the_json(head_dim: int) -> None:
    found = json.loads((DOCS / "results" / "kernels-h200.json").read_text())
    assert kernel_table.table(found, head_dim) in (DOCS / "kernels.md").read_text()


def test_what_could_not_run_says_why() -> None:
    row = dict.fromkeys(kernel_table.COLUMNS) | {"kernel": "sparse", "mask": "uniform", "density": 0.2, "head_dim": 64}
    lines = kernel_table.table({"rows": [row | {"problem": "no such GPU"}]}, 64).splitlines()
    assert "| no such GPU |" in lines[-1]
    assert lines[-1].count("|") == lines[0].count("|")
