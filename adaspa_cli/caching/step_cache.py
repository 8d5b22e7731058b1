"""What all caches share: they count skipped calls, start fresh in each run, and can be removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from adaspa_cli.hooks.clock import Listener, Order, StepClock
from adaspa_cli.hooks.override import Override
from adaspa_cli.models.attachment import Attachment

Unit = Literal["attention", "block"]


class WorkCounter:
    """Counts how often each of the blocks or attentions is computed, and how often it could have been.

    It sits below whatever else wraps the modules' ``forward``, so that it sees the calls that are really made.
    """

    def __init__(self, attachment: Attachment, unit: Unit, clock: StepClock) -> None:
        self._clock = clock
        self._computed: Counter[int] = Counter()  # calls by step, as all of these
        self._possible: Counter[int] = Counter()
        self.passes: Counter[int] = Counter()  # forward passes of a transformer
        family = attachment.family
        self._modules = {id(transformer): len(family.blocks(transformer)) for transformer in attachment.transformers}
        self._hooks = [transformer.register_forward_pre_hook(self._on_pass) for transformer in attachment.transformers]
        modules = attachment.blocks if unit == "block" else attachment.attentions
        self._overrides = [Override(module, "forward", self._counted) for module in modules]

    def _on_pass(self, transformer: nn.Module, _args: tuple[Any, ...]) -> None:
        self.passes[self._clock.step] += 1
        self._possible[self._clock.step] += self._modules[id(transformer)]

    def _counted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._computed[self._clock.step] += 1
            return original(*args, **kwargs)

        return forward

    def start(self) -> None:
        """Forget the run before."""
        self._computed.clear()
        self._possible.clear()
        self.passes.clear()

    @property
    def computed(self) -> int:
        """Calls that were made."""
        return self._computed.total()

    @property
    def possible(self) -> int:
        """Calls that would have been made without a cache."""
        return self._possible.total()

    def skipped(self, step: int | None = None) -> float | None:
        """Share of the calls of one step, or of the run, that were not made; None without a forward pass."""
        computed = self.computed if step is None else self._computed[step]
        possible = self.possible if step is None else self._possible[step]
        return (possible - computed) / possible if possible else None

    def stop(self) -> None:
        """Restore the modules' own ``forward``."""
        for hook in self._hooks:
            hook.remove()
        for override in self._overrides:
            override.restore()


class StepCache:
    """A cache at work on a pipeline's transformers; the subclasses say what is reused when.

    What is kept is given back at the run's end, because memory peaks in the VAE, and where one transformer takes over
    from another.

    Attributes:
        name: as the setting ``cache`` has it.
        unit: what is skipped, whole blocks or their attention.
        work: how much of it was.
    """

    def __init__(self, name: str, unit: Unit, attachment: Attachment, clock: StepClock) -> None:
        self.name, self.unit = name, unit
        self.work = WorkCounter(attachment, unit, clock)
        self._clock, self._stages = clock, attachment.stages
        self._firsts: tuple[int, ...] = ()  # steps at which one transformer takes over from another
        self._listener = Listener(Order.CACHE, start=self._on_start, step_end=self._on_step_end, end=self.release)
        clock.listen(self._listener)

    def start(self, steps: int) -> None:
        """Begin a run of that many denoising steps: nothing of an earlier one is left."""
        raise NotImplementedError

    def release(self) -> None:
        """Free the memory of reused results."""
        raise NotImplementedError

    def leave(self, transformer: int) -> None:  # noqa: ARG002  what is kept is all of that one
        """Free what is kept of a transformer, by its number, once it makes no more steps of the run."""
        self.release()

    def details(self) -> dict[str, Any]:
        """What the report has in addition to the counts."""
        return {}

    def report(self) -> dict[str, Any]:
        """Which cache ran, and the share of calls that it skipped; waits for the device."""
        counts = {"computed": self.work.computed, "possible": self.work.possible, "skipped": self.work.skipped()}
        return {"name": self.name, "unit": self.unit, **counts, **self.details()}

    def remove(self) -> None:
        """Restore the transformers as they were. May be called twice."""
        self.release()
        self.work.stop()
        self._clock.ignore(self._listener)

    def _on_start(self, steps: int) -> None:
        self.work.start()
        self._firsts = self._stages(steps)
        self.start(steps)

    def _on_step_end(self, step: int) -> None:
        if step + 1 in self._firsts:
            self.leave(self._firsts.index(step + 1))
