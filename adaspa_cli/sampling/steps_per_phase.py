"""Only some denoising steps of each phase are computed: times of a long run in a part of its time.

Steps of one phase that are as sparse take the same time, whatever they compute. So a run with random weights, whose
video is of no use, needs each phase a few times only. For the other steps the transformer answers zeros, and the
schedule continues; the report estimates what they would have taken (:mod:`adaspa_cli.report.steps`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from adaspa_cli.hooks.clock import Listener, Order, StepClock
from adaspa_cli.hooks.override import Override
from adaspa_cli.masks.plan import CallPlan, MaskSource
from adaspa_cli.models.registry import family_of
from adaspa_cli.sampling.engine import AttentionEngine

Kind = tuple[CallPlan, *tuple[Hashable, ...]]


class StepsPerPhase:
    """At work on one pipeline from the start of a run to its last step.

    The transformer is wrapped again for each run: offloading takes wrappers off when a pipeline's call returns.

    Attributes:
        number: steps of each phase that are computed.
        plan: what the attention calls of each step of the last run did, or would have done.
        sparsities: γ at each step of the last run.
        stages: number of the transformer that makes each step of the last run.
        computed: steps of the last run that are computed.
    """

    def __init__(
        self,
        pipe: Any,
        engine: AttentionEngine,
        clock: StepClock,
        number: int,
        sparsities: Callable[[int], Sequence[float | None]],
    ) -> None:
        """
        Args:
            pipe: the pipeline; no cache skips work in it.
            engine: says what the steps of a run do.
            clock: of the pipeline.
            number: steps of each phase that are computed.
            sparsities: γ at each step of a run of so many steps.
        """
        self._pipe, self._engine, self._clock = pipe, engine, clock
        self._overrides: list[Override] = []
        self._zeros: Callable[[], tuple[Tensor, ...]] = tuple
        self.number = number
        self.plan: list[CallPlan] = []
        self.sparsities: Sequence[float | None] = ()
        self.stages: Sequence[int] = ()
        self.computed: set[int] = set()
        self._sparsities = sparsities
        clock.listen(Listener(Order.CHOICE, start=self._begin, end=self.stop))

    def _begin(self, steps: int) -> None:
        self.stop()
        self.plan = self._engine.plan(steps)
        self.sparsities = self._sparsities(steps)
        policy = self._engine.policy
        before = policy is not None and policy.fresh_lse
        family = family_of(self._pipe)
        firsts = family.stages(self._pipe, steps)
        self.stages = [sum(first <= step for first in firsts) for step in range(steps)]
        kinds = list(zip(self.plan, self.sparsities, self.stages, strict=True))
        self.computed = choose_steps(kinds, self.number, before, firsts)
        self._overrides = [Override(one, "forward", self._wrap) for one in family.transformers(self._pipe)]

    def _wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._clock.step not in self.computed:
                return self._zeros()
            outputs: tuple[Tensor, ...] = original(*args, **kwargs)  # diffusers' pipelines ask for a tuple
            shapes = [(out.shape, out.dtype, out.device) for out in outputs]
            self._zeros = lambda: tuple(torch.zeros(s, dtype=dtype, device=device) for s, dtype, device in shapes)
            return outputs

        return forward

    def stop(self) -> None:
        """Restore the transformer's own ``forward``. May be called twice."""
        for override in self._overrides:
            override.restore()
        self._overrides = []


def choose_steps(plan: Sequence[Kind], number: int, fresh_lse: bool = False, firsts: tuple[int, ...] = ()) -> set[int]:
    """The first ``number`` steps of each kind, and every step that gives masks to those after it.

    The first step of each transformer is computed besides and not counted: it holds the start of the run, and shows
    what the transformer returns.

    Args:
        plan: what the steps do, γ of each, and the number of its transformer.
        number: steps of each kind.
        fresh_lse: a cached search needs the step right before it, whose LSE it takes.
        firsts: the first steps of the transformers after the first.
    """
    seen: Counter[Kind] = Counter()
    chosen: set[int] = set()
    for step, done in enumerate(plan):
        if step in (0, *firsts):
            chosen.add(step)
            continue
        if done[0].gives_mask or seen[done] < number:
            chosen.add(step)
        if fresh_lse and done[0].mask is MaskSource.CACHED_SEARCH:
            chosen.add(step - 1)
        seen[done] += 1
    return chosen
