"""Full attention: the baseline that every other method is measured against; also what diffusers does by itself."""

from __future__ import annotations

from dataclasses import dataclass

from adaspa_cli.config.methods import DenseConfig
from adaspa_cli.masks.plan import DENSE, CallPlan
from adaspa_cli.masks.policy import Call, MaskPolicy


@dataclass(frozen=True)
class Full(MaskPolicy):
    """Dense attention at every step."""

    block_size: tuple[int, int] = (64, 64)

    @classmethod
    def of(cls, config: DenseConfig, steps: int) -> Full:  # noqa: ARG003
        """The policy of a run, of any number of denoising steps."""
        return cls()

    def decide(self, call: Call, last_search: int | None) -> CallPlan:  # noqa: ARG002
        return DENSE
