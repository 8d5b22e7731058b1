"""``--set KEY=VALUE``: settings that a command has no flag of its own for."""

from __future__ import annotations

from typing import Any

import yaml

from adaspa_cli.errors import ConfigError


def parse_settings(given: list[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` texts; values are YAML.

    Raises:
        ConfigError: one has another form.
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
