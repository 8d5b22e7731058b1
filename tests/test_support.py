"""docs/support.md says what the code and the requirements say."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import adaspa_kernels
from adaspa_cli.config.methods.base import MOST_BLOCK_SIZE

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
PACKAGES = ("torch", "triton", "diffusers", "transformers", "accelerate")


def _row(name: str) -> list[str]:
    """The cells of a row of its tables."""
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def _measured(content: Any, name: str) -> set[str]:
    """Versions of a package in what was measured on a GPU."""
    if isinstance(content, list):
        return set().union(*(_measured(item, name) for item in content))
    if not isinstance(content, dict):
        return set()
    own = {content[name]} if "cuda" in content and isinstance(content.get(name), str) else set()
    return own.union(*(_measured(value, name) for value in content.values()))


@pytest.mark.parametrize("name", PACKAGES)
def test_versions_are_those_of_the_requirements_and_of_the_results(name: str) -> None:
    _, needed, on_gpu, on_cpu = _row(name)
    texts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert [text.partition(";")[0].removeprefix(name) for text in texts if re.match(rf"{name}\b", text)] == [needed]
    pinned = re.search(rf"^{name}==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    assert on_cpu.partition(",")[0] == pinned[1]
    files = (ROOT / "docs" / "results").rglob("*.json")
    measured = set().union(*(_measured(json.loads(path.read_text(encoding="utf-8")), name) for path in files))
    assert measured == {on_gpu.partition(",")[0]}


def test_shapes_are_those_of_the_kernels() -> None:
    numbers = ", ".join(map(str, adaspa_kernels.HEAD_DIMS))
    assert _row("head dimensions")[1:] == [numbers, numbers, numbers, "any"]
    blocks = ", ".join(str(query) for query, _ in adaspa_kernels.BLOCK_SIZES)
    assert _row("block sizes")[1:] == [blocks, blocks, blocks, f"any up to {MOST_BLOCK_SIZE:,}"]
    dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in adaspa_kernels.HALF_DTYPES)
    assert _row("dtypes of sparse attention")[1:4] == [dtypes] * 3
