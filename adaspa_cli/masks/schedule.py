"""When masks are searched (at a few steps, with reuse in between), and their sparsity."""

import math

from adaspa_cli.masks.plan import CACHED_SEARCH, DENSE, SEARCH, SPARSE, CallPlan
from adaspa_cli.masks.policy import Call

Sparsity = float | tuple[float, ...]
"""γ in [0, 1), share of the video blocks left out: one for all denoising steps, or one for each."""


def sparsity_at(sparsity: Sparsity, step: int) -> float:
    """γ at a 0-based step; after the last one that is named, that one."""
    return sparsity[min(step, len(sparsity) - 1)] if isinstance(sparsity, tuple) else sparsity


def plan_search(call: Call, last_search: int | None, search_steps: tuple[int, ...], *, lse_cache: bool) -> CallPlan:
    """Search at the first executed call at or after each search step, so that a skipped call only delays it."""
    if not any(step <= call.step for step in search_steps):
        return DENSE
    if last_search is None:
        return SEARCH
    if not any(last_search < step <= call.step for step in search_steps):
        return SPARSE
    return CACHED_SEARCH if lse_cache else SEARCH


def search_keeps_lse(
    step: int, search_steps: tuple[int, ...], *, lse_cache: bool, stages: tuple[int, ...] = ()
) -> bool:
    """The LSE is worth its memory only while a cached search is still to come in the same stage."""
    stage_end = min((first for first in stages if first > step), default=math.inf)
    return lse_cache and any(step < later < stage_end for later in search_steps)
