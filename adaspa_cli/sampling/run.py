"""A run: from settings and a loaded pipeline to frames or latents, and the records of how they were made.

Nothing is written here. Shapes: F frames of height H and width W.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from adaspa_cli.config import Resolved
from adaspa_cli.distributed.refuse import check_guided
from adaspa_cli.distributed.world import World
from adaspa_cli.errors import RunError
from adaspa_cli.hooks.clock import Listener, Order
from adaspa_cli.hooks.timeline import Timeline
from adaspa_cli.models.registry import check_sampling, family_of
from adaspa_cli.models.seeded_noise import seeded_steps
from adaspa_cli.sampling.gathering import Exchanges, Shared, gather_records
from adaspa_cli.sampling.handle import Handle
from adaspa_cli.sampling.memory import peak_memory, reset_peak_memory
from adaspa_cli.sampling.pictures import call_pictures
from adaspa_cli.sampling.steps_per_phase import StepsPerPhase


class Observer(Protocol):
    """Is notified of the progress of a run."""

    def loading(self, model: str) -> None: ...
    def note(self, line: str) -> None: ...
    def started(self, videos: int, steps: int, backend: str | None) -> None: ...
    def video(self, number: int, prompt: str, seed: int) -> None: ...
    def phase(self, phase: str) -> None: ...
    def step_done(self, step: int) -> None: ...
    def decoding(self) -> None: ...


@dataclass(frozen=True)
class RunResult:
    """One video and the records of its run.

    The records live in the session: they are those of this run until the next one begins.

    Attributes:
        frames: uint8 [F, H, W, 3]; None if the run ended in latents.
        latents: as the transformer left them, in the layout of its family; None if they were decoded.
        prompt, seed: what it was made of.
        seconds: of the whole run.
        peak: peak memory in bytes, see :func:`~adaspa_cli.sampling.memory.peak_memory`.
        session: what ran it.
        shared: how several processes made it; None where one did.
    """

    frames: NDArray[np.uint8] | None
    latents: torch.Tensor | None
    prompt: str
    seed: int
    seconds: float
    peak: dict[str, int]
    session: Session
    shared: Shared | None = None


class Session:
    """The settings of runs at work on a loaded pipeline; see :func:`session`.

    Attributes:
        pipe: the pipeline.
        resolved: the settings.
        handle: of the method; its records are those of the last run.
        timeline: times of the last run.
        chosen: which steps of the last run were computed, where not all of them are; else None.
    """

    def __init__(self, pipe: Any, resolved: Resolved, handle: Handle, observer: Observer, world: World) -> None:
        self.pipe, self.resolved, self.handle, self._world = pipe, resolved, handle, world
        self._videos, self._exchanges = 0, Exchanges(handle.teams)
        handle.clock.listen(Listener(Order.TIMES, step_end=self._exchanges.end_step))
        handle.engine.on_call = lambda plan: observer.phase(plan.phase)
        handle.clock.listen(Listener(Order.OBSERVERS, step_end=observer.step_done))
        number = resolved.config.sampling.steps_per_phase
        sparsities = resolved.config.method.algorithm.sparsities
        self.chosen = None if number is None else StepsPerPhase(pipe, handle.engine, handle.clock, number, sparsities)
        self.timeline = Timeline(pipe, handle.clock, observer.decoding)

    def run(self, prompt: str, seed: int) -> RunResult:
        """Make one video. Where several processes do, the leader calls it, and the others :meth:`follow`.

        Raises:
            RunError: the model produced values that are not finite.
        """
        self._world.tell([prompt, seed])
        return self._run(prompt, seed)

    def follow(self) -> None:
        """Make what the leader makes, until it has no more."""
        while (told := self._world.hear()) is not None:
            self._run(*told)

    def _run(self, prompt: str, seed: int) -> RunResult:
        device, decodes = self.pipe._execution_device, self.resolved.config.decodes
        self.timeline.start()
        reset_peak_memory(device)
        self._exchanges.start()
        begin = time.perf_counter()
        video = sample(self.pipe, self.resolved, prompt, seed)
        frames = latents = None
        if decodes and self._world.leads:
            frames = to_frames(video)
        else:
            check_finite(video)
            latents = video
        seconds, peak = time.perf_counter() - begin, peak_memory(device)
        return RunResult(frames, latents, prompt, seed, seconds, peak, self, self._gather(peak))

    def _gather(self, peak: dict[str, int]) -> Shared | None:
        """Make the records those of all processes."""
        if self.handle.teams.all.alone:
            return None
        self._videos += 1
        engine = self.handle.engine
        found = gather_records(self._world, f"video {self._videos}", engine.records, peak, self._exchanges)
        if found is None:
            return None
        engine.records, shared = found
        return shared

    def stop(self) -> None:
        """Restore the pipeline's own methods."""
        self.timeline.stop()
        if self.chosen is not None:
            self.chosen.stop()


@contextmanager
def session(pipe: Any, resolved: Resolved, observer: Observer, world: World | None = None) -> Iterator[Session]:
    """Apply a run's method to a loaded pipeline, and remove it afterwards.

    Args:
        world: the processes that make each video together; None makes it alone.

    Raises:
        AdaspaError: the settings do not fit the pipeline.
    """
    world, config = World() if world is None else world, resolved.config
    check_sampling(pipe, config.sampling)
    facts = family_of(pipe).facts
    facts.check_image(config.sampling, random_weights=config.model.random_weights)
    if not world.teams.branches.alone:
        check_guided(facts, config.sampling)
    by_cost = config.parallel.head_deal == "cost"
    with Handle(pipe, config.method, teams=world.teams, deal_by_cost=by_cost) as handle:
        at_work = Session(pipe, resolved, handle, observer, world)
        try:
            yield at_work
        finally:
            at_work.stop()


def sample(pipe: Any, resolved: Resolved, prompt: str, seed: int) -> torch.Tensor:
    """Sample one video: frames [1, F, 3, H, W] in [0, 1], or latents if the run does not decode."""
    sampling, family = resolved.config.sampling, family_of(pipe)
    facts, transformer = family.facts, family.transformers(pipe)[0]
    generator = torch.Generator("cpu").manual_seed(seed)
    size = {"height": sampling.height, "width": sampling.width} if facts.sized else {}
    with torch.inference_mode(), seeded_steps(pipe.scheduler, generator), family.set_up(pipe, sampling):
        video: torch.Tensor = pipe(
            prompt=prompt,
            negative_prompt=sampling.negative_prompt,
            num_frames=sampling.frames + facts.dropped_frames(transformer.config),
            num_inference_steps=sampling.steps,
            generator=generator,
            output_type="pt" if resolved.config.decodes else "latent",
            **size,
            **call_pictures(facts, resolved.config),
            **facts.call_arguments(sampling),
        ).frames
    return video


def check_finite(video: torch.Tensor) -> None:
    """Raise RunError if frames or latents hold NaN or infinity."""
    if not torch.isfinite(video).all():
        raise RunError(
            "the model produced values that are not finite, so there is no video to write",
            hint="use --method full to check the checkpoint itself, and --dtype float32 if that fails too",
        )


def to_frames(video: torch.Tensor) -> NDArray[np.uint8]:
    """Frames [1, F, 3, H, W] in [0, 1] to uint8 [F, H, W, 3]; raises as :func:`check_finite` does."""
    check_finite(video)
    pixels = (video[0].permute(0, 2, 3, 1).float() * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.cpu().numpy()
