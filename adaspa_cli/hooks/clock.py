"""When a run of a pipeline begins and ends and which denoising step it is at, learned from its scheduler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from torch import Tensor, nn

from adaspa_cli.errors import RunError
from adaspa_cli.hooks.override import Override


class Order(IntEnum):
    """The order in which listeners are notified of a run's start, a step's end and the run's end."""

    READERS = 0  # look at what a run leaves, before it is forgotten
    ENGINE = 1
    CACHE = 2
    CHOICE = 3  # of the steps that are computed: asks the engine
    OBSERVERS = 4
    TIMES = 5  # last, so that a start's own work counts for no step


@dataclass(frozen=True, eq=False)
class Listener:
    """What is done at a run's start (with its number of steps), at each step's end (with its number, from 0),
    and at the run's end."""

    order: Order
    start: Callable[[int], None] = lambda _steps: None
    step_end: Callable[[int], None] = lambda _step: None
    end: Callable[[], None] = lambda: None


class StepClock:
    """Counts the steps of one pipeline instance.

    A run begins with ``set_timesteps`` of the scheduler, also after one that an exception ended. It ends with the last
    ``step``, or when the pipeline's call returns. Video-to-video pipelines leave out the first timesteps; where
    transformers are watched, their first call says which is the first.

    Attributes:
        step: the step in progress, from 0; after a run, its number of steps.
        first: index of the run's first timestep among those of the scheduler.
    """

    def __init__(self, pipe: Any, transformers: tuple[str, ...] = ("transformer",)) -> None:
        """``transformers`` are attributes of the pipeline; replacing one of them raises an error at the next run."""
        self._pipe = pipe
        self._scheduler = pipe.scheduler
        self._parts = {name: getattr(pipe, name, None) for name in ("scheduler", *transformers)}
        self._steps: int | None = None
        self._called = False  # whether the run has called a watched transformer
        self.step = self.first = 0
        self._listeners: list[Listener] = []
        self._watched: list[nn.Module] = []
        self._hooks: list[Any] = []
        self._overrides = [
            Override(self._scheduler, "set_timesteps", self._wrap_start),
            Override(self._scheduler, "step", self._wrap_step),
        ]
        if hasattr(pipe, "maybe_free_model_hooks"):  # diffusers calls it at the end of every pipeline
            self._overrides.append(Override(pipe, "maybe_free_model_hooks", self._wrap_return))

    @property
    def steps(self) -> int:
        """Denoising steps of the run in progress.

        Raises:
            RunError: no run is in progress on the scheduler that was wrapped.
        """
        self._check_parts()
        if self._steps is None:
            raise RunError(
                "the transformer was called outside a run of the pipeline that adaspa is applied to",
                hint="call that pipeline, or remove() the handle before others use its transformer",
            )
        return self._steps

    def listen(self, listener: Listener) -> None:
        """Add a listener; within one order, listeners are notified in the order in which they were added."""
        self._listeners = sorted([*self._listeners, listener], key=lambda known: known.order)

    def ignore(self, listener: Listener) -> None:
        """Remove a listener. May be called twice."""
        self._listeners = [known for known in self._listeners if known is not listener]

    def watch(self, transformer: nn.Module) -> None:
        """Check that each call of a transformer belongs to the run, by its keyword ``timestep``.

        From then on calls outside the run raise RunError, and so do those of a copy of the transformer.
        """
        self._watched.append(transformer)
        self._hooks.append(transformer.register_forward_pre_hook(self._on_forward, with_kwargs=True, prepend=True))

    def _check_parts(self) -> None:
        for name, part in self._parts.items():
            if getattr(self._pipe, name, None) is not part:
                raise RunError(
                    f"the {name} was replaced after adaspa was applied",
                    hint=f"set pipe.{name} before adaspa_cli.apply()",
                )

    def _wrap_start(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            self._check_parts()
            self.end()
            result = original(*args, **kwargs)
            self._begin(0)
            return result

        return set_timesteps

    def _begin(self, first: int) -> None:
        self._steps, self.step, self.first = len(self._scheduler.timesteps) - first, 0, first
        self._called = False
        for listener in self._listeners:
            listener.start(self._steps)

    def _wrap_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if self._steps is None:
                return result
            for listener in self._listeners:
                listener.step_end(self.step)
            self.step += 1
            if self.step == self._steps:
                self.end()
            return result

        return step

    def _wrap_return(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def maybe_free_model_hooks() -> Any:
            self.end()
            return original()

        return maybe_free_model_hooks

    def end(self) -> None:
        """Close the run: what is kept for its steps goes. Nothing happens where none is in progress."""
        if self._steps is None:
            return
        self._steps = None
        for listener in self._listeners:
            listener.end()

    def _on_forward(self, module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not any(module is watched for watched in self._watched):
            raise RunError(
                "this transformer is a copy of one that adaspa was applied to",
                hint="copy it before adaspa_cli.apply(), or after remove()",
            )
        steps, timestep = self.steps, kwargs.get("timestep")
        if timestep is None:
            return
        places = self._places(timestep)
        if not self._called and self.first + self.step not in places:
            if not places:
                raise RunError("the transformer was called at a timestep that is none of the scheduler's")
            self._begin(places[0])
        self._called = True
        if self.first + self.step not in places:
            raise RunError(
                f"the transformer was called outside step {self.step} (of 0 to {steps - 1}), which the run that adaspa "
                "follows is at: by another pipeline, or by hand",
                hint="call that pipeline, or remove() the handle before others use its transformer",
            )

    def _places(self, timestep: Tensor) -> list[int]:
        """Indices among the scheduler's timesteps of the one that a transformer is called with: [], [B], or [B, N].

        Pipelines hand on an element of the timesteps, so that its address tells the index. Only where they have
        converted it, its value is read, which waits for the device.
        """
        whole: Tensor = self._scheduler.timesteps
        if (
            timestep.dtype == whole.dtype
            and timestep.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        ):
            return [(timestep.storage_offset() - whole.storage_offset()) // whole.stride(0)]
        value = timestep.flatten()[-1]  # of an image to video the first tokens may have no noise
        return (whole.to(value.device, value.dtype) == value).nonzero().flatten().tolist()

    def stop(self) -> None:
        """End the run, and give the pipeline its own methods back. May be called twice."""
        self.end()
        for hook in self._hooks:
            hook.remove()
        for override in self._overrides:
            override.restore()
        self._listeners = []

    def __deepcopy__(self, _memo: dict[int, Any]) -> StepClock:
        """The hook on a copied transformer stays ours, and tells it from the original."""
        return self
