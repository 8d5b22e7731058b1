"""LoRA files: what ``--lora PATH_OR_HUB[:scale]`` means, where the file is, and what is in it. Doesn't import torch."""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adaspa_cli.config.fields import rule
from adaspa_cli.config.hub import hub_answers, hub_error
from adaspa_cli.config.tensor_shapes import SUFFIX, Shapes, read_shapes
from adaspa_cli.errors import ConfigError, ModelError

MOST_SCALE = 100.0
_USUAL = "pytorch_lora_weights.safetensors"
_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>.+\.safetensors))?")


@dataclass(frozen=True)
class LoraSource:
    """One LoRA as requested.

    Attributes:
        name: path of a file or folder, or an id on the hub, with the file's path in it or without.
        scale: what its weights are multiplied by.
    """

    name: str
    scale: float

    @classmethod
    def parse(cls, key: str, text: str) -> LoraSource:
        """Read ``PATH_OR_HUB[:scale]``.

        Raises:
            ConfigError: there is no name, or the scale is 0, not finite or far too large.
        """
        name, colon, tail = text.rpartition(":")
        try:
            scale = float(tail)
        except ValueError:
            name, colon, scale = text, "", 1.0
        if not colon:
            name, scale = text, 1.0
        if not name.strip():
            raise ConfigError(f"{key} '{text}' names no file", hint="--lora style.safetensors:0.8")
        if not math.isfinite(scale) or scale == 0 or abs(scale) > MOST_SCALE:
            raise ConfigError(f"the scale of {key} must be a number up to {MOST_SCALE:g} and not 0, got {tail}")
        return cls(name, scale)

    def file(self) -> LoraFile:
        """The file, fetched from the hub if it is not here.

        Raises:
            ModelError: there is none, there are several, or it holds no LoRA.
        """
        path = self._path()
        try:
            state = path.stat()
        except OSError as error:
            raise ModelError(f"cannot read LoRA {self.name}: {error.strerror}") from error
        return _read(path, state.st_size, state.st_mtime_ns)

    def is_local(self) -> bool:
        """Whether it is a path, not an id on the hub."""
        return self.name.startswith((".", "/", "~")) or Path(self.name).exists() or not _HUB.fullmatch(self.name)

    def _path(self) -> Path:
        if not self.is_local():
            return _fetch(self.name)
        path = Path(self.name).expanduser()
        if not path.is_dir():
            return path
        return path / _only([file.name for file in path.glob(f"*{SUFFIX}")], self.name)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file.

    Attributes:
        path: of it.
        sha256: of its bytes.
        shapes: of its tensors.
    """

    path: Path
    sha256: str
    shapes: Shapes


@rule(f"PATH_OR_HUB[:SCALE], the scale up to {MOST_SCALE:g} and not 0")
def check_loras(key: str, texts: Sequence[str]) -> None:
    """The rule of the settings that name LoRAs: raises ConfigError for one that cannot be read."""
    for text in texts:
        LoraSource.parse(key, text)


def _only(names: Sequence[str], where: str) -> str:
    """The one LoRA file of a folder, or the one of the usual name."""
    if _USUAL in names:
        return _USUAL
    if len(names) == 1:
        return names[0]
    what = f"holds {len(names)} files that end in {SUFFIX}" if names else f"holds no file that ends in {SUFFIX}"
    shown = ", ".join(sorted(names)[:4])
    raise ModelError(f"LoRA {where} {what}", hint=f"name one, as {where}/FILE: {shown}" if names else None)


def _fetch(name: str) -> Path:
    from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    found = _HUB.fullmatch(name)
    assert found is not None
    cached, file = not hub_answers(), found["file"]
    try:
        if file is None and cached:
            folder = Path(snapshot_download(found["repo"], local_files_only=True))
            file = _only([path.name for path in folder.glob(f"*{SUFFIX}")], name)
        elif file is None:
            listed = [path for path in list_repo_files(found["repo"]) if path.endswith(SUFFIX)]
            file = _only(listed, name)
        return Path(hf_hub_download(found["repo"], file, local_files_only=cached))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise hub_error(found["repo"], error, file) from error


@functools.lru_cache(maxsize=32)
def _read(path: Path, _size: int, _changed: int) -> LoraFile:
    """Check and hash a file of that size, changed at that time: once, not for each video."""
    try:
        shapes = read_shapes(path)
        if shapes is None:
            raise ModelError(f"LoRA {path} is not a {SUFFIX} file, or is corrupt", hint=f"give a {SUFFIX} file")
        if not any("lora" in name.lower() for name in shapes):
            raise ModelError(f"{path} holds no LoRA: none of its {len(shapes)} tensors is named so")
        with path.open("rb") as file:
            return LoraFile(path, hashlib.file_digest(file, "sha256").hexdigest(), shapes)
    except OSError as error:
        raise ModelError(f"cannot read LoRA {path}: {error.strerror}") from error
