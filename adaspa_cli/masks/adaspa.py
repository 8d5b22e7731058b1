"""AdaSpa: masks searched exactly at a few denoising steps and reused in between (arXiv 2502.21079)."""

from dataclasses import dataclass

from torch import Tensor

from adaspa_cli.masks.policy import Action, Call, FoundMask, MaskPolicy
from adaspa_cli.masks.selection import select


@dataclass(frozen=True)
class AdaSpa(MaskPolicy):
    """The method's settings.

    Attributes:
        sparsity: γ in [0, 1), share of the video blocks left out.
        search_steps: T, ascending 0-based denoising steps; everything before the first is dense (warm-up).
        block_size: tokens of a (query, key) block.
        head_adaptive: spread the sparsity over the heads by their recall, keeping its mean.
        lse_cache: searches after the first take their LSE from the first and cost one pass; otherwise each of them
            repeats the two-pass search (ablation "w/o LSE cache").
    """

    sparsity: float
    search_steps: tuple[int, ...]
    block_size: tuple[int, int] = (64, 64)
    head_adaptive: bool = True
    lse_cache: bool = True

    def action(self, call: Call, last_search: int | None) -> Action:
        """Search at the first executed call at or after each search step, so that a skipped call delays it only."""
        if not any(step <= call.step for step in self.search_steps):
            return Action.DENSE
        if last_search is None:
            return Action.DENSE_AND_SEARCH
        if not any(last_search < step <= call.step for step in self.search_steps):
            return Action.SPARSE
        return Action.SEARCH_AND_SPARSE if self.lse_cache else Action.DENSE_AND_SEARCH

    def keeps_lse(self, step: int) -> bool:
        """The LSE is worth its memory only while a cached search is still to come."""
        return self.lse_cache and any(later > step for later in self.search_steps)

    def search(self, call: Call, block_sums: Tensor) -> FoundMask:
        """Row-wise selection with text sink; W [H, Nq, Nk] of one sample."""
        return select(block_sums, call.layout, self.block_size, self.sparsity, head_adaptive=self.head_adaptive)
