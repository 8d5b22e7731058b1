"""Settings of AdaSpa (arXiv 2502.21079)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adaspa_cli.config.methods.base import SearchingConfig


@dataclass(frozen=True)
class AdaSpaConfig(SearchingConfig):
    """The heaviest blocks of every row, searched exactly at a few steps.

    Attributes:
        head_adaptive: spread the sparsity over the heads by their recall.
    """

    name: ClassVar[str] = "adaspa"
    ranks_blocks: ClassVar[bool] = True

    head_adaptive: bool = True

    @property
    def adapts_heads(self) -> bool:
        return self.head_adaptive
