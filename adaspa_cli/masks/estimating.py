"""Methods that estimate a mask of its own for every call after warm-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from adaspa_cli.masks.plan import DENSE, ESTIMATE, CallPlan
from adaspa_cli.masks.policy import Call, MaskPolicy
from adaspa_cli.masks.schedule import Sparsity


@dataclass(frozen=True)
class Estimating(MaskPolicy):
    """Settings of every such method.

    Attributes:
        sparsity: γ in [0, 1), share of the video blocks left out.
        warmup: dense steps at the start.
        block: tokens of a block, query and key alike.
    """

    sparsity: Sparsity
    warmup: int
    block: int = 64

    @classmethod
    def of(cls, config: Any, steps: int) -> Self:
        """The policy of a run with ``steps`` denoising steps; raises as :meth:`SparseConfig.schedule`.

        ``config`` is an :class:`~adaspa_cli.config.methods.EstimatingConfig`. A method with settings of its own
        overrides this, and annotates the class that has them.
        """
        return cls(config.sparsity_by_step(steps), config.schedule(steps)[0], config.block_size)

    @property
    def block_size(self) -> tuple[int, int]:
        return self.block, self.block

    def decide(self, call: Call, last_search: int | None) -> CallPlan:  # noqa: ARG002
        return DENSE if call.step < self.warmup else ESTIMATE
