"""Dataclasses to JSON and back, with every type checked on the way in."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

ABSENT = {"absent": True}  # metadata of a field that JSON has no key for where it is None
REST = {"rest": True}  # metadata of a mapping whose keys stand beside the other fields in JSON


def later(entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """Metadata of a mapping whose keys are a ``Literal``: what the keys that were added later read as in older files,
    as JSON.
    """
    return {"later": entries}


class ShapeError(ValueError):
    """JSON is not of the expected type; the message says where."""


def to_json(value: Any) -> Any:
    """A dataclass, and all in it, as what JSON has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        content: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            entry = getattr(value, field.name)
            if "rest" in field.metadata:
                content |= to_json(entry)
            elif entry is not None or "absent" not in field.metadata:
                content[field.name] = to_json(entry)
        return content
    if isinstance(value, Mapping):
        return {key: to_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(entry) for entry in value]
    return value


def from_json(kind: type[T], content: Any) -> T:
    """What JSON holds as a dataclass: a missing key reads as the field's default, and an unknown key is passed over.

    A mapping whose keys are a ``Literal`` must have all of them, but those of :func:`later`.

    Raises:
        ShapeError: a key without a default is missing, or a value is of another type.
    """
    return typing.cast(T, _read(kind, content, ""))


def _read(kind: Any, content: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if kind is Any or kind is object:
        return content
    if origin is typing.Literal:
        if content not in typing.get_args(kind):
            raise ShapeError(f"{where} is {content!r:.60}, none of {', '.join(typing.get_args(kind))}")
        return content
    if origin in (typing.Union, types.UnionType):
        return _read_union(typing.get_args(kind), content, where)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, content, where)
    if origin is tuple:
        if not isinstance(content, list):
            raise ShapeError(f"{where} is not a list")
        (entry, _) = typing.get_args(kind)
        return tuple(_read(entry, value, f"{where}[{number}]") for number, value in enumerate(content))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(content, dict):
            raise ShapeError(f"{where} is not an object")
        (name, entry) = typing.get_args(kind)
        for key in typing.get_args(name):
            if key not in content:
                raise ShapeError(f"{where}.{key} is missing")
        return {key: _read(entry, value, f"{where}.{key}") for key, value in content.items()}
    if kind is float and isinstance(content, int) and not isinstance(content, bool):
        return float(content)
    if not isinstance(content, kind) or (isinstance(content, bool) and kind is not bool):
        raise ShapeError(f"{where} is {content!r:.60}, not of type {getattr(kind, '__name__', kind)}")
    return content


def _read_union(kinds: Sequence[Any], content: Any, where: str) -> Any:
    problem: ShapeError | None = None
    for kind in kinds:
        if kind is type(None):
            if content is None:
                return None
            continue
        try:
            return _read(kind, content, where)
        except ShapeError as error:
            problem = problem or error
    raise problem or ShapeError(f"{where} is not null")


def _read_dataclass(kind: Any, content: Any, where: str) -> Any:
    if not isinstance(content, dict):
        raise ShapeError(f"{where or 'it'} is not an object")
    found: dict[str, Any] = {}
    hints, fields = _hints(kind), dataclasses.fields(kind)
    for field in fields:
        place = f"{where}.{field.name}" if where else field.name
        if "rest" in field.metadata:
            found[field.name] = {key: content[key] for key in content.keys() - {other.name for other in fields}}
        elif field.name in content:
            entry = content[field.name]
            if isinstance(entry, dict):
                entry = {**field.metadata.get("later", {}), **entry}
            found[field.name] = _read(hints[field.name], entry, place)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ShapeError(f"{place} is missing")
    return kind(**found)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
