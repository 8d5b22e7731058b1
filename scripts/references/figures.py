"""The index of figures: what each shows, which command makes it, where it was made, and in which files its numbers are.

The list itself is ``figures.yaml`` beside this module.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
INDEX = DOCS / "figures.md"
HEAD = """# Where each figure comes from

Every figure, table and picture of README and docs: what it shows, the command that makes it, the machine and versions
of the run that is shown, and the files with its numbers. Commands run in a checkout with `./scripts/setup dev` done and
`.venv` active; those of full-size models and of kernels need a GPU.

Figures of a GPU were made with torch 2.11.0 (CUDA 13.0) and triton 3.6.0. `./scripts/setup` installs newer versions,
those of the tests (`constraints.txt`). `pip install torch==2.11.0 triton==3.6.0` in `.venv` changes to those of the
figures.

To check one row of a bench, name it and the dense one, and take one prompt; `--plan` lists the names. The files have
means and quartiles, not the values of single videos. This takes minutes on a CPU:

```sh
adaspa bench --preset tiny-plus --rows "full,plus sparsity=0.9" --limit 1 --no-times --out one
```
"""
_VERSIONS = ("torch", "triton", "diffusers")


@dataclass(frozen=True)
class Figure:
    """A figure, a table or a picture; see the head of ``figures.yaml``."""

    shows: str
    command: str
    results: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()
    machine: str = ""
    duration: str = ""
    note: str = ""


def figures() -> dict[str, list[Figure]]:
    """All figures, by heading."""
    content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return {heading: [_figure(entry) for entry in entries] for heading, entries in content.items()}


def _figure(entry: dict[str, Any]) -> Figure:
    lists = {key: tuple(entry[key]) for key in ("results", "images", "pages") if key in entry}
    return Figure(**(entry | lists))


def page() -> str:
    """The whole page."""
    texts = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]}
    texts.pop(INDEX, None)
    parts = [HEAD.rstrip()]
    for heading, found in figures().items():
        parts.append(f"## {heading}")
        parts += ["\n\n".join(_section(figure, texts)) for figure in found]
    return "\n\n".join(parts)


def _section(figure: Figure, texts: dict[Path, str]) -> Iterator[str]:
    yield f"### {figure.shows}"
    if figure.command:
        yield f"```sh\n{figure.command.strip()}\n```"
    lines = [f"Shown in: {', '.join(_pages(figure, texts))}", f"Made on: {figure.machine or _made_on(figure)}"]
    files = [f"[{name}](results/{name})" for name in figure.results]
    files += [f"[{name}](images/{name})" for name in figure.images]
    lines += [f"Files: {', '.join(files)}"] * bool(files)
    lines += [f"Takes: {figure.duration}"] * bool(figure.duration)
    lines += [figure.note] * bool(figure.note)
    yield "\n".join(f"- {line}" for line in lines)


def _pages(figure: Figure, texts: dict[Path, str]) -> list[str]:
    """Links to the pages that show it: those that are named, and those that link to its files."""
    paths = [f"results/{name}" for name in figure.results] + [f"images/{name}" for name in figure.images]
    paths += [posixpath.splitext(path)[0] + ".md" for path in paths if path.startswith("results/")]
    linking = {path for path, text in texts.items() if any(f"{wanted})" in text for wanted in paths)}
    shown = sorted(linking | {ROOT / name for name in figure.pages})
    return [f"[{_title(path, texts[path])}]({'../' * (path.parent == ROOT)}{path.name})" for path in shown]


def _title(path: Path, text: str) -> str:
    if path.parent == ROOT:
        return path.stem
    return next(line for line in text.splitlines() if line.startswith("# ")).removeprefix("# ")


def _made_on(figure: Figure) -> str:
    """Machine, versions and day, of the JSON files that say them."""
    files = [DOCS / "results" / name for name in figure.results if name.endswith(".json")]
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    machines = _distinct(_machine(one) for content in contents for one in _several(content, "machine"))
    versions = _distinct(_versions(one) for content in contents for one in _several(content, "versions"))
    days = _distinct(content["created"][:10] for content in contents if "created" in content)
    return "; ".join(part for part in (machines, versions, days) if part)


def _several(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """What a file says under ``machine`` or ``machines``; benches have several, and call versions the same."""
    found = content.get(key) or content.get(f"{key}s") or []
    return found if isinstance(found, list) else [found]


def _machine(found: dict[str, Any]) -> str:
    return found.get("gpu") or f"{found['cpu']}, threads: {found['threads']}"


def _versions(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {found[name]}" for name in _VERSIONS if name in found)


def _distinct(texts: Iterator[str]) -> str:
    return " and ".join(dict.fromkeys(texts))
