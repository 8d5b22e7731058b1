"""The folder of presets, and their names. Reads none of them, and imports nothing heavy: `--help` lists them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEFAULT_METHOD = "adaspa-plus"  # of a video: on the command line, on the page, and in Python
PAPERS_METHOD = "adaspa"  # of everything else that names none: mask files, rows of benches, pictures


def presets_root() -> Path:
    """The folder of presets: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def unnamed_method(settings: Mapping[str, Any], usual: str = DEFAULT_METHOD) -> str:
    """The method of settings that name none: ``usual``, or ``adaspa`` if they name a mask file."""
    return PAPERS_METHOD if settings.get("masks") else usual


def preset_names(kind: str) -> list[str]:
    """Names of the presets of one kind: ``models`` or ``methods``."""
    return sorted(path.stem for path in (presets_root() / kind).glob("*.yaml"))
