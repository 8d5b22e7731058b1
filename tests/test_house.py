"""Rules of the house that no linter knows: how long a function may be, and what lies in the repository."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
MOST_LINES = 60

# Longer functions, and why each is better in one piece. Kernels are not counted.
REASONS = {
    "adaspa_cli/report/latency.py:latency_report": "one report, field by field",
    "tests/kernels/test_compile_sm90.py:_compile": "one recipe, from a launcher's arguments to what its PTX holds",
}


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines of every function of a module, without decorators; methods with their class."""

    def walk(node: ast.AST, within: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{within}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    assert child.end_lineno is not None
                    yield name, child.end_lineno - child.lineno + 1
                yield from walk(child, f"{name}.")
            else:
                yield from walk(child, within)

    return walk(ast.parse(path.read_text(encoding="utf-8")), "")


@pytest.mark.parametrize("folder", ["adaspa_cli", "examples", "scripts", "tests"])
def test_functions_are_short(folder: str) -> None:
    long = {
        f"{path.relative_to(ROOT).as_posix()}:{name}": lines
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name, lines in _functions(path)
        if lines > MOST_LINES
    }
    assert {name: lines for name, lines in long.items() if name not in REASONS} == {}


def test_no_reason_outlives_its_function() -> None:
    for place in REASONS:
        file, _, function = place.partition(":")
        assert dict(_functions(ROOT / file))[function] > MOST_LINES, place


def test_a_page_links_to_every_result_in_the_repository() -> None:
    """Or to the table that the JSON file belongs to."""
    docs = ROOT / "docs"
    shown = (path for path in [*docs.glob("*.md"), ROOT / "README.md"] if path.name != "figures.md")  # it lists all
    pages = "".join(path.read_text(encoding="utf-8") for path in shown)
    results = (path for path in (docs / "results").rglob("*") if path.is_file())
    unlinked = [
        str(path)
        for path in results
        if not any(f"results/{name.relative_to(docs / 'results').as_posix()}" in pages for name in _with_table(path))
    ]
    assert unlinked == []


def _with_table(path: Path) -> list[Path]:
    return [path, path.with_suffix(".md")]


def test_public_ci_runs_the_commands_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert sorted(commands) == ["./scripts/demo", "./scripts/test"]
    assert all((ROOT / command).is_file() and command in readme for command in commands)


@pytest.mark.parametrize("name", ["fault", "proposal", "slow"])
def test_issue_templates_have_what_github_wants(name: str) -> None:
    template = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text(encoding="utf-8"))
    assert template["name"]
    assert template["description"]
    identifiers = [entry["id"] for entry in template["body"]]
    assert len(set(identifiers)) == len(identifiers)
    assert all(entry["attributes"]["label"] for entry in template["body"])
