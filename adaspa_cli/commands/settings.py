"""Settings of a run that a command has no flag for: ``--set KEY=VALUE``."""

from __future__ import annotations

from typing import Any

import yaml

from adaspa_cli.errors import ConfigError


def parse_settings(given: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE texts, of which the value is YAML.

    Raises:
        ConfigError: one is not of that form.
    """
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set takes KEY=VALUE, got '{text}'", hint="as --set steps=20")
        try:
            found[key.strip().replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(
                f"--set {key}: '{value}' is not a YAML value", hint="lists are written [10, 30]"
            ) from None
    return found
