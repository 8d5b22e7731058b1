"""Records of a run's attention, for its report. Tensors stay on the device until then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adaspa_cli.attention.compensated import Estimate
from adaspa_cli.distributed.heads import ALL_HEADS, Heads
from adaspa_cli.hooks.timing import Span
from adaspa_cli.masks import Call, CallPlan, FoundMask

NOT_MEASURED = Estimate()


@dataclass(frozen=True)
class Search:
    """One mask that was found or loaded; density and recall [H] of its heads."""

    layer: int
    branch: str
    sample: int
    step: int
    density: Tensor
    recall: Tensor | None
    loaded: bool
    heads: Heads = ALL_HEADS


@dataclass(frozen=True)
class AttentionCall:
    """One attention call."""

    layer: int
    step: int
    plan: CallPlan
    density: Tensor | None  # [H]; None for dense attention
    span: Span
    estimate: Estimate = NOT_MEASURED  # of its own error, [1, H] each
    heads: Heads = ALL_HEADS


def run_density(calls: Sequence[AttentionCall]) -> float | None:
    """Mean achieved density over attention calls and heads; dense calls count as 1. None without a call."""
    if not calls:
        return None
    sparse = [call.density for call in calls if call.density is not None]
    dense = len(calls) - len(sparse)
    return (dense + (float(torch.stack(sparse).mean(-1).sum()) if sparse else 0.0)) / len(calls)


def run_error(calls: Sequence[AttentionCall]) -> float | None:
    """Root mean square of the errors that repaired calls estimate, over these calls and their heads; None without any.
    Waits for the device."""
    errors = [call.estimate.after.float().flatten() for call in calls if call.estimate.after is not None]
    return float(torch.cat(errors).square().mean().sqrt()) if errors else None


@dataclass
class Records:
    """Calls and searches of one run, in their order."""

    calls: list[AttentionCall] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    densified: int = 0  # calls that were dense because of the error of the call before

    def search(self, call: Call, found: FoundMask, density: Tensor) -> None:
        """Note a mask."""
        place = (call.layer, call.branch, call.sample, call.step)
        self.searches.append(Search(*place, density, found.recall, found.loaded, call.heads))
