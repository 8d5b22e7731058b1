"""A method that forwards to another one, for subclasses that change one thing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaspa_cli.attention.compensated import Compensation
from adaspa_cli.masks.plan import CallPlan
from adaspa_cli.masks.policy import Call, FoundMask, MaskPolicy


@dataclass(frozen=True)
class Forwarding(MaskPolicy):
    """Forwards everything to ``method``; subclasses change what they must."""

    method: MaskPolicy

    @property
    def block_size(self) -> tuple[int, int]:
        return self.method.block_size

    def decide(self, call: Call, last_search: int | None) -> CallPlan:
        return self.method.decide(call, last_search)

    def example(self) -> Call:
        return self.method.example()

    @property
    def stages(self) -> tuple[int, ...]:
        return self.method.stages

    @property
    def compensation(self) -> Compensation:
        return self.method.compensation

    @property
    def max_error(self) -> float | None:
        return self.method.max_error

    @property
    def search_rows(self) -> int:
        return self.method.search_rows

    @property
    def scores_blocks(self) -> bool:
        return self.method.scores_blocks

    def scores(self, block_sums: Tensor, values: Tensor) -> Tensor:
        return self.method.scores(block_sums, values)

    def keeps_lse(self, step: int) -> bool:
        return self.method.keeps_lse(step)

    @property
    def fresh_lse(self) -> bool:
        return self.method.fresh_lse

    def search(self, call: Call, block_sums: Tensor, scores: Tensor | None = None) -> FoundMask:
        return self.method.search(call, block_sums, scores)

    def load(self, call: Call, device: torch.device) -> FoundMask:
        return self.method.load(call, device)

    def estimate(self, call: Call, q: Tensor, k: Tensor, v: Tensor, scale: float) -> FoundMask:
        return self.method.estimate(call, q, k, v, scale)
