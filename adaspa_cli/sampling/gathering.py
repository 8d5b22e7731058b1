"""The records of several processes as those of one: of all heads, and of both guidance branches.

Processes that share tokens make the same calls in the same order, each with its own heads. Times of attention stay
those of the leader, which were measured where the steps were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from adaspa_cli.attention.compensated import Estimate
from adaspa_cli.distributed.teams import Teams
from adaspa_cli.distributed.world import World
from adaspa_cli.hooks.timing import Span
from adaspa_cli.masks.plan import Attention, CallPlan, MaskSource
from adaspa_cli.sampling.records import AttentionCall, Records, Search

_FIGURES = ("pooled", "before", "after")


@dataclass(frozen=True)
class Shared:
    """How several processes made a video together.

    Attributes:
        processes: how many there were.
        branches: guidance branches that ran at the same time.
        communication: seconds of the leader's exchanges by step, waiting for others included.
        attention: seconds of attention by step, of each process.
        peaks: peak memory of each process, as :func:`~adaspa_cli.sampling.memory.peak_memory` has it.
    """

    processes: int
    branches: int
    communication: tuple[float, ...]
    attention: tuple[tuple[float, ...], ...]
    peaks: tuple[dict[str, int], ...]


def gather_records(
    world: World, name: str, records: Records, peak: dict[str, int], exchanges: Exchanges
) -> tuple[Records, Shared] | None:
    """Whole records for the leader; None for the others. Every process calls it after each video; waits for the device.

    Args:
        name: of the video among those of the run.
        exchanges: of this process in the run.
    """
    seconds = [call.span.seconds() for call in records.calls]
    own = {
        "calls": [_call(call) for call in records.calls],
        "searches": [_search(search) for search in records.searches],
        "densified": records.densified,
        "attention": _by_step(records, seconds, exchanges.steps),
        "peak": peak,
    }
    everybody = world.collect(name, own)
    if not everybody:
        return None
    spans = [Span(0.0, value) for value in seconds]
    parts = world.teams.tokens.size
    groups = [everybody[first : first + parts] for first in range(0, len(everybody), parts)]
    whole = Records(densified=sum(group[0]["densified"] for group in groups))
    for group in groups:
        for index, calls in enumerate(zip(*(one["calls"] for one in group), strict=True)):
            own_branch = group is groups[0]
            whole.calls.append(_whole_call(calls, spans[index] if own_branch else Span(0.0, 0.0)))
        whole.searches += [_whole_search(found) for found in zip(*(one["searches"] for one in group), strict=True)]
    shared = Shared(
        processes=len(everybody),
        branches=len(groups),
        communication=exchanges.by_step(),
        attention=tuple(tuple(one["attention"]) for one in everybody),
        peaks=tuple(one["peak"] for one in everybody),
    )
    return whole, shared


class Exchanges:
    """Whose step each exchange of a run was."""

    def __init__(self, teams: Teams) -> None:
        self._teams = teams
        self.start()

    def start(self) -> None:
        """Begin a run."""
        for team in self._teams:
            team.start()
        self._ends: list[list[int]] = []  # by step and team, exchanges until its end

    def end_step(self, _step: int) -> None:
        """A step is over."""
        self._ends.append([len(team.spans) for team in self._teams])

    @property
    def steps(self) -> int:
        """Steps that are over."""
        return len(self._ends)

    def by_step(self) -> tuple[float, ...]:
        """Seconds of each step; waits for the device."""
        starts = [[0] * len(list(self._teams)), *self._ends]
        return tuple(
            sum(span.seconds() for team, a, b in zip(self._teams, *ends, strict=True) for span in team.spans[a:b])
            for ends in pairwise(starts)
        )


def _by_step(records: Records, seconds: Sequence[float], steps: int) -> list[float]:
    """The seconds of the calls of each step."""
    sums = [0.0] * steps
    for call, value in zip(records.calls, seconds, strict=True):
        sums[call.step] += value
    return sums


def _call(call: AttentionCall) -> dict[str, Any]:
    estimate = call.estimate
    return {
        "place": [call.layer, call.step],
        "plan": [call.plan.attention.value, call.plan.mask.value],
        "heads": call.heads.own,
        "density": _list(call.density),
        "work": estimate.work,
        **{figure: _list(getattr(estimate, figure)) for figure in _FIGURES},
    }


def _whole_call(parts: Sequence[dict[str, Any]], span: Span) -> AttentionCall:
    first = parts[0]
    attention, mask = first["plan"]
    figures = {figure: _heads(parts, figure) for figure in _FIGURES}
    estimate = Estimate(first["work"], **{key: None if x is None else x[None] for key, x in figures.items()})
    plan = CallPlan(Attention(attention), MaskSource(mask))
    layer, step = first["place"]
    return AttentionCall(layer, step, plan, _heads(parts, "density"), span, estimate)


def _search(search: Search) -> dict[str, Any]:
    return {
        "place": [search.layer, search.branch, search.sample, search.step],
        "loaded": search.loaded,
        "heads": search.heads.own,
        "density": _list(search.density),
        "recall": _list(search.recall),
    }


def _whole_search(parts: Sequence[dict[str, Any]]) -> Search:
    density = _heads(parts, "density")
    assert density is not None
    layer, branch, sample, step = parts[0]["place"]
    return Search(layer, branch, sample, step, density, _heads(parts, "recall"), parts[0]["loaded"])


def _list(x: Tensor | None) -> list[float] | None:
    return None if x is None else x.flatten().tolist()


def _heads(parts: Sequence[dict[str, Any]], key: str) -> Tensor | None:
    """What all processes have of their heads, in the order of the heads."""
    if any(part[key] is None for part in parts):
        return None
    values = [value for part in parts for value in part[key]]
    heads = [head for part in parts for head in part["heads"] or range(len(part[key]))]
    return torch.tensor([values[place] for place in sorted(range(len(heads)), key=heads.__getitem__)], device="cpu")
