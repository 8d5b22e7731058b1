"""Base classes for the settings of a method, by the way it attends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from adaspa_cli.config.fields import MOST_STEPS, at_least, check_fields, rule, setting, shown, within
from adaspa_cli.config.ramp import SparsityRamp
from adaspa_cli.errors import ConfigError

MOST_BLOCK_SIZE = 1024  # tokens: the largest block that any backend takes


@dataclass(frozen=True)
class AlgorithmConfig:
    """The settings of a method.

    Attributes:
        name: its value of ``algorithm``.
        policy: its policy, as ``module:class``; a name, because policies import torch.
        attached: whether attention is ours; if not, nothing else may be attached to the pipeline either.
        merges_tokens: whether tokens may be merged before its attention.
        any_order: whether it works whatever the order of the tokens; else they come frame by frame.
    """

    name: ClassVar[str]
    policy: ClassVar[str]
    attached: ClassVar[bool] = True
    merges_tokens: ClassVar[bool] = False
    any_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def check_chosen(self) -> None:
        """Raise ConfigError for settings that don't go together, of the method that runs; others ignore theirs."""

    @property
    def idle(self) -> Mapping[str, str]:
        """Keys without effect, given the others, each with what takes it from them."""
        return {}

    def sparsities(self, steps: int) -> tuple[float | None, ...]:
        """γ at each of ``steps`` denoising steps; None of a method without masks."""
        return (None,) * steps

    def mask_steps(self, steps: int, stages: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The denoising steps, of ``steps``, at which masks are found; ``stages`` as :meth:`SparseConfig.schedule`.

        Raises:
            ConfigError: an exact search step is beyond the last step.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class DenseConfig(AlgorithmConfig):
    """A method that attends densely at every step."""

    policy: ClassVar[str] = "adaspa_cli.masks.methods.full:Full"

    def mask_steps(self, steps: int, stages: tuple[int, ...] = ()) -> tuple[int, ...]:  # noqa: ARG002
        return ()


@rule(f"ascending, 0 to {MOST_STEPS - 1:,}")
def _check_search_steps(key: str, value: tuple[int, ...]) -> None:
    if not value or min(value) < 0:
        raise ConfigError(f"{key} must be one or more steps, 0 or higher, got {shown(value)}")
    if list(value) != sorted(set(value)):
        raise ConfigError(f"{key} must be ascending, got {shown(value)}")
    if value[-1] >= MOST_STEPS:
        raise ConfigError(f"{key} must be below {MOST_STEPS}, got {shown(value)}")


@rule("as 0:0.5,8%:0.7,20%:0.95")
def _check_ramp(key: str, value: str) -> None:
    SparsityRamp.parse(value, key)


@dataclass(frozen=True)
class SparseConfig(AlgorithmConfig):
    """A method that attends to some blocks only.

    Attributes:
        sparsity: γ in [0, 1), share of the video blocks left out; of a ramp, the last value.
        sparsity_ramp: γ by step (:mod:`adaspa_cli.config.ramp`); None: one γ for all steps. With a ramp, masks are
            searched at the first step with γ above 0, wherever γ changes, and at ``search_steps`` after its end.
        block_size: tokens per block, for queries and keys alike.
        search_steps: 0-based denoising steps at which masks are searched; before the first, attention is dense. Methods
            that find masks at every step only use the first of them.
        search_steps_for: number of denoising steps that ``search_steps`` refers to. A run that ends before the last of
            them scales them; None: use them as they are.
    """

    sparsity: float = setting(0.8, within("[0, 1)", lambda value: 0 <= value < 1, "0.8 leaves out 80 % of the blocks"))
    sparsity_ramp: str | None = setting(None, _check_ramp, late=True)
    block_size: int = setting(64, at_least(1, MOST_BLOCK_SIZE))
    search_steps: tuple[int, ...] = setting((10, 30), _check_search_steps)
    search_steps_for: int | None = setting(50, at_least(1, MOST_STEPS))

    def sparsity_by_step(self, steps: int) -> float | tuple[float, ...]:
        """γ of a run of ``steps`` denoising steps: one for all of them, or one for each."""
        if self.sparsity_ramp is None:
            return self.sparsity
        ramp = SparsityRamp.parse(self.sparsity_ramp)
        return tuple(ramp.at(step, steps) for step in range(steps))

    def sparsities(self, steps: int) -> tuple[float | None, ...]:
        sparsity = self.sparsity_by_step(steps)
        return sparsity if isinstance(sparsity, tuple) else (sparsity,) * steps

    def schedule(self, steps: int, stages: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The search steps of a run of ``steps`` denoising steps.

        Where several transformers each make a stage of the run, each searches at its first step after warm-up, and
        later at the same share of its own steps as a single one would of all. Exact search steps, and those at which a
        ramp changes, stay what they are; any others begin where the ramp ends, as its changes bring searches enough.

        Args:
            steps: of the whole run.
            stages: the first step of each stage after the first.

        Raises:
            ConfigError: an exact search step is beyond the last step, or the ramp leaves out nothing at any step.
        """
        own, changes = self._own_schedule(steps), self._changes(steps)
        first = changes[0] if changes else own[0]
        exact = self.search_steps_for is None
        end = changes[-1] if changes and not exact else first
        later = [step for step in own if step > end]
        found: set[int] = set()
        for start, stop in pairwise((0, *stages, steps)):
            begin = max(first, start)
            moved = (step if exact else begin + (step - first) * (stop - begin) // (steps - first) for step in later)
            found.update(step for step in (begin, *changes) if begin <= step < stop)
            found.update(step for step in moved if max(begin, end) <= step < stop)
        return tuple(sorted(found))

    def _changes(self, steps: int) -> tuple[int, ...]:
        """The first step at which the ramp leaves something out, and those at which it changes; none without a ramp."""
        sparsity = self.sparsity_by_step(steps)
        if not isinstance(sparsity, tuple):
            return ()
        first = next((step for step, value in enumerate(sparsity) if value), None)
        if first is None:
            raise ConfigError(f"sparsity_ramp {self.sparsity_ramp} leaves out nothing in {steps} steps")
        return first, *(step for step in range(first + 1, steps) if sparsity[step] != sparsity[step - 1])

    def _own_schedule(self, steps: int) -> tuple[int, ...]:
        last = self.search_steps[-1]
        if last < steps:
            return self.search_steps
        if self.search_steps_for is None:
            raise ConfigError(
                f"search step {last} is beyond the last step, which is {steps - 1}",
                hint="choose smaller --search-steps or more --steps",
            )
        scaled = {min(steps - 1, step * steps // self.search_steps_for) for step in self.search_steps}
        return tuple(sorted(scaled))


@dataclass(frozen=True)
class SearchingConfig(SparseConfig):
    """A method that searches for masks in exact block sums at the search steps; a mask file can hold them.

    Attributes:
        lse_cache: searches after the first reuse the log-sum-exp of the first, and take one pass instead of two.
    """

    lse_cache: bool = True

    @property
    def ranks_blocks(self) -> bool:
        """Whether a mask keeps the heaviest blocks of each row, so that it follows from their order."""
        return False

    @property
    def scores_blocks(self) -> bool:
        """Whether blocks are chosen by scores, and not only by their mass."""
        return False

    @property
    def selects_by(self) -> Literal["mass", "output-error"]:
        """What blocks are chosen by."""
        return "output-error" if self.scores_blocks else "mass"

    @property
    def layer_budget(self) -> bool:
        """Whether the rows of all heads of a layer share one budget of blocks."""
        return False

    def check_mask_file(self) -> None:
        """Raise ConfigError for what a mask file cannot hold."""
        if self.sparsity_ramp is not None:
            hint = f"add --sparsity {self.sparsity}, at which the ramp ends"
            raise ConfigError("a mask file holds masks of one sparsity, not of a ramp", hint=hint)

    @property
    def adapts_heads(self) -> bool:
        """Whether each head has a sparsity of its own, of which γ is the mean."""
        return False

    def mask_steps(self, steps: int, stages: tuple[int, ...] = ()) -> tuple[int, ...]:
        return self.schedule(steps, stages)


@dataclass(frozen=True)
class EstimatingConfig(SparseConfig):
    """A method that estimates a new mask in every call from the first search step on."""

    def mask_steps(self, steps: int, stages: tuple[int, ...] = ()) -> tuple[int, ...]:  # noqa: ARG002
        return tuple(range(self.schedule(steps)[0], steps))
