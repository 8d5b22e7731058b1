"""YAML as settings hold it: plain values, and no key twice."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from adaspa_cli.errors import ConfigError


class _KeyTwiceError(Exception):
    """A mapping has a key twice."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which takes a key of a mapping once only."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = None if key_node.tag == _MERGE else self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key is None:
                continue  # the safe loader says what is wrong
            if key in seen:
                raise _KeyTwiceError(f"the key '{key}' twice (line {key_node.start_mark.line + 1})")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that the loader would take for numbers."""


# PyYAML follows YAML 1.1, where 1e-2 and 1.5e3 are texts; as flags, and in YAML 1.2, they are numbers.
for _reader_or_writer in (_Loader, _Dumper):
    _reader_or_writer.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )

_MERGE = "tag:yaml.org,2002:merge"  # of the key <<, which adds another mapping

# What PyYAML raises for a value that is not what its tag or its form says, such as the date 2024-13-45.
_NOT_A_VALUE = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError)


def parse_yaml(text: str, origin: str) -> Any:
    """Read a YAML text.

    Args:
        text: what to read.
        origin: what a message calls it.

    Raises:
        ConfigError: it is not YAML, or has a key twice.
    """
    try:
        return yaml.load(text, _Loader)  # a safe loader
    except _KeyTwiceError as error:
        raise ConfigError(f"{origin} has {error}", hint="keep one of them") from None
    except RecursionError:
        raise ConfigError(f"{origin} is nested too deeply") from None
    except _NOT_A_VALUE as error:
        raise ConfigError(f"{origin} is not YAML: {_reason(error)}") from error


def yaml_line(value: Any) -> str:
    """A plain value as YAML, in one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()


def _reason(error: Exception) -> str:
    """One line."""
    reason = " ".join(str(error).split())
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        mark = error.problem_mark
        reason = f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    return reason if len(reason) <= 200 else f"{reason[:197]}..."
