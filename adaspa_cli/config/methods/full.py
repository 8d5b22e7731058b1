"""Settings of dense attention, the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adaspa_cli.config.methods.base import DenseConfig


@dataclass(frozen=True)
class FullConfig(DenseConfig):
    """Dense attention at every step: the baseline. Caches and merging may join it."""

    name: ClassVar[str] = "full"
    merges_tokens: ClassVar[bool] = True
    any_order: ClassVar[bool] = True
