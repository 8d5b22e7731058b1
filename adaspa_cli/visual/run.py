"""A look at a model: every prompt and seed run densely, the first drawn, the others to try its masks on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adaspa_cli.attention import check_kernel
from adaspa_cli.attention import resolve as resolve_backend
from adaspa_cli.config import Resolved
from adaspa_cli.files.folders import check_folder
from adaspa_cli.hooks.clock import StepClock
from adaspa_cli.jobs.places import video_name
from adaspa_cli.models.attachment import Row
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.models.registry import check_sampling, family_of
from adaspa_cli.report.machine import machine, versions
from adaspa_cli.sampling.memory import memory_errors
from adaspa_cli.sampling.run import Observer, sample, to_frames
from adaspa_cli.visual.folder import whole_folder
from adaspa_cli.visual.look import Choice, Kept, Look, check_choice, spread
from adaspa_cli.visual.write import write_pictures


@dataclass(frozen=True)
class Wanted:
    """What to look at, as far as it was said; None leaves it to the model's size."""

    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    steps: tuple[int, ...]
    reference: int
    pixels: int
    query: tuple[int, int, int] | None

    def choose(self, layers: int, heads: int) -> Choice:
        """Fill in the first, the middle and the last layer, and the first and the middle head.

        Raises:
            ConfigError: the model has no such layer or head.
        """
        choice = Choice(
            self.layers or spread(layers),
            self.heads or tuple(sorted({0, heads // 2})),
            self.steps,
            self.reference,
            self.pixels,
            self.query,
        )
        check_choice(choice, layers, heads)
        return choice


@dataclass(frozen=True)
class Looked:
    """All that was seen, for the pictures.

    Attributes:
        choice: what was looked at.
        first: the look at the first video.
        videos: (prompt, seed) of each.
        across: of each video, by the number of one before it or its own: recall [H] of that one's masks, by layer.
        frames: uint8 [F, H, W, 3] of the first video; None if it ended in latents.
        facts: model, machine and versions.
    """

    choice: Choice
    first: Look
    videos: list[tuple[str, int]]
    across: list[dict[int, dict[int, list[float]]]]
    frames: NDArray[np.uint8] | None
    facts: dict[str, Any]


def visualize(resolved: Resolved, wanted: Wanted, observer: Observer, prompts: Sequence[str]) -> Path:
    """Run the model, and write a new folder of pictures; returns it.

    Raises:
        ConfigError: a layer, head or query that the model or the video does not have.
        AdaspaError: see :func:`~adaspa_cli.jobs.generate.generate`.
    """
    config = resolved.config
    check_folder(config.output.out)
    observer.loading(config.model.weights if config.model.weights != "bundled" else config.model.model)
    with memory_errors(config.model.offload):
        pipe = load_pipeline(config.model, decode=config.decodes)
        looked = look(pipe, resolved, wanted, observer, prompts)
    name = video_name(*looked.videos[0])
    return whole_folder(config.output.out, name, lambda folder: write_pictures(looked, resolved, folder))


def look(pipe: Any, resolved: Resolved, wanted: Wanted, observer: Observer, prompts: Sequence[str]) -> Looked:
    """Run every prompt with every seed; the pipeline is as it was afterwards.

    Of all videos but the first only the steps up to the reference step are computed.
    """
    config, shape = resolved.config, pipe.transformer.config
    check_sampling(pipe, config.sampling)
    backend = resolve_backend(config.method.attention_backend, pipe._execution_device)
    dtype = None if pipe._execution_device.type == "cpu" else pipe.transformer.dtype
    check_kernel(backend, shape.attention_head_dim, (config.method.block_size,) * 2, dtype)
    videos = [(prompt, seed) for prompt in prompts for seed in config.sampling.seed]
    masks: dict[int, dict[int, Kept]] = {}
    across: list[dict[int, dict[int, list[float]]]] = []
    first: Look | None = None
    frames = None
    observer.started(len(videos), config.sampling.steps, backend.name)
    for number, (prompt, seed) in enumerate(videos):
        observer.video(number, prompt, seed)
        seen = _look_at(pipe, resolved, wanted, observer, (prompt, seed), backend.name, masks, detail=number == 0)
        if first is None:
            first, frames = seen
        own = {layer: noted.recall for (layer, step), noted in seen[0].noted.items() if step == wanted.reference}
        across.append({**seen[0].across, number: own})
        masks[number] = seen[0].masks
    assert first is not None
    facts: dict[str, Any] = {"versions": versions(), "machine": machine(pipe._execution_device)}
    facts |= {"attention_backend": backend.name, "heads": shape.num_attention_heads}
    return Looked(first.choice, first, videos, across, frames, facts)


def _look_at(
    pipe: Any,
    resolved: Resolved,
    wanted: Wanted,
    observer: Observer,
    video: tuple[str, int],
    backend: str,
    masks: dict[int, dict[int, Kept]],
    *,
    detail: bool,
) -> tuple[Look, NDArray[np.uint8] | None]:
    """Run one video: the first to its end, with pictures, others as far as their masks are needed."""
    clock = StepClock(pipe)

    def attend(layer: int, row: Row, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return seen(layer, row, q, k, v)

    try:
        attachment = family_of(pipe).attach(pipe, attend)
        try:
            choice = wanted.choose(attachment.layers, pipe.transformer.config.num_attention_heads)
            seen = Look(clock, resolved.config.method, choice, backend, detail, masks, observer.action)
            clock.on_step_end.append(observer.step_done)
            if detail:
                made = sample(pipe, resolved, *video)
                return seen, to_frames(made) if resolved.config.decodes else None

            def stop(step: int) -> None:
                # What diffusers has for its users' callbacks; each call of the pipeline begins with False.
                pipe._interrupt = step >= wanted.reference

            clock.on_step_end.append(stop)
            output = dataclasses.replace(resolved.config.output, decode=False, lossless=False)
            latents = Resolved(dataclasses.replace(resolved.config, output=output), resolved.settings)
            sample(pipe, latents, *video)
            return seen, None
        finally:
            attachment.detach()
    finally:
        clock.stop()
