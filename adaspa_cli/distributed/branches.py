"""The two branches of classifier-free guidance at the same time, each by one team of processes.

Guidance comes in two ways. In one pass both branches are a batch: each team gets its rows, and the outputs are put
together again. In two passes each team makes one and skips the other, for which an empty tensor is returned; when both
are due they are filled in place, which is before the pipeline reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from adaspa_cli.distributed.team import Team
from adaspa_cli.hooks.clock import Listener, Order, StepClock
from adaspa_cli.hooks.override import Override

BRANCHES = ("cond", "uncond")
"""By the rank in the team: the leader makes the conditional branch."""


class Passes(Protocol):
    """What is known of the forward pass in progress."""

    rows: Sequence[Any]
    branch: str


class BranchCalls:
    """At work on the transformers of a pipeline; :meth:`remove` takes it off."""

    def __init__(
        self,
        transformers: Sequence[Any],
        team: Team,
        passes: Passes,
        batch_inputs: Sequence[str],
        clock: StepClock,
    ) -> None:
        """
        Args:
            transformers: of the pipeline, called with keyword arguments.
            team: one process for each branch.
            passes: knows the rows of the pass in progress; they become those of this process's branch.
            batch_inputs: arguments of a transformer whose first dimension is the batch.
            clock: of the pipeline.
        """
        self._team, self._passes, self._batch_inputs, self._clock = team, passes, batch_inputs, clock
        self._made: dict[str, Tensor] = {}  # by the passes of this step
        self._listener = Listener(
            Order.CACHE, start=lambda _steps: self._made.clear(), step_end=lambda _step: self._made.clear()
        )
        clock.listen(self._listener)
        self._overrides = [Override(transformer, "forward", self._wrap(transformer)) for transformer in transformers]

    def _wrap(self, transformer: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(**inputs: Any) -> Any:
                if len({row.branch for row in self._passes.rows}) > 1:
                    return self._half(original, inputs)
                return self._one_of_two(original, inputs, transformer.config)

            return forward

        return wrap

    def _half(self, original: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """The rows of this process's branch, and then those of both."""
        rows = self._passes.rows
        own = [place for place, row in enumerate(rows) if row.branch == BRANCHES[self._team.rank]]
        part = slice(own[0], own[-1] + 1)
        for key in self._batch_inputs:
            if isinstance(inputs.get(key), Tensor):
                inputs[key] = inputs[key][part]
        self._passes.rows = rows[part]
        output = original(**inputs)
        by_branch = self._team.gather(_sample(output), [len(own)] * self._team.size).chunk(self._team.size)
        order = dict.fromkeys(BRANCHES.index(row.branch) for row in rows)
        return _with_sample(output, torch.cat([by_branch[branch] for branch in order]))

    def _one_of_two(self, original: Callable[..., Any], inputs: dict[str, Any], config: Any) -> Any:
        """One pass of two: its output, which may still be empty if it is the first."""
        branch = self._passes.branch
        if branch == BRANCHES[self._team.rank]:
            output = original(**inputs)
        else:
            batch, _, *size = inputs["hidden_states"].shape
            empty = inputs["hidden_states"].new_empty(batch, config.out_channels, *size)
            output = (empty,) if inputs.get("return_dict") is False else _output(empty)
        self._made[branch] = _sample(output)
        if len(self._made) == self._team.size:
            for source, name in enumerate(BRANCHES):
                self._team.broadcast(self._made[name], source)
            self._made.clear()
        return output

    def remove(self) -> None:
        """Restore the transformers' own ``forward``."""
        self._clock.ignore(self._listener)
        for override in self._overrides:
            override.restore()


def _sample(output: Any) -> Tensor:
    sample: Tensor = output[0] if isinstance(output, tuple) else output.sample
    return sample


def _with_sample(output: Any, sample: Tensor) -> Any:
    return (sample, *output[1:]) if isinstance(output, tuple) else _output(sample)


def _output(sample: Tensor) -> Any:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=sample)
