"""The time of a run from the rates of a machine and the work of its steps; an estimate, of denoising only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adaspa_cli.attention import TokenLayout
from adaspa_cli.forecast.calibration import Rates
from adaspa_cli.forecast.steps import PlannedStep
from adaspa_cli.masks.plan import SPARSE, Attention, CallPlan, MaskSource


@dataclass(frozen=True)
class ModelWork:
    """The work of one video in one pass of each transformer.

    Attributes:
        layout: of the token sequence.
        heads, head_dim: of a layer.
        layers: attention layers of each transformer.
        rows: tokens that go through the linear layers, padding of the text included.
        linear_flops: floating-point operations of the linear layers of each transformer.
        branches: passes of a step: two with guidance, in one call or in two.
        shares_masks: whether the second branch borrows the masks of the first.
    """

    layout: TokenLayout
    heads: int
    head_dim: int
    layers: tuple[int, ...]
    rows: int
    linear_flops: tuple[float, ...]
    branches: int = 1
    shares_masks: bool = False

    @property
    def pairs(self) -> int:
        """Queries times keys of all heads of a layer."""
        return self.layout.tokens**2 * self.heads

    def attention_flops(self, steps: Sequence[PlannedStep]) -> float:
        """Of the two products of attention in all steps: four operations a pair and channel."""
        shares = sum(step.density * self.layers[step.stage] for step in steps)
        return 4.0 * self.pairs * self.head_dim * self.branches * shares


@dataclass(frozen=True)
class StepTime:
    """Estimated seconds of a step, and those of its attention."""

    seconds: float
    attention: float


def step_times(steps: Sequence[PlannedStep], work: ModelWork, rates: Rates) -> list[StepTime]:
    """The estimated time of each step, one by one."""
    return [_step_time(step, work, rates) for step in steps]


def _step_time(step: PlannedStep, work: ModelWork, rates: Rates) -> StepTime:
    if step.plan is None and step.whole:
        return StepTime(0.0, 0.0)
    layers, branches = work.layers[step.stage], work.branches
    attention = 0.0
    if step.plan is not None:
        calls = [step.plan] * branches
        if work.shares_masks and step.plan.gives_mask:
            calls[1:] = [SPARSE] * (branches - 1)
        attention = layers * sum(_call_time(plan, step.kept, work, rates) for plan in calls)
    channels = work.rows * work.heads * work.head_dim
    rest = work.linear_flops[step.stage] * rates.flop + layers * channels * rates.channel
    return StepTime(branches * rest + attention, attention)


def _call_time(plan: CallPlan, kept: float, work: ModelWork, rates: Rates) -> float:
    """Of all heads of a layer."""
    per_pair = 0.0
    if plan.mask.reads_dense_attention or plan.mask is MaskSource.CACHED_SEARCH:
        per_pair += rates.search
    if plan.mask is MaskSource.ESTIMATE:
        per_pair += rates.estimate
    if plan.attention is not Attention.SPARSE:
        return work.pairs * (per_pair + rates.dense)
    tokens = work.layout.tokens * work.heads
    return work.pairs * (per_pair + kept * rates.sparse + rates.pooled) + tokens * rates.repair
