"""AdaSpa: masks searched exactly at a few denoising steps and reused in between (arXiv 2502.21079)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from adaspa_cli.attention.compensated import NO_COMPENSATION, Compensation
from adaspa_cli.config.methods import AdaSpaConfig
from adaspa_cli.masks.budget import select_by_score
from adaspa_cli.masks.output_error import output_error
from adaspa_cli.masks.plan import CallPlan
from adaspa_cli.masks.policy import Call, FoundMask, MaskPolicy
from adaspa_cli.masks.schedule import Sparsity, plan_search, search_keeps_lse, sparsity_at
from adaspa_cli.masks.selection import select


@dataclass(frozen=True)
class AdaSpa(MaskPolicy):
    """The method's settings. The defaults are the paper's; the others are ``adaspa-plus``.

    Attributes:
        sparsity: γ in [0, 1), share of the video blocks left out.
        search_steps: T, ascending 0-based denoising steps; everything before the first is dense (warm-up).
        block_size: tokens of a (query, key) block.
        budget: how the kept blocks are spread over rows and heads (:mod:`adaspa_cli.masks.budget`).
        lse_cache: searches after the first take their LSE from the first and cost one pass; otherwise each of them
            repeats the two-pass search (ablation "w/o LSE cache").
        fresh_lse: they take it from the sparse output of the step before, which knows it from the remainder.
        selection: keep the blocks of the largest mass, or those without which the output would change most.
        search_rows: read every Nth query row of a block in a search.
        compensation: what makes up for the blocks that are left out.
        max_error: attention error above which a layer attends densely at the next step and searches a new mask.
        stages: the first step of each transformer after the first.
    """

    sparsity: Sparsity
    search_steps: tuple[int, ...]
    block_size: tuple[int, int] = (64, 64)
    budget: Literal["row", "head-adaptive", "layer"] = "head-adaptive"
    lse_cache: bool = True
    fresh_lse: bool = False
    selection: Literal["mass", "output-error"] = "mass"
    search_rows: int = 1
    compensation: Compensation = NO_COMPENSATION
    max_error: float | None = None
    stages: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: AdaSpaConfig, steps: int, stages: tuple[int, ...] = ()) -> AdaSpa:
        """The policy of a run with ``steps`` denoising steps; raises as :meth:`SparseConfig.schedule`."""
        return cls(
            sparsity=config.sparsity_by_step(steps),
            search_steps=config.schedule(steps, stages),
            block_size=(config.block_size, config.block_size),
            budget=config.spreading,
            lse_cache=config.lse_cache,
            fresh_lse=config.lse == "fresh",
            selection="output-error" if config.selection == "output-error" else "mass",
            search_rows=config.search_rows,
            compensation=Compensation(
                pooled=config.remainder == "pooled",
                probes=config.probes if config.repair == "probes" else 0,
                ridge=config.repair_ridge,
            ),
            max_error=config.max_error,
            stages=stages,
        )

    @property
    def scores_blocks(self) -> bool:
        return self.selection == "output-error"

    def scores(self, block_sums: Tensor, values: Tensor) -> Tensor:
        return output_error(block_sums, values)

    def decide(self, call: Call, last_search: int | None) -> CallPlan:
        return plan_search(call, last_search, self.search_steps, lse_cache=self.lse_cache)

    def keeps_lse(self, step: int) -> bool:
        """A fresh LSE is that of the step right before a search: nothing is kept any longer."""
        if self.fresh_lse:
            return self.lse_cache and step + 1 in self.search_steps[1:] and step + 1 not in self.stages
        return search_keeps_lse(step, self.search_steps, lse_cache=self.lse_cache, stages=self.stages)

    def search(self, call: Call, block_sums: Tensor, scores: Tensor | None = None) -> FoundMask:
        """Text sink, and of the video blocks those of the largest score.

        Args:
            call: the attention call.
            block_sums: W [H, Nq, Nk] of one sample.
            scores: of its blocks [H, Nq, Nk], for the selection by output error.
        """
        sparsity = sparsity_at(self.sparsity, call.step)
        if not self.scores_blocks and self.budget != "layer":
            adaptive = self.budget == "head-adaptive"
            return select(block_sums, call.layout, self.block_size, sparsity, head_adaptive=adaptive, among=call.heads)
        if not self.scores_blocks:
            scores = block_sums
        elif scores is None:
            raise ValueError("the selection by output error needs the scores of the blocks")
        return select_by_score(
            block_sums, scores, call.layout, self.block_size, sparsity, self.budget, among=call.heads
        )
