"""What merges tokens before attention: one dataclass each, and the union of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, get_args

from adaspa_cli.config.fields import check_fields, rule, setting, shown
from adaspa_cli.errors import ConfigError


@dataclass(frozen=True)
class MergeConfig:
    """Properties that the settings of every merging have.

    Attributes:
        name: its value of ``merge``.
    """

    name: ClassVar[str]


@dataclass(frozen=True)
class NoMerging(MergeConfig):
    """All tokens attend."""

    name: ClassVar[str] = "none"


@rule("three strides, 1 to 1,024")
def _check_grid(key: str, value: tuple[int, ...]) -> None:
    if len(value) != 3 or min(value) < 1:
        raise ConfigError(f"{key} must be three strides from 1 on, got {shown(value)}")
    if max(value) > 1024:
        raise ConfigError(f"{key} must be strides of at most 1024, got {shown(value)}")


@dataclass(frozen=True)
class TomeSdConfig(MergeConfig):
    """Token merging (arXiv 2303.17604).

    Attributes:
        tome_ratio: share of the video tokens that are merged into others, at most the share off the grid.
        tome_grid: strides, in tokens, of the tokens that others are merged into: over frames, rows and columns.
    """

    name: ClassVar[str] = "tomesd"

    tome_ratio: float = 0.5
    tome_grid: tuple[int, ...] = setting((1, 2, 2), _check_grid)

    def __post_init__(self) -> None:
        check_fields(self)
        largest = 1 - 1 / math.prod(self.tome_grid)
        if not 0 <= self.tome_ratio <= largest:
            raise ConfigError(
                f"tome_ratio must lie in [0, {largest:g}], the share of tokens off the grid {list(self.tome_grid)}, "
                f"got {self.tome_ratio}"
            )


Merging = NoMerging | TomeSdConfig
MERGES: tuple[str, ...] = tuple(merging.name for merging in get_args(Merging))
