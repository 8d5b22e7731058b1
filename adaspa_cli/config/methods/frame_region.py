"""Settings of the frame-region method (arXiv 2502.21079, appendix, table A)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adaspa_cli.config.methods.base import SearchingConfig


@dataclass(frozen=True)
class FrameRegionConfig(SearchingConfig):
    """Columns or diagonals in each pair of frames, searched exactly at a few steps."""

    name: ClassVar[str] = "frame-region"
    policy: ClassVar[str] = "adaspa_cli.masks.methods.frame_region:FrameRegion"
