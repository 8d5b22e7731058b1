"""When a mask is found: at a few search steps and reused in between, or at every call after warm-up; and how sparse."""

from adaspa_cli.masks.policy import Action, Call

Sparsity = float | tuple[float, ...]
"""γ in [0, 1), share of the video blocks left out: one for all denoising steps, or one for each."""


def sparsity_at(sparsity: Sparsity, step: int) -> float:
    """γ at a 0-based step; after the last one that is named, that one."""
    return sparsity[min(step, len(sparsity) - 1)] if isinstance(sparsity, tuple) else sparsity


def search_action(call: Call, last_search: int | None, search_steps: tuple[int, ...], *, lse_cache: bool) -> Action:
    """Search at the first executed call at or after each search step, so that a skipped call delays it only."""
    if not any(step <= call.step for step in search_steps):
        return Action.DENSE
    if last_search is None:
        return Action.DENSE_AND_SEARCH
    if not any(last_search < step <= call.step for step in search_steps):
        return Action.SPARSE
    return Action.SEARCH_AND_SPARSE if lse_cache else Action.DENSE_AND_SEARCH


def search_keeps_lse(step: int, search_steps: tuple[int, ...], *, lse_cache: bool) -> bool:
    """The LSE is worth its memory only while a cached search is still to come."""
    return lse_cache and any(later > step for later in search_steps)


def estimate_action(call: Call, warmup: int) -> Action:
    """Dense for the first ``warmup`` steps, and a mask of its own for each call after them."""
    return Action.DENSE if call.step < warmup else Action.ESTIMATE_AND_SPARSE
