"""Which denoising step a pipeline is at, learned from its scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adaspa_cli.errors import RunError
from adaspa_cli.hooks.override import Override


class StepClock:
    """Counts the steps of one pipeline instance: a run starts with ``set_timesteps``, a step ends with ``step``.

    It therefore also resets after a run that was interrupted, and needs nothing from whoever calls the pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._scheduler = pipe.scheduler
        self._steps: int | None = None
        self.step = 0
        self.on_start: list[Callable[[int], None]] = []
        self.on_step_end: list[Callable[[int], None]] = []
        self._overrides = [
            Override(self._scheduler, "set_timesteps", self._wrap_start),
            Override(self._scheduler, "step", self._wrap_step),
        ]

    @property
    def steps(self) -> int:
        """Denoising steps of the run in progress.

        Raises:
            RunError: no run was started on the scheduler that was wrapped.
        """
        if self._pipe.scheduler is not self._scheduler:
            raise RunError(
                "the scheduler was replaced after adaspa was applied",
                hint="set pipe.scheduler before adaspa_cli.apply()",
            )
        if self._steps is None:
            raise RunError("the transformer was called outside a run: no timesteps were set on the scheduler")
        return self._steps

    def _wrap_start(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._steps, self.step = len(self._scheduler.timesteps), 0
            for listener in self.on_start:
                listener(self._steps)
            return result

        return set_timesteps

    def _wrap_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            for listener in self.on_step_end:
                listener(self.step)
            self.step += 1
            return result

        return step

    def stop(self) -> None:
        """Give the scheduler its own methods back."""
        for override in self._overrides:
            override.restore()
