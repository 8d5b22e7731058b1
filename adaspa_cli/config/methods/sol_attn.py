"""Settings of the rule of Sol-Attn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adaspa_cli.config.methods.base import EstimatingConfig


@dataclass(frozen=True)
class SolAttnConfig(EstimatingConfig):
    """Blocks whose pooled score stands out from its row, at every step after warm-up, with a summary of the others."""

    name: ClassVar[str] = "sol-attn"
    policy: ClassVar[str] = "adaspa_cli.masks.methods.sol_attn:SolAttn"
    any_order: ClassVar[bool] = True
