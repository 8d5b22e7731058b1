"""When a mask is found: at a few search steps and reused in between, or at every call after warm-up."""

from adaspa_cli.masks.policy import Action, Call


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
