"""Settings of MInference (arXiv 2407.02490)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adaspa_cli.config.methods.base import EstimatingConfig


@dataclass(frozen=True)
class MInferenceConfig(EstimatingConfig):
    """Vertical-slash or block-sparse for each head, estimated at every step after warm-up."""

    name: ClassVar[str] = "minference"
    policy: ClassVar[str] = "adaspa_cli.masks.methods.minference:MInference"
