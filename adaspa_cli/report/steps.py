"""The denoising steps of a report: what each did and how long it took, measured or estimated."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from adaspa_cli.masks.plan import DENSE, PLANS, SPARSE
from adaspa_cli.report.schema import Report, Step
from adaspa_cli.sampling.records import run_density

if TYPE_CHECKING:
    from adaspa_cli.hooks.timing import Span
    from adaspa_cli.sampling.records import AttentionCall


def step_table(spans: list[Span], calls: list[AttentionCall]) -> list[Step]:
    """Per denoising step: its phase, its time and that of its attention, and the mean density over its calls."""
    by_step: dict[int, list[AttentionCall]] = defaultdict(list)
    for call in calls:
        by_step[call.step].append(call)
    return [
        Step(
            step,
            phase=_phase(by_step[step]),
            seconds=span.seconds(),
            attention=sum(call.span.seconds() for call in by_step[step]),
            density=run_density(by_step[step]),
        )
        for step, span in enumerate(spans)
    ]


def untouched_steps(spans: list[Span]) -> list[Step]:
    """The same for a pipeline that attended by itself: every step dense, the time of attention unknown."""
    return [Step(step, DENSE.phase, span.seconds(), None, 1.0) for step, span in enumerate(spans)]


def _phase(calls: list[AttentionCall]) -> str:
    """The phase that most layers were in; a cache may leave a layer out at a search step.

    Of two the one that finds masks: a branch of guidance that shares those of the other finds none.
    """
    if not calls:
        return "skipped"
    plans = [call.plan for call in calls]
    plain = (DENSE, SPARSE)
    return max(PLANS, key=lambda plan: (plans.count(plan), plan not in plain)).phase


def with_estimates(
    steps: Sequence[Step], kinds: Sequence[tuple[str, *tuple[Hashable, ...]]], computed: Collection[int]
) -> list[Step]:
    """The steps, those that were not computed with the typical figures of the computed ones of the same kind.

    Args:
        steps: what :func:`step_table` or :func:`untouched_steps` gave.
        kinds: phase, sparsity and number of the transformer of each step, of those that were not computed too.
        computed: steps that were; at least one of each kind.
    """
    measured: dict[tuple[str, *tuple[Hashable, ...]], list[Step]] = defaultdict(list)
    for step in steps:
        if step.step in computed:
            measured[kinds[step.step]].append(step)
    typical_steps = {
        kind: replace(
            alike[0],
            seconds=typical_seconds(alike) or 0.0,
            attention=typical_attention(alike),
            density=median([step.density for step in _later(alike)]),
            phase=kind[0],
            estimated=True,
        )
        for kind, alike in measured.items()
    }
    return [
        step
        if step.step in computed
        else replace(typical_steps[kinds[step.step]], step=step.step, skipped=step.skipped)
        for step in steps
    ]


def _later(computed: Sequence[Step]) -> Sequence[Step]:
    """Steps of one phase without step 0, which holds the start of the run, if there are others."""
    return [step for step in computed if step.step > 0] or computed


def typical_seconds(computed: Sequence[Step]) -> float | None:
    """The median time of computed steps of one phase, see :func:`_later`."""
    return median([step.seconds for step in _later(computed)])


def typical_attention(computed: Sequence[Step]) -> float | None:
    """The median time of attention in computed steps of one phase."""
    return median([step.attention for step in _later(computed)])


def median(values: Sequence[float | None]) -> float | None:
    """The median of those values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def estimated_note(report: Report) -> str | None:
    """What a reader of a report with estimated steps must know; None if every step was computed."""
    estimated = report.estimated
    if estimated is None:
        return None
    return (
        f"estimated: {estimated.computed_steps} of {estimated.of} steps were computed, those at the beginning of "
        f"each phase (steps_per_phase: {estimated.steps_per_phase}) and every search; each of the others counts as "
        f"the median of those of its phase"
    )
