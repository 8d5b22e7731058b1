"""Every field of the configuration is documented where it is declared."""

import dataclasses
import re
from typing import Any, get_type_hints

import pytest

from adaspa_cli.config import GenerateConfig
from adaspa_cli.config.fields import options_of


def classes(config: type) -> list[type]:
    """A dataclass, and what may be nested in it."""
    found = [config]
    for hint in get_type_hints(config).values():
        for option in options_of(hint):
            if dataclasses.is_dataclass(option):
                found += classes(option)  # type: ignore[arg-type]
    return found


def documented(config: type) -> set[str]:
    """What the docstrings of a class and of those above it name under "Attributes"."""
    names: set[str] = set()
    for above in config.__mro__:
        _, _, attributes = (above.__doc__ or "").partition("Attributes:\n")
        names |= set(re.findall(r"^ {8}(\w+): \S", attributes, re.MULTILINE))
    return names


@pytest.mark.parametrize("config", classes(GenerateConfig))
def test_every_field_is_documented(config: Any) -> None:
    assert {field.name for field in dataclasses.fields(config)} <= documented(config)
