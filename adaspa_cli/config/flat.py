"""Flat keys for nested dataclasses: files and flags name each setting by one word, wherever it is nested.

- A field that holds a value is a key of its own name.
- A field that holds a dataclass adds that one's keys.
- A field that holds one of several dataclasses, a *choice*, is a key of its own name whose value is the ``name`` of the
  chosen one; the keys of all of them are keys, whichever is chosen. Several may share a key, with one type and default.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from adaspa_cli.config.fields import Rule, check_name, is_plain, options_of

Config = TypeVar("Config")


@dataclass(frozen=True)
class Key:
    """The type, the default and the rule of a key; see :func:`~adaspa_cli.config.fields.setting` for late ones."""

    hint: Any
    default: Any
    late: bool = False
    rule: Rule | None = None


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, built if it is a configuration."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


@functools.cache
def keys_of(section: type) -> Mapping[str, Key]:
    """Every key of a dataclass and of what is nested in it, in their order."""
    keys: dict[str, Key] = {}
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        hint = hints[field.name]
        if is_plain(hint):
            keys[field.name] = Key(hint, field.default, bool(field.metadata.get("late")), field.metadata.get("rule"))
            continue
        options = options_of(hint)
        if len(options) > 1:
            keys[field.name] = Key(str, default_of(field).name)
        for option in options:
            keys.update(keys_of(option))
    return keys


def build(section: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a dataclass and what is nested in it from the values of all its keys.

    Of a choice all dataclasses are built, so that a wrong value is refused also where it is of no use.

    Raises:
        ConfigError: a choice or a value that is not allowed.
    """
    parts: dict[str, Any] = {}
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        hint = hints[field.name]
        if is_plain(hint):
            parts[field.name] = values[field.name]
            continue
        options = options_of(hint)
        built = {getattr(option, "name", ""): build(option, values) for option in options}
        if len(options) > 1:
            check_name(field.name, values[field.name], tuple(built))
        parts[field.name] = built[values[field.name] if len(options) > 1 else next(iter(built))]
    return section(**parts)


def used_keys(config: Any) -> tuple[str, ...]:
    """The keys of a built dataclass that mean something to it: of a choice, only those of the chosen one.

    A dataclass whose settings make others of its own meaningless names these in ``idle``; see :func:`idle_keys`.
    """
    keys: list[str] = []
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        nested = not is_plain(hints[field.name])
        if not nested or len(options_of(hints[field.name])) > 1:
            keys.append(field.name)
        if nested:
            keys += used_keys(getattr(config, field.name))
    return tuple(key for key in keys if key not in getattr(config, "idle", ()))


def idle_keys(config: Any) -> dict[str, str]:
    """The keys of a built dataclass that mean nothing to it, each with what leaves it without an effect."""
    reasons: dict[str, str] = {}
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        if not is_plain(hints[field.name]):
            value = getattr(config, field.name)
            others = (key for option in options_of(hints[field.name]) for key in keys_of(option))
            reasons |= dict.fromkeys(others, f"with {field.name} {getattr(value, 'name', '')}") | idle_keys(value)
    used = used_keys(config)
    return {key: reason for key, reason in (reasons | dict(getattr(config, "idle", {}))).items() if key not in used}
