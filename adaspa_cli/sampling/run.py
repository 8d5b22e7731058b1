"""A run: every prompt with every seed through one pipeline, a video and a report each."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from adaspa_cli.config import GenerateConfig, Resolved
from adaspa_cli.config.architecture import random_weights_note
from adaspa_cli.errors import OutOfMemoryError, RunError
from adaspa_cli.hooks.timeline import Timeline
from adaspa_cli.jobs.outputs import (
    check_folder,
    find_place,
    lossless_path,
    page_path,
    prepare_folder,
    report_path,
    video_name,
    write_json,
    write_lossless,
    write_text,
    write_video,
)
from adaspa_cli.jobs.prompts import collect_prompts
from adaspa_cli.maskfiles.check import check_name
from adaspa_cli.maskfiles.registry import open_masks
from adaspa_cli.masks import Action
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.models.registry import check_sampling, family_of
from adaspa_cli.report.compare import Compared, load_compared
from adaspa_cli.report.latency import latency_report
from adaspa_cli.report.machine import peak_memory, reset_peak_memory
from adaspa_cli.report.page import page
from adaspa_cli.sampling.handle import Handle
from adaspa_cli.sampling.steps_per_phase import StepsPerPhase

NOT_IN_FINGERPRINT = ("prompt", "prompts", "seed", "out", "resume", "compare_with")


class Observer(Protocol):
    """Is told how a run goes on."""

    def loading(self, model: str) -> None: ...
    def started(self, videos: int, steps: int, backend: str | None) -> None: ...
    def video(self, number: int, prompt: str, seed: int) -> None: ...
    def action(self, action: Action) -> None: ...
    def step_done(self, step: int) -> None: ...
    def decoding(self) -> None: ...
    def skipped(self, video: Path) -> None: ...


@dataclass(frozen=True)
class Job:
    """One video to make."""

    prompt: str
    seed: int
    place: Path
    complete: bool
    fingerprint: str
    compared: Compared | None = None


Make = Callable[[Job], dict[str, Any]]


def plan(resolved: Resolved, prompts: Sequence[str]) -> list[Job]:
    """List the videos of a run and find a free place for each; writes nothing.

    Raises:
        ConfigError: a report to compare with does not fit.
        OutputError: the output folder cannot be written.
        MaskFileError: the mask file is corrupt or does not fit the settings.
    """
    config = resolved.config
    folder = check_folder(config.output.out)
    wanted = {(prompt, seed) for prompt in prompts for seed in config.sampling.seed}
    compared = load_compared(config.output.compare_with, wanted, config)
    jobs: list[Job] = []
    taken: set[Path] = set()
    for prompt in prompts:
        for seed in config.sampling.seed:
            fingerprint = _fingerprint(resolved, prompt, seed)
            place, complete = find_place(
                folder,
                video_name(prompt, seed),
                fingerprint,
                resume=config.output.resume,
                decodes=config.decodes,
                taken=taken,
            )
            taken.add(place)
            jobs.append(Job(prompt, seed, place, complete, fingerprint, compared.get((prompt, seed))))
    return jobs


def _fingerprint(resolved: Resolved, prompt: str, seed: int) -> str:
    """A hash of everything that decides what a video looks like."""
    settings = {key: value for key, value in resolved.flat().items() if key not in NOT_IN_FINGERPRINT}
    masks = open_masks(resolved.config.method)
    if masks is not None:
        settings["masks"] = masks.checksum  # what is in the file, not where it lies
    text = json.dumps([settings, prompt, seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def generate(resolved: Resolved, observer: Observer, prompts: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Make the videos of a run, and yield the report of each as it is complete (also of those skipped).

    Args:
        prompts: what :func:`collect_prompts` gave, if it was called before: a pipe can be read only once.

    Raises:
        AdaspaError: see :func:`plan`, :func:`~adaspa_cli.models.loading.load_pipeline`, and below.
        RunError: the model made numbers that are no picture.
        OutOfMemoryError: the device's memory does not suffice.
    """
    jobs = plan(resolved, collect_prompts(resolved.config.prompts) if prompts is None else prompts)
    todo = [job for job in jobs if not job.complete]
    for job in jobs:
        if job.complete:
            observer.skipped(job.place)
            yield json.loads(report_path(job.place).read_text(encoding="utf-8"))
    if not todo:
        return
    config = resolved.config
    _check_masks(config)
    observer.loading(config.model.weights if config.model.weights != "bundled" else config.model.model)
    with memory_errors(config.model.offload):
        pipe = load_pipeline(config.model, decode=config.decodes)
        with session(pipe, resolved, observer) as (handle, make):
            observer.started(len(todo), config.sampling.steps, handle.backend)
            for number, job in enumerate(todo):
                observer.video(number, job.prompt, job.seed)
                yield make(job)


