"""The denoising steps of a report: what each did and how long it took, measured or estimated."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from adaspa_cli.masks.plan import DENSE, PLANS, SPARSE

if TYPE_CHECKING:
    from adaspa_cli.hooks.timing import Span
    from adaspa_cli.sampling.records import AttentionCall


def step_table(spans: list[Span], calls: list[AttentionCall]) -> list[dict[str, Any]]:
    """Per denoising step: its phase, its time and that of its attention, and the mean density over its calls."""
    by_step: dict[int, list[AttentionCall]] = defaultdict(list)
    for call in calls:
        by_step[call.step].append(call)
    return [
        {
            "step": step,
            "phase": _phase(by_step[step]),
            "seconds": span.seconds(),
            "attention": sum(call.span.seconds() for call in by_step[step]),
            "density": run_density(by_step[step]),
            "estimated": False,
        }
        for step, span in enumerate(spans)
    ]


def untouched_steps(spans: list[Span]) -> list[dict[str, Any]]:
    """The same for a pipeline that attended by itself: every step dense, the time of attention unknown."""
    return [
        {
            "step": step,
            "phase": DENSE.phase,
            "seconds": span.seconds(),
            "attention": None,
            "density": 1.0,
            "estimated": False,
        }
        for step, span in enumerate(spans)
    ]


def _phase(calls: list[AttentionCall]) -> str:
    """The phase that most layers were in; a cache may leave a layer out at a search step.

    Of two the one that finds masks: a branch of guidance that shares those of the other finds none.
    """
    if not calls:
        return "skipped"
    plans = [call.plan for call in calls]
    plain = (DENSE, SPARSE)
    return max(PLANS, key=lambda plan: (plans.count(plan), plan not in plain)).phase


def run_density(calls: list[AttentionCall]) -> float | None:
    """Mean achieved density over attention calls and heads; dense calls count as 1. None without a call."""
    if not calls:
        return None
    sparse = [call.density for call in calls if call.density is not None]
    dense = len(calls) - len(sparse)
    return (dense + (float(torch.stack(sparse).mean(-1).sum()) if sparse else 0.0)) / len(calls)


def estimate_others(steps: Sequence[dict[str, Any]], phases: Sequence[str], computed: Collection[int]) -> None:
    """Give the steps that were not computed the typical figures of the computed ones of the same phase.

    Args:
        steps: what :func:`step_table` or :func:`untouched_steps` gave; changed.
        phases: phase of each step, of those that were not computed too.
        computed: steps that were; at least one of each phase.
    """
    for entry in steps:
        entry["estimated"] = entry["step"] not in computed
    for phase in set(phases):
        alike = [entry for entry in steps if phases[entry["step"]] == phase]
        measured = [entry for entry in alike if not entry["estimated"]]
        figures = {key: typical(measured, key) for key in ("seconds", "attention", "density")}
        for entry in alike:
            if entry["estimated"]:
                entry.update(figures, phase=phase)


def typical(computed: Sequence[dict[str, Any]], key: str) -> float | None:
    """The median of a figure over computed steps of one phase; without step 0, which holds the start of the run, if
    there are others.
    """
    later = [entry[key] for entry in computed if entry["step"] > 0]
    return median(later or [entry[key] for entry in computed])


def median(values: Sequence[float | None]) -> float | None:
    """The median of those values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def estimated_note(report: Mapping[str, Any]) -> str | None:
    """What a reader of a report with estimated steps must know; None if every step was computed."""
    estimated = report.get("estimated")
    if not estimated:
        return None
    return (
        f"estimated: {estimated['computed_steps']} of {estimated['of']} steps were computed, those at the beginning of "
        f"each phase (steps_per_phase: {estimated['steps_per_phase']}) and every search; each of the others counts as "
        f"the median of those of its phase"
    )
