"""The generated pages of docs/ are what the code says, and leave nothing out."""

import importlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from adaspa_cli.app import app
from adaspa_cli.commands.options import GENERATE
from adaspa_cli.config.flat import keys_of
from adaspa_cli.config.schema import GenerateConfig
from scripts.references.__main__ import PAGES, ROOT, made
from scripts.references.commands import commands
from scripts.references.figures import figures
from scripts.references.settings import flag_names, groups
from scripts.references.tables import attributes, markdown, sentence, table


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_up_to_date(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("NO_COLOR", "1")
    assert (ROOT / name).read_text(encoding="utf-8") == made(name), "run python -m scripts.references"


def _offered(command: Any, path: str) -> Iterator[tuple[str, set[str]]]:
    """What the built app offers: the flags of each command by its name."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from _offered(inner, f"{path} {name}")
        return
    shown = [parameter for parameter in command.params if parameter.opts[0].startswith("-") and not parameter.hidden]
    yield path, {name for option in shown for name in (*option.opts, *option.secondary_opts)} - {"--help", "-h"}


def test_every_flag_of_every_command_is_documented() -> None:
    documented = {
        command.name: {name for option in command.options if not option.argument for name in option.names}
        for command in commands()
    }
    assert documented == dict(_offered(typer.main.get_command(app), "adaspa"))


def test_every_setting_is_documented_once_and_has_its_flag() -> None:
    keys = [key for group in groups() for key in group.keys]
    assert sorted(keys) == sorted(keys_of(GenerateConfig))
    page = (ROOT / "docs/reference/configuration.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 6}
    for flag in GENERATE:
        if flag.key not in ("config", "set"):
            assert all(f"`{name}`" in rows[flag.key] for name in flag_names(flag))


def test_bounds_and_defaults_are_those_of_the_schema() -> None:
    page = (ROOT / "docs/reference/configuration.md").read_text(encoding="utf-8")
    assert "| `steps` | whole number, 1 to 10,000 | `50` | `--steps` | Number of denoising steps. |" in page
    assert "| `compile` | true or false | `false` | `--[no-]compile` |" in page
    assert "| `max_error` | number, in (0, 1] | `null` | `--max-error` |" in page


def test_docstrings_become_markdown() -> None:
    class Sample:
        """A sample.

        Attributes:
            first, second: of :class:`~adaspa_cli.attention.layout.TokenLayout`, in
                ``two`` lines.
            third: γ.
        """

    assert attributes(Sample) == {
        "first": "of `adaspa_cli.attention.layout.TokenLayout`, in `two` lines.",
        "second": "of `adaspa_cli.attention.layout.TokenLayout`, in `two` lines.",
        "third": "γ.",
    }
    assert [sentence("γ"), sentence("`a` b"), sentence("a b.")] == ["γ.", "`a` b.", "A b."]
    assert markdown(":func:`apply`") == "`apply`"
    assert table(("a",), [("b|c",)]) == "| a |\n| --- |\n| b\\|c |"


FIGURES = [figure for entries in figures().values() for figure in entries]
DOCS = ROOT / "docs"


def test_every_result_and_picture_is_in_the_index_of_figures() -> None:
    listed = {DOCS / "results" / name for figure in FIGURES for name in figure.results}
    listed |= {DOCS / "images" / name for figure in FIGURES for name in figure.images}
    assert [path for path in sorted(listed) if not path.is_file()] == []
    kept = {path for folder in ("results", "images") for path in (DOCS / folder).rglob("*") if path.is_file()}
    tables = {path.with_suffix(".md") for path in listed}
    assert sorted(kept - listed - tables) == []


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.shows[:40])
def test_a_figure_can_be_made_again(figure: Any) -> None:
    """Its script or preset is there, and so are the pages that show it."""
    assert figure.command or figure.note
    scripts = [name.replace(".", "/") for name in re.findall(r"python -m (scripts\.\w+)", figure.command)]
    assert all((ROOT / f"{name}.py").is_file() or (ROOT / name).is_dir() for name in scripts)
    presets = re.findall(r"--preset ([\w.-]+)", figure.command)
    assert all((ROOT / "configs" / "bench" / f"{preset}.yaml").is_file() for preset in presets)
    assert all((ROOT / page).is_file() for page in figure.pages)


def test_the_index_says_where_each_figure_is_shown_and_was_made() -> None:
    page = (DOCS / "figures.md").read_text(encoding="utf-8")
    assert page.count("- Shown in: [") == page.count("- Made on: ") == len(FIGURES)
    assert re.findall(r"- (?:Made on|Shown in): *\n", page) == []


@pytest.mark.parametrize(
    "package",
    ["adaspa_cli", *(f"adaspa_cli.{name}" for name in ("attention", "config", "maskfiles", "masks")), "adaspa_kernels"],
)
def test_the_python_reference_has_what_packages_export(package: str) -> None:
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    documented = {name.rpartition(".")[2] for name in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)}
    module = importlib.import_module(package)
    exported = {name for name in module.__all__ if callable(getattr(module, name))}
    assert sorted(exported - documented) == []
