"""Imports run one way: a package uses those below it alone, and no modules import each other in a circle.

Read from the source, so that imports for types alone and imports within functions count as well.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the bottom to the top; packages of one row do not know of each other.
ROWS = (
    {"adaspa_kernels", "errors", "interrupts", "on_demand", "progress_bar", "version"},
    {"config", "console", "files"},
    {"attention", "hooks", "quality"},
    {"distributed"},
    {"masks"},
    {"maskfiles", "models"},
    {"caching"},
    {"sampling"},
    {"report"},
    {"jobs"},
    {"bench", "doctor", "forecast", "ui", "visual"},
    {"gallery"},
    {"commands"},
    {"app"},
    {"__main__"},
)


def _modules() -> dict[str, Path]:
    """Every module of the library and of the kernels by its name; packages too."""
    found = {}
    for source, package in ((ROOT, "adaspa_cli"), (ROOT / "kernels", "adaspa_kernels")):
        for path in sorted((source / package).rglob("*.py")):
            parts = path.relative_to(source).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imported(path: Path) -> Iterator[str]:
    """The modules that a module imports anywhere in it, of those that are ours."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from {name if name in MODULES else str(node.module) for name in names} & MODULES.keys()


IMPORTS = {name: set(_imported(path)) for name, path in MODULES.items()}


def _package(module: str) -> str:
    """The package below adaspa_cli, or the module that stands there."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "adaspa_cli" and rest else first


def test_every_package_has_its_row() -> None:
    placed = [package for row in ROWS for package in row]
    assert sorted(placed) == sorted({_package(module) for module in MODULES} - {"adaspa_cli"})


def test_packages_import_those_below_them_alone() -> None:
    row = {package: number for number, packages in enumerate(ROWS) for package in packages}
    row["adaspa_cli"] = row["app"]  # the library's front door, which no module of its own uses
    upwards = [
        f"{module} imports {imported}"
        for module, found in IMPORTS.items()
        for imported in sorted(found)
        for pair in [(_package(module), _package(imported))]
        if pair[0] != pair[1] and row[pair[0]] <= row[pair[1]]
    ]
    assert upwards == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
