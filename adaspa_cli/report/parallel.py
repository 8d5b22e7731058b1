"""The processes that made a video together, in a report."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from adaspa_cli.report.schema import ParallelUse

if TYPE_CHECKING:
    from adaspa_cli.hooks.timing import Span
    from adaspa_cli.sampling.gathering import Shared
    from adaspa_cli.sampling.steps_per_phase import StepsPerPhase


def parallel_use(shared: Shared, steps: Sequence[Span], chosen: StepsPerPhase | None) -> ParallelUse:
    """Figures of the computed steps, without the first one, which holds the start of the run, if there are others.

    Args:
        shared: what the processes said.
        steps: of the run.
        chosen: which of them were computed, where not all were.
    """
    computed = set(range(len(steps)) if chosen is None else chosen.computed) & set(range(len(shared.communication)))
    computed = computed - {0} or computed
    seconds = sum(steps[step].seconds() for step in computed)
    communication = sum(shared.communication[step] for step in computed)
    attention = tuple(sum(by_step[step] for step in computed) for by_step in shared.attention)
    together = attention[: shared.processes // shared.branches]
    return ParallelUse(
        processes=shared.processes,
        branches=shared.branches,
        communication=communication,
        share=communication / seconds if seconds else None,
        attention=attention,
        imbalance=max(together) / fmean(together) if any(together) else None,
        peak_gpu_bytes=tuple(peak["gpu_bytes"] for peak in shared.peaks if "gpu_bytes" in peak),
    )


def parallel_note(found: ParallelUse | None) -> str | None:
    """In one line; None where one process made the video."""
    if found is None:
        return None
    branches = f" ({found.branches} guidance branches)" if found.branches > 1 else ""
    share = "" if found.share is None else f", {found.share:.1%} of the steps spent on exchanges"
    balance = "" if found.imbalance is None else f", slowest attention {found.imbalance:.2f} x the mean"
    return f"made by {found.processes} processes{branches}{share}{balance}"
