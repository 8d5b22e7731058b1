"""Prompts, from flags and files."""

from __future__ import annotations

from pathlib import Path

from adaspa_cli.config.schema import PromptConfig
from adaspa_cli.errors import ConfigError


def collect_prompts(config: PromptConfig) -> list[str]:
    """Prompts in order: those given one by one, then those of the file.

    Raises:
        ConfigError: there is none, one is empty, or the file cannot be read.
    """
    prompts = list(config.prompt)
    if any(not prompt.strip() for prompt in prompts):
        raise ConfigError("a prompt is empty", hint='say what the video shows: --prompt "a red circle moves left"')
    if config.prompts is not None:
        prompts += _read(Path(config.prompts).expanduser())
    if not prompts:
        raise ConfigError("no prompt was given", hint="use --prompt TEXT, or --prompts FILE with one a line")
    return prompts


def _read(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"cannot read prompts from {path}: {reason}") from error
    lines = [line.strip() for line in text.splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ConfigError(f"{path} holds no prompt", hint="write one prompt a line")
    return prompts
