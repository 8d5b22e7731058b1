"""What the settings of a method can tell, by the way in which it attends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adaspa_cli.config.fields import MOST_STEPS, at_least, check_fields, setting, shown, within
from adaspa_cli.errors import ConfigError

MOST_BLOCK_SIZE = 1024  # tokens: the largest block that any backend takes


@dataclass(frozen=True)
class AlgorithmConfig:
    """The settings of a method.

    Attributes:
        name: what ``algorithm`` calls it.
        attached: whether attention is ours; if not, nothing else may be attached to the pipeline either.
        merges_tokens: whether tokens may be merged before its attention.
    """

    name: ClassVar[str]
    attached: ClassVar[bool] = True
    merges_tokens: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def mask_steps(self, steps: int) -> tuple[int, ...]:
        """The denoising steps, of ``steps``, at which masks are found.

        Raises:
            ConfigError: an exact search step lies beyond the last step.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class DenseConfig(AlgorithmConfig):
    """A method that attends densely at every step."""

    def mask_steps(self, steps: int) -> tuple[int, ...]:  # noqa: ARG002
        return ()


def _check_search_steps(key: str, value: tuple[int, ...]) -> None:
    if not value or min(value) < 0:
        raise ConfigError(f"{key} must be one or more steps from 0 on, got {shown(value)}")
    if list(value) != sorted(set(value)):
        raise ConfigError(f"{key} must be ascending, got {shown(value)}")
    if value[-1] >= MOST_STEPS:
        raise ConfigError(f"{key} must lie below {MOST_STEPS}, got {shown(value)}")


@dataclass(frozen=True)
class SparseConfig(AlgorithmConfig):
    """A method that attends to some blocks only.

    Attributes:
        sparsity: γ in [0, 1), share of the video blocks left out.
        block_size: tokens of a block, query and key alike.
        search_steps: 0-based denoising steps at which masks are searched; before the first, attention is dense.
            Only that matters to methods that find masks at every step.
        search_steps_for: number of denoising steps that ``search_steps`` is meant for. A run that ends before the last
            of them scales them; None means that they are exact.
    """

    sparsity: float = setting(0.8, within("[0, 1)", lambda value: 0 <= value < 1, "0.8 leaves out 80 % of the blocks"))
    block_size: int = setting(64, at_least(1, MOST_BLOCK_SIZE))
    search_steps: tuple[int, ...] = setting((10, 30), _check_search_steps)
    search_steps_for: int | None = setting(50, at_least(1, MOST_STEPS))

    def schedule(self, steps: int) -> tuple[int, ...]:
        """The search steps of a run of ``steps`` denoising steps.

        Raises:
            ConfigError: an exact search step lies beyond the last step.
        """
        last = self.search_steps[-1]
        if last < steps:
            return self.search_steps
        if self.search_steps_for is None:
            raise ConfigError(
                f"search step {last} lies beyond the last step, which is {steps - 1}",
                hint="choose smaller --search-steps or more --steps",
            )
        scaled = {min(steps - 1, step * steps // self.search_steps_for) for step in self.search_steps}
        return tuple(sorted(scaled))


@dataclass(frozen=True)
class SearchingConfig(SparseConfig):
    """A method that searches masks in exact block sums at the search steps; a mask file can hold them.

    Attributes:
        ranks_blocks: whether a mask keeps the heaviest blocks of each row, so that it follows from their order.
        lse_cache: searches after the first reuse its log-sum-exp.
    """

    ranks_blocks: ClassVar[bool] = False

    lse_cache: bool = True

    @property
    def adapts_heads(self) -> bool:
        """Whether each head has a sparsity of its own, of which γ is the mean."""
        return False

    def mask_steps(self, steps: int) -> tuple[int, ...]:
        return self.schedule(steps)


@dataclass(frozen=True)
class EstimatingConfig(SparseConfig):
    """A method that estimates a mask anew in every call from the first search step on."""

    def mask_steps(self, steps: int) -> tuple[int, ...]:
        return tuple(range(self.schedule(steps)[0], steps))
