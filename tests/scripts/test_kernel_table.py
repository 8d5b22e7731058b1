"""The tables of docs/kernels.md and of the page with all rows are those of the benchmark's JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import kernel_table

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def found() -> dict[str, Any]:
    return json.loads((DOCS / "results" / "kernels-h200.json").read_text())


def test_the_summary_of_the_docs_is_that_of_the_json(found: dict[str, Any]) -> None:
    assert kernel_table.generated(found) in (DOCS / "kernels.md").read_text()


def test_the_page_of_all_rows_is_that_of_the_json(found: dict[str, Any]) -> None:
    assert kernel_table.full_page(found) == (DOCS / "results" / "kernels-h200.md").read_text()


def test_every_dense_kernel_and_density_is_in_the_summary(found: dict[str, Any]) -> None:
    lines = kernel_table.summary(found).splitlines()
    assert sum(line.startswith("| dense, ") for line in lines) == 5
    assert [line.split(" | ")[2] for line in lines if line.startswith("| sparse, Gluon | 64x64")] == [
        "10%",
        "20%",
        "50%",
    ]
    assert lines[2].count("|") == lines[0].count("|") == lines[1].count("|")


def test_what_could_not_run_says_why() -> None:
    row = dict.fromkeys(kernel_table.COLUMNS) | {"kernel": "sparse", "mask": "uniform", "density": 0.2, "head_dim": 64}
    lines = kernel_table.table({"rows": [row | {"problem": "no such GPU"}]}, 64).splitlines()
    assert "| no such GPU |" in lines[-1]
    assert lines[-1].count("|") == lines[0].count("|")
