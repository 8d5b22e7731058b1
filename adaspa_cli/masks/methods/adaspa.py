"""AdaSpa: masks searched exactly at a few denoising steps and reused in between (arXiv 2502.21079)."""

from dataclasses import dataclass

from torch import Tensor

from adaspa_cli.masks.policy import Action, Call, FoundMask, MaskPolicy
from adaspa_cli.masks.schedule import search_action, search_keeps_lse
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
        return search_action(call, last_search, self.search_steps, lse_cache=self.lse_cache)

    def keeps_lse(self, step: int) -> bool:
        return search_keeps_lse(step, self.search_steps, lse_cache=self.lse_cache)

    def search(self, call: Call, block_sums: Tensor) -> FoundMask:
        """Row-wise selection with text sink; W [H, Nq, Nk] of one sample."""
        return select(block_sums, call.layout, self.block_size, self.sparsity, head_adaptive=self.head_adaptive)
