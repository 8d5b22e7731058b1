"""Visualise a model: every prompt and seed runs densely; the first is drawn, its masks are tested on the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adaspa_cli.attention import check_kernel
from adaspa_cli.attention import resolve as resolve_backend
from adaspa_cli.config import Resolved
from adaspa_cli.files.folders import check_folder
from adaspa_cli.files.typed_json import to_json
from adaspa_cli.hooks.clock import Listener, Order, StepClock
from adaspa_cli.jobs.places import video_name
from adaspa_cli.masks.methods.registry import make_policy
from adaspa_cli.models.forward import Row
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.models.registry import attach, check_read, check_sampling, family_of
from adaspa_cli.report.machine import machine, versions
from adaspa_cli.sampling.memory import memory_errors
from adaspa_cli.sampling.run import Observer, sample, to_frames
from adaspa_cli.visual.choice import ProbeRequest, check_transformers
from adaspa_cli.visual.folder import whole_folder
from adaspa_cli.visual.probe import AttentionProbe, PackedMask, ProbeResult
from adaspa_cli.visual.write import write_pictures


def visualize(resolved: Resolved, request: ProbeRequest, observer: Observer, prompts: Sequence[str]) -> Path:
    """Run the model, and write a new folder of pictures; returns it.

    Raises:
        ConfigError: a layer, head or query that the model or the video does not have.
        AdaspaError: see :func:`~adaspa_cli.jobs.generate.generate`.
    """
    config = resolved.config
    check_folder(config.output.out)
    observer.loading(config.model.source)
    with memory_errors(config):
        pipe = load_pipeline(config.model, decode=config.decodes)
        check_read(pipe, config, prompts, observer.note)
        result = probe(pipe, resolved, request, observer, prompts)
    name = video_name(*result.videos[0])
    return whole_folder(config.output.out, name, lambda folder: write_pictures(result, resolved, folder))


def probe(
    pipe: Any, resolved: Resolved, request: ProbeRequest, observer: Observer, prompts: Sequence[str]
) -> ProbeResult:
    """Run every prompt with every seed; the pipeline is as it was afterwards.

    Of all videos but the first only the steps up to the reference step are computed.
    """
    config, shape = resolved.config, family_of(pipe).shape(pipe)
    check_sampling(pipe, config.sampling)
    check_transformers(len(family_of(pipe).transformers(pipe)))
    backend = resolve_backend(config.method.attention_backend, pipe._execution_device)
    dtype = None if pipe._execution_device.type == "cpu" else shape.dtype
    check_kernel(backend, shape.head_dim, (config.method.searching.block_size,) * 2, dtype)
    videos = [(prompt, seed) for prompt in prompts for seed in config.sampling.seed]
    masks: dict[int, dict[int, PackedMask]] = {}
    across: list[dict[int, dict[int, list[float]]]] = []
    first: AttentionProbe | None = None
    frames = None
    observer.started(len(videos), config.sampling.steps, backend.name)
    for number, (prompt, seed) in enumerate(videos):
        observer.video(number, prompt, seed)
        seen = _probe_video(pipe, resolved, request, observer, (prompt, seed), backend.name, masks, detail=number == 0)
        if first is None:
            first, frames = seen
        own = {layer: record.recall for (layer, step), record in seen[0].records.items() if step == request.reference}
        across.append({**seen[0].across, number: own})
        masks[number] = seen[0].masks
    assert first is not None
    facts: dict[str, Any] = {"versions": versions(), "machine": to_json(machine(pipe._execution_device))}
    facts |= {"attention_backend": backend.name, "heads": shape.heads}
    return ProbeResult(first.choice, first, videos, across, frames, facts)


def _probe_video(
    pipe: Any,
    resolved: Resolved,
    request: ProbeRequest,
    observer: Observer,
    video: tuple[str, int],
    backend: str,
    masks: dict[int, dict[int, PackedMask]],
    *,
    detail: bool,
) -> tuple[AttentionProbe, NDArray[np.uint8] | None]:
    """Run one video: the first to its end, with pictures, others as far as their masks are needed."""
    clock, method, steps = StepClock(pipe), resolved.config.method, resolved.config.sampling.steps
    policy = make_policy(method.searching, steps)

    def attend(layer: int, row: Row, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return seen(layer, row, q, k, v)

    try:
        attachment = attach(pipe, attend, method.order)
        try:
            choice = request.choose(attachment.layers, attachment.family.shape(pipe).heads)
            seen = AttentionProbe(
                clock, policy, method.searching.sparsity_by_step(steps), choice, backend, detail, masks, observer.phase
            )
            clock.listen(Listener(Order.OBSERVERS, step_end=observer.step_done))
            if detail:
                made = sample(pipe, resolved, *video)
                return seen, to_frames(made) if resolved.config.decodes else None

            def stop(step: int) -> None:
                # What diffusers has for its users' callbacks; each call of the pipeline begins with False.
                pipe._interrupt = step >= request.reference

            clock.listen(Listener(Order.OBSERVERS, step_end=stop))
            output = dataclasses.replace(resolved.config.output, decode=False, lossless=False)
            latents = Resolved(dataclasses.replace(resolved.config, output=output), resolved.settings)
            sample(pipe, latents, *video)
            return seen, None
        finally:
            attachment.detach()
    finally:
        clock.stop()
