"""Hooks of mkdocs: pages that lie beside ``docs/``, and links that work on GitHub and in the site alike.

README, CONTRIBUTING and CHANGELOG become pages. Any other file of the repository that a page links to is copied into
``repository/``; a link to a folder becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from github_markdown import for_python_markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"(?P<before>\]\(|\b(?:src|href|srcset)=\")(?P<path>[^)#\s\":<>]+)(?P<after>(?:#[^)\"\s]*)?[)\"])")
_CODE = re.compile(r"<code\b.*?</code>", re.DOTALL)
_FLAG = re.compile(r"(?<![\w-])--?[a-z][\w-]*(?![^<]*>)")
_FOLDER_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>[^)#\s:]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages beside ``docs/``, and what pages link to."""
    sources = {name: uri for name, uri in PAGES.items() if (ROOT / name).is_file()}
    pages = [ROOT / name for name in sources] + [Path(str(file.abs_src_path)) for file in files.documentation_pages()]
    linked = {name for page in pages for name in _linked(page) if not name.startswith("docs/")}
    sources |= {name: f"repository/{name}" for name in linked - sources.keys() if (ROOT / name).is_file()}
    for name, uri in sorted(sources.items()):
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """GitHub's Markdown with its links, as mkdocs reads both."""
    source = _in_repository(Path(str(page.file.abs_src_path)))
    if page.file.src_uri.startswith(("results/", "repository/")):
        page.meta["search"] = {"exclude": True}
    here = posixpath.dirname(page.file.src_uri)

    def place(match: re.Match[str]) -> str:
        name = _target(source, match["path"])
        if name is None:
            return match[0]
        return f"{match['before']}{posixpath.relpath(_in_site(name), here or '.')}{match['after']}"

    def folder(match: re.Match[str]) -> str:
        return match["text"] if (ROOT / posixpath.dirname(source) / match["path"]).is_dir() else match[0]

    return for_python_markdown(_LINK.sub(place, _FOLDER_LINK.sub(folder, markdown)))


def on_page_content(html: str, **_: Any) -> str:
    """No line ends within the name of a flag: browsers break after its dashes."""
    return _CODE.sub(lambda code: _FLAG.sub(r'<span class="flag">\g<0></span>', code[0]), html)


def on_post_build(config: MkDocsConfig) -> None:
    """Write the index of the search as a script too: pages that are opened from a folder can load nothing else."""
    index = Path(config.site_dir, "search", "search_index.json")
    script = f"var __index = {index.read_text(encoding='utf-8')}"
    index.with_suffix(".js").write_text(script, encoding="utf-8")


def _linked(page: Path) -> Iterator[str]:
    source = _in_repository(page)
    for match in _LINK.finditer(page.read_text(encoding="utf-8")):
        name = _target(source, match["path"])
        if name is not None:
            yield name


def _target(source: str, path: str) -> str | None:
    """The file of the repository that a link of the page ``source`` means; None if there is none."""
    name = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    return name if not name.startswith("..") and (ROOT / name).is_file() else None


def _in_site(name: str) -> str:
    return PAGES.get(name) or (name.removeprefix("docs/") if name.startswith("docs/") else f"repository/{name}")


def _in_repository(path: Path) -> str:
    return path.resolve().relative_to(ROOT).as_posix()
