"""Settings of AdaSpa (arXiv 2502.21079) and of adaspa-plus, which extends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from adaspa_cli.config.fields import MOST_SCALE, above_zero, at_least, one_of, rule, setting, shown, within
from adaspa_cli.config.methods.base import SearchingConfig
from adaspa_cli.config.names import BUDGETS, REMAINDERS, REPAIRS, SELECTIONS
from adaspa_cli.errors import ConfigError

SEARCH_ROWS = (1, 2, 4, 8, 16)
MOST_PROBES = 4096

Budget = Literal["row", "head-adaptive", "layer"]


@rule(", ".join(map(str, SEARCH_ROWS)))
def _check_search_rows(key: str, value: int) -> None:
    if value not in SEARCH_ROWS:
        raise ConfigError(f"{key} must be one of {', '.join(map(str, SEARCH_ROWS))}, got {shown(value)}")


@dataclass(frozen=True)
class AdaSpaConfig(SearchingConfig):
    """AdaSpa: the heaviest blocks of every row, searched exactly at a few steps; and the pieces of adaspa-plus.

    Attributes:
        head_adaptive: adapt the sparsity of each head to its recall; the mean over the heads stays γ.
        budget: what shares one budget of kept blocks: ``row``, ``head-adaptive``, or ``layer`` (all heads and rows);
            None: one of the first two, by ``head_adaptive``.
        selection: keep the blocks of largest ``mass``, or (``output-error``) those whose absence would change the
            output most.
        remainder: ``drop`` left-out blocks, or attend to one summary of each, its mean key and value (``pooled``).
        repair: ``probes`` attends densely from a few query rows, and corrects all others by what their sparse output
            lacked.
        probes: number of probe rows, spread evenly over the video.
        repair_ridge: strength λ of the ridge regression in the repair.
        max_error: attention error above which a layer attends densely and searches a new mask at the next step; None:
            no limit. Estimated on the probes after the repair, relative to the norm of dense attention.
        search_rows: read every Nth query row of a block in a search, for an Nth of the work.
        lse: where searches after the first take the log-sum-exp (LSE) from: ``cached`` from the first search, or
            ``fresh`` from the sparse output of the step before, which needs the pooled remainder.
    """

    name: ClassVar[str] = "adaspa"
    policy: ClassVar[str] = "adaspa_cli.masks.methods.adaspa:AdaSpa"
    any_order: ClassVar[bool] = True

    head_adaptive: bool = True
    budget: str | None = setting(None, one_of(BUDGETS), late=True)
    selection: str = setting("mass", one_of(SELECTIONS), late=True)
    remainder: str = setting("drop", one_of(REMAINDERS), late=True)
    repair: str = setting("none", one_of(REPAIRS), late=True)
    probes: int = setting(64, at_least(2, MOST_PROBES), late=True)
    repair_ridge: float = setting(10.0, above_zero(MOST_SCALE), late=True)
    max_error: float | None = setting(None, within("(0, 1]", lambda value: 0 < value <= 1), late=True)
    search_rows: int = setting(1, _check_search_rows, late=True)
    lse: str = setting("cached", one_of(("cached", "fresh")), late=True)

    def check_chosen(self) -> None:
        if self.block_size % self.search_rows:
            raise ConfigError(
                f"search_rows must divide block_size, and {self.search_rows} does not divide {self.block_size}",
                hint="1 reads every row",
            )
        if self.max_error is not None and self.repair == "none":
            raise ConfigError("max_error needs repair 'probes', which measures the error", hint="add --repair probes")
        if self.lse == "fresh" and (self.remainder == "drop" or not self.lse_cache):
            pooled = ("remainder 'pooled', which gives it", "--remainder pooled")
            what, flag = pooled if self.remainder == "drop" else ("lse_cache", "--lse-cache")
            raise ConfigError(f"lse 'fresh' needs {what}", hint=f"add {flag}, or --set lse=cached")

    @property
    def idle(self) -> Mapping[str, str]:
        repair = {} if self.repair == "probes" else dict.fromkeys(("probes", "repair_ridge"), "without repair 'probes'")
        return repair if self.budget is None else {"head_adaptive": f"with budget '{self.budget}'"} | repair

    @property
    def spreading(self) -> Budget:
        """What shares one budget of kept blocks."""
        if self.budget is None:
            return "head-adaptive" if self.head_adaptive else "row"
        return self.budget  # type: ignore[return-value]  # checked by its rule

    @property
    def scores_blocks(self) -> bool:
        return self.selection == "output-error"

    @property
    def layer_budget(self) -> bool:
        return self.spreading == "layer"

    @property
    def ranks_blocks(self) -> bool:
        return not self.scores_blocks and not self.layer_budget

    @property
    def adapts_heads(self) -> bool:
        return self.spreading == "head-adaptive"
