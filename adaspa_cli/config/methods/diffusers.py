"""Settings of the pipeline as diffusers runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adaspa_cli.config.methods.base import DenseConfig


@dataclass(frozen=True)
class DiffusersConfig(DenseConfig):
    """Nothing is attached: diffusers' own processors attend, and the run is only timed."""

    name: ClassVar[str] = "diffusers"
    attached: ClassVar[bool] = False
