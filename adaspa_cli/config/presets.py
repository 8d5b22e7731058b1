"""The folder of presets, and their names. Reads none of them, and imports nothing heavy: `--help` lists them."""

from __future__ import annotations

from pathlib import Path


def presets_root() -> Path:
    """The folder of presets: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def preset_names(kind: str) -> list[str]:
    """Names of the presets of one kind: ``models`` or ``methods``."""
    return sorted(path.stem for path in (presets_root() / kind).glob("*.yaml"))