def _check_masks(config: GenerateConfig) -> None:
    """Read the whole mask file, if there is one, before anything slow begins; raises MaskFileError."""
    masks = open_masks(config.method)
    if masks is not None:
        check_name(masks, config.model)
        for _ in masks.verify():
            pass


@contextmanager
def session(pipe: Any, resolved: Resolved, observer: Observer) -> Iterator[tuple[Handle, Make]]:
    """Apply a run's method to a loaded pipeline, and take it off again.

    Yields:
        The method's handle, and a function that makes one video, writes it with its report and returns the report.

    Raises:
        AdaspaError: the settings do not fit the pipeline, or the folder cannot be written.
    """
    check_sampling(pipe, resolved.config.sampling)
    with Handle(pipe, resolved.config.method) as handle:
        prepare_folder(resolved.config.output.out)
        handle.engine.on_action = observer.action
        handle.clock.on_step_end.append(observer.step_done)

        def decoding() -> None:
            handle.engine.forget_masks()  # memory peaks in the VAE, which has no use for them
            observer.decoding()

        number = resolved.config.sampling.steps_per_phase
        chosen = None if number is None else StepsPerPhase(pipe, handle.engine, handle.clock, number)
        timeline = Timeline(pipe, handle.clock, decoding)
        try:
            yield handle, lambda job: _make(pipe, handle, timeline, chosen, resolved, job)
        finally:
            timeline.stop()
            if chosen is not None:
                chosen.stop()


def sample(pipe: Any, resolved: Resolved, prompt: str, seed: int) -> torch.Tensor:
    """Sample one video: frames [1, F, 3, H, W] in [0, 1], or latents if the run does not decode."""
    sampling = resolved.config.sampling
    with torch.inference_mode():
        video: torch.Tensor = pipe(
            prompt=prompt,
            negative_prompt=sampling.negative_prompt,
            height=sampling.height,
            width=sampling.width,
            num_frames=sampling.frames,
            num_inference_steps=sampling.steps,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="pt" if resolved.config.decodes else "latent",
            **family_of(pipe).facts.call_arguments(sampling),
        ).frames
    return video


def _make(
    pipe: Any, handle: Handle, timeline: Timeline, chosen: StepsPerPhase | None, resolved: Resolved, job: Job
) -> dict[str, Any]:
    """Make one video, write it and its report; return the report."""
    config = resolved.config
    device = pipe._execution_device
    timeline.start()
    reset_peak_memory(device)
    begin = time.perf_counter()
    video = sample(pipe, resolved, job.prompt, job.seed)
    frames = None
    if config.decodes:
        frames = to_frames(video)
    else:
        check_finite(video)
    written = time.perf_counter()
    # The place that was free when the run was planned may be taken by another process by now.
    place, _ = find_place(job.place.parent, video_name(job.prompt, job.seed), job.fingerprint, resume=False)
    if frames is not None:
        write_video(place, frames, config.sampling.fps, random_weights_note(config.model))
        if config.output.lossless:
            write_lossless(lossless_path(place), frames, config.sampling.fps)
    end = time.perf_counter()
    report = latency_report(
        pipe=pipe,
        handle=handle,
        timeline=timeline,
        chosen=chosen,
        resolved=resolved,
        prompt=job.prompt,
        seed=job.seed,
        video=None if frames is None else place,
        fingerprint=job.fingerprint,
        writing=end - written,
        total=end - begin,
        peak=peak_memory(device),
    )
    # A report that was left without its JSON is of no complete video: its page gives way.
    write_text(page_path(place), page(report, None if frames is None else place, job.compared), replace=True)
    write_json(report_path(place), report)
    return report


def check_finite(video: torch.Tensor) -> None:
    """Raise RunError if frames or latents hold NaN or infinity."""
    if not torch.isfinite(video).all():
        raise RunError(
            "the model made numbers that are not finite, so there is no picture to write",
            hint="try --method full to see whether the checkpoint itself is sound, with --dtype float32 if it is not",
        )


def to_frames(video: torch.Tensor) -> NDArray[np.uint8]:
    """Frames [1, F, 3, H, W] in [0, 1] to uint8 [F, H, W, 3]; raises as :func:`check_finite` does."""
    check_finite(video)
    pixels = (video[0].permute(0, 2, 3, 1).float() * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.cpu().numpy()


@contextmanager
def memory_errors(offload: str) -> Iterator[None]:
    """Turn an out-of-memory error into one line with the knob that helps."""
    smaller = "--vae-tiling, fewer --frames or a smaller --height and --width"
    try:
        yield
    except torch.OutOfMemoryError as error:
        more = {"none": "--offload model, ", "model": "--offload group, ", "group": ""}[offload]
        raise OutOfMemoryError("the GPU ran out of memory", hint=f"{more}{smaller}") from error
    except (MemoryError, RuntimeError) as error:
        # On a CPU torch raises a plain RuntimeError.
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError("the machine ran out of memory", hint=smaller) from error
