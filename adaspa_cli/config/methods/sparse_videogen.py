"""Settings of Sparse VideoGen (arXiv 2502.01776)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adaspa_cli.config.methods.base import EstimatingConfig


@dataclass(frozen=True)
class SparseVideoGenConfig(EstimatingConfig):
    """Each head attends in a spatial or a temporal band, classified at every step after warm-up."""

    name: ClassVar[str] = "sparse-videogen"
    policy: ClassVar[str] = "adaspa_cli.masks.methods.sparse_videogen:SparseVideoGen"
