"""What pages and docstrings name is there: files, scripts, modules, names, what links lead to, and commands' flags."""

import re
from pathlib import Path

import pytest

from adaspa_cli.config.flat import keys_of
from adaspa_cli.config.presets import preset_names
from adaspa_cli.config.schema import GenerateConfig
from scripts.references.commands import commands

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("adaspa_cli", "kernels", "scripts", "tests")
TEXTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "docs" / "reference").glob("*.md"),
    *(path for folder in FOLDERS for ending in ("py", "md") for path in (ROOT / folder).rglob(f"*.{ending}")),
]


def _module(name: str) -> Path | None:
    """The file of a module or of a package, by its dotted name."""
    place = ROOT.joinpath("kernels" if name.startswith("adaspa_kernels") else "", *name.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def _is_there(reference: str) -> bool:
    """Whether the longest module at the start of a reference has the name that follows it."""
    name, rest = reference, ""
    while name and _module(name) is None:
        name, _, rest = name.rpartition(".")
    found = _module(name) if name else None
    return found is not None and (not rest or re.search(rf"\b{rest}\b", found.read_text(encoding="utf-8")) is not None)


@pytest.mark.parametrize("folder", ["docs", *FOLDERS])
def test_what_is_named_is_there(folder: str) -> None:
    texts = [path for path in TEXTS if path.is_relative_to(ROOT / folder) or (folder == "docs" and path.parent == ROOT)]
    assert texts
    lost = []
    for path in texts:
        text = path.read_text(encoding="utf-8")
        files = re.findall(r"(?<![\w/.-])(?:adaspa_cli|scripts|tests|docs)/[\w./-]*\w\.(?:py|md|json|png|yaml)\b", text)
        scripts = re.findall(r"python -m (scripts\.\w+)", text)
        references = re.findall(r":`~?(adaspa_(?:cli|kernels)\.[\w.]+)`|^::: ([\w.]+)$", text, re.MULTILINE)
        unknown = [name for name in files if not (ROOT / name).exists()]
        unknown += [name for name in (*scripts, *map("".join, references)) if not _is_there(name)]
        lost += [f"{path.relative_to(ROOT)}: {name}" for name in unknown]
    assert lost == []


PAGES = [
    path for path in TEXTS if path.suffix == ".md" and path.parent in (ROOT, ROOT / "docs", ROOT / "docs" / "reference")
]


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page; a heading that comes again gets a number."""
    found: set[str] = set()
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(next(name for number in range(99) if (name := slug + f"-{number}" * (number > 0)) not in found))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lost = []
    for path, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in _anchors(target)):
            lost.append(f"{path}#{anchor}")
    assert lost == []


COMMANDS = {command.name: command for command in commands()}
# A command and what follows it, up to the end of the line or of the code.
TYPED = re.compile(rf"(?<![\w./-])({'|'.join(sorted(COMMANDS, key=len, reverse=True))})(?![\w-])([^\n`|]*)")
NAMES = {"--method": "methods", "--preset": "bench"}
SETTINGS = keys_of(GenerateConfig).keys()


def _unknown(command: str, words: str) -> list[str]:
    """What a command, as a page has it, does not take: options, names of presets, and settings."""
    known = {"--help", *(name for option in COMMANDS[command].options for name in option.names)}
    unknown = [flag for flag in re.findall(r"(?<![\w-])--?[a-z][\w-]*", words) if flag not in known]
    for flag, kind in NAMES.items():
        unknown += [name for name in re.findall(rf"{flag} ([a-z][\w.-]*)", words) if name not in preset_names(kind)]
    return unknown + [key for key in re.findall(r"--set (\w+)=", words) if key not in SETTINGS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_take_what_pages_give_them(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lost = [f"{command}: {flag}" for command, words in TYPED.findall(text) for flag in _unknown(command, words)]
    assert lost == []
