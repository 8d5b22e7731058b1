"""Settings of a run from the command line: flags, ``--set KEY=VALUE`` and the file of ``--config``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaspa_cli.config.presets import PAPERS_METHOD
from adaspa_cli.errors import ConfigError

if TYPE_CHECKING:
    from adaspa_cli.config import Resolved


@dataclass(frozen=True)
class Given:
    """The settings given to a command.

    Attributes:
        flags: value of each flag that was given, by its setting's key.
        texts: of ``--set``.
        file: of ``--config``.
    """

    flags: dict[str, Any]
    texts: tuple[str, ...] = ()
    file: Path | None = None

    @classmethod
    def of(cls, values: dict[str, Any]) -> Given:
        """From the values of all flags, None or an empty list for those that were not given."""
        given = {key: value for key, value in values.items() if value not in (None, [])}
        texts, file = given.pop("set", ()), given.pop("config", None)
        return cls(
            {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}, tuple(texts), file
        )

    def settings(self) -> dict[str, Any]:
        """Flags and settings by name; a flag wins.

        Raises:
            ConfigError: one of them cannot be read.
        """
        from adaspa_cli.config.load import check_values, override, parse_steps

        found = override(check_values(parse_settings(self.texts), "--set"), self.flags)
        if isinstance(found.get("search_steps"), str):
            found["search_steps"] = parse_steps(found["search_steps"])
        return found

    def seeds(self) -> Sequence[int]:
        """Seeds as they were given: by flags, or else by settings, or else by the file; some may be there twice.

        Raises:
            ConfigError: they cannot be read.
        """
        from adaspa_cli.config.load import check_values, read_yaml

        from_file = read_yaml(self.file) if self.file else {}
        from_settings = check_values(parse_settings(self.texts), "--set")
        seeds: Sequence[int] = (from_file | from_settings | self.flags).get("seed", ())
        return seeds

    def resolve(self, default_method: str = PAPERS_METHOD, *, download: bool = True, **fixed: Any) -> Resolved:
        """The whole configuration.

        Args:
            default_method, download: see :func:`adaspa_cli.config.load.resolve`.
            **fixed: settings that the command itself makes.

        Raises:
            ConfigError: an unknown name or key, or an impossible value.
            ModelError: the model is neither a preset nor a checkpoint.
        """
        from adaspa_cli.config import resolve

        return resolve(self.settings() | fixed, self.file, default_method=default_method, download=download)


def parse_settings(given: Iterable[str]) -> dict[str, Any]:
    """Read KEY=VALUE texts, of which the value is YAML.

    Raises:
        ConfigError: one is not of that form.
    """
    from adaspa_cli.config.yaml_text import parse_yaml

    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set takes KEY=VALUE, got '{text}'", hint="--set steps=20")
        try:
            found[key.strip().replace("-", "_")] = parse_yaml(value, "it")
        except ConfigError:
            raise ConfigError(
                f"--set {key}: '{value}' is not a YAML value", hint="lists are written [10, 30]"
            ) from None
    return found
