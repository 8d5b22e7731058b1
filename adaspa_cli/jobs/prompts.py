"""Prompts, from flags and files."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from adaspa_cli.config.schema import PromptConfig
from adaspa_cli.errors import ConfigError


def collect_prompts(config: PromptConfig) -> list[str]:
    """Prompts as :func:`read_prompts`, each once."""
    return list(dict.fromkeys(read_prompts(config)))


def read_prompts(config: PromptConfig) -> list[str]:
    """Prompts in order: those given one by one, then those of the file.

    Raises:
        ConfigError: there is none, one is empty, or the file cannot be read.
    """
    prompts = list(config.prompt)
    if any(not prompt.strip() for prompt in prompts):
        raise ConfigError("a prompt is empty", hint='say what the video shows: --prompt "a red circle moves left"')
    if config.prompts is not None:
        prompts += _read(config.prompts)
    if not prompts:
        raise ConfigError("no prompt was given", hint="use --prompt TEXT, or --prompts FILE with one a line")
    return prompts


def _read(name: str) -> list[str]:
    path = "stdin" if name == "-" else name
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).expanduser().read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: no text
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"cannot read prompts from {path}: {reason}") from error
    # What else splitlines() takes for an end, as U+2028, word processors and web pages put where a line wraps.
    lines = [" ".join(line.splitlines()).strip() for line in io.StringIO(text, newline=None)]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ConfigError(f"{path} holds no prompt", hint="write one prompt a line")
    return prompts
