"""Fields of the configuration: what type a value must have, and which values a field takes.

A dataclass declares ``steps: int = setting(50, at_least(1, 10_000))`` and calls :func:`check_fields` where it is built.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from adaspa_cli.errors import ConfigError, nearest

Check = Callable[[str, Any], None]
"""Raises ConfigError for a value, of a key, that the field does not take. The value has the field's type."""


@dataclass(frozen=True)
class Rule:
    """Which values a field takes.

    Attributes:
        allowed: them in words, for the reference.
        check: refuses all others.
    """

    allowed: str
    check: Check

    def __call__(self, key: str, value: Any) -> None:
        self.check(key, value)


def rule(allowed: str) -> Callable[[Check], Rule]:
    """Make a rule of a function that checks."""
    return lambda check: Rule(allowed, check)


MOST_STEPS = 10_000  # denoising steps, and all that counts them
MOST_SCALE = 1_000.0  # guidance, thresholds and ratios: far above all that is of use, far below what overflows


def setting(default: Any, rule: Rule | None = None, *, late: bool = False) -> Any:
    """A dataclass field with a default and a rule for its values; None passes where the type allows it.

    A ``late`` field, one of a later version, is part of a run's fingerprint only where it is set: so it changes no
    fingerprint of runs without it.
    """
    return dataclasses.field(default=default, metadata={"late": late} | ({} if rule is None else {"rule": rule}))


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    return _short.repr(list(value) if isinstance(value, tuple) else value)


_short = reprlib.Repr()
_short.maxlist = _short.maxtuple = _short.maxdict = 12
_short.maxstring = _short.maxother = 80
_short.maxlong = 40


def limits(low: str, allowed: str, passes: Callable[[Any], bool], most: float) -> Rule:
    """Values that pass, up to ``most``; ``low`` says what those that do not pass must be."""
    hint = f"{allowed}, or leave it out for the preset's own value"

    @rule(allowed)
    def check(key: str, value: Any) -> None:
        if not passes(value):  # not a number passes nothing
            raise ConfigError(f"{key} must be {low}, got {shown(value)}", hint=hint)
        if value > most:
            raise ConfigError(f"{key} must be at most {most:g}, got {shown(value)}", hint=hint)

    return check


def at_least(least: float, most: float) -> Rule:
    """Counts."""
    return limits(f"at least {least}", f"{least:,} to {most:,}", lambda value: value >= least, most)


def from_on(least: float, most: float) -> Rule:
    """Numbers from ``least`` on."""
    return limits(f"a number from {least} on", f"{least:g} to {most:,.10g}", lambda value: value >= least, most)


def above_zero(most: float) -> Rule:
    """Numbers above 0."""
    return limits("above 0", f"above 0, up to {most:,.10g}", lambda value: value > 0, most)


def within(interval: str, passes: Callable[[Any], bool], hint: str | None = None) -> Rule:
    """Numbers that lie in ``interval``, such as ``[0, 1)``."""

    @rule(f"in {interval}")
    def check(key: str, value: Any) -> None:
        if not passes(value):
            raise ConfigError(f"{key} must lie in {interval}, got {shown(value)}", hint=hint)

    return check


def one_of(allowed: Sequence[str]) -> Rule:
    """Names."""
    return Rule(", ".join(allowed), lambda key, value: check_name(key, value, allowed))


def check_name(key: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a name that is not ``allowed``."""
    if value not in allowed:
        raise ConfigError(
            f"{key} '{_clipped(value)}' is unknown{nearest(value, allowed)}", hint=f"one of {', '.join(allowed)}"
        )


def _clipped(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_fields(config: Any) -> None:
    """Check the type and the rule of every field of a dataclass that is no configuration itself.

    Raises:
        ConfigError: names the field.
    """
    kind: type = type(config)
    hints = _hints(kind)
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if not is_plain(hint):
            continue
        fits, _ = fit(value, hint)
        if not fits:
            raise ConfigError(f"{field.name} must be {wanted(hint)}, got {shown(value)}")
        if value is not None and "rule" in field.metadata:
            field.metadata["rule"](field.name, value)


@functools.cache
def _hints(config: type) -> dict[str, Any]:
    return get_type_hints(config)


def options_of(hint: Any) -> tuple[Any, ...]:
    """The types that a union allows, or the one type."""
    return get_args(hint) if get_origin(hint) is types.UnionType else (hint,)


def is_plain(hint: Any) -> bool:
    """Whether a field holds a value, and not a configuration or one of several."""
    return not any(dataclasses.is_dataclass(option) for option in options_of(hint))


def fit(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether a value, as YAML or a program holds it, has the type of a field; and that value in the type.

    A single value stands for a list of one, and a whole number for a number.
    """
    for option in options_of(hint):
        fits, converted = _convert(value, option)
        if fits:
            return True, converted
    return False, None


def _convert(value: Any, hint: Any) -> tuple[bool, Any]:
    if get_origin(hint) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        converted = [_convert(item, get_args(hint)[0]) for item in items]
        return all(fits for fits, _ in converted), tuple(item for _, item in converted)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return True, float(value) if abs(value) < 1 << 1000 else math.copysign(math.inf, value > 0 or -1)
    if hint is int and isinstance(value, bool):
        return False, None
    return isinstance(value, hint), value


def wanted(hint: Any) -> str:
    """What a message calls the type of a field."""
    return " or ".join("nothing" if option is type(None) else _type_name(option) for option in options_of(hint))


def _type_name(hint: Any) -> str:
    if get_origin(hint) is tuple:
        items = {int: "whole numbers", float: "numbers", str: "texts"}
        return f"a list of {items[get_args(hint)[0]]}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]
