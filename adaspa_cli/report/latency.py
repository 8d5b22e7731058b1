"""The latency report of one video: what ran, the time of each part, and the attention left out."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from adaspa_cli.config import Resolved
from adaspa_cli.config.architecture import random_weights_note
from adaspa_cli.config.methods import SparseConfig
from adaspa_cli.files.pictures import read_pictures
from adaspa_cli.files.typed_json import from_json
from adaspa_cli.models.registry import family_of
from adaspa_cli.report.compensation import compensation_use
from adaspa_cli.report.machine import machine, versions
from adaspa_cli.report.mask_file import mask_file_use
from adaspa_cli.report.parallel import parallel_use
from adaspa_cli.report.schema import (
    CacheUse,
    Estimated,
    LinearUse,
    LoraUse,
    Merging,
    ModelRecord,
    PeakMemory,
    PictureUse,
    Report,
    Search,
    SearchSteps,
    Seconds,
    Setting,
    Step,
    Video,
)
from adaspa_cli.report.steps import step_table, untouched_steps, with_estimates

if TYPE_CHECKING:
    from adaspa_cli.hooks.timeline import Timeline
    from adaspa_cli.hooks.timing import Span
    from adaspa_cli.sampling.engine import AttentionEngine
    from adaspa_cli.sampling.handle import Handle
    from adaspa_cli.sampling.run import RunResult
    from adaspa_cli.sampling.steps_per_phase import StepsPerPhase


def latency_report(
    result: RunResult, *, video: Path | None, latents: Path | None, fingerprint: str, writing: float
) -> Report:
    """Assemble the report of a run before the next one begins; all times in seconds.

    Args:
        result: of the run.
        video: its file; None for a run that ended in latents.
        latents: their file; None where they were decoded, or are worth nothing.
        fingerprint: of its settings.
        writing: seconds that it took to write the video.

    Where only ``chosen`` steps were computed, ``estimated`` says how many, each entry of ``steps`` whether it is
    estimated, and all sums (``denoising``, ``attention``, ``total``, ``density``) are those with the estimates.

    ``skipped`` is the share of blocks or of attention calls that a cache left out; densities are those of the calls
    that were made.

    ``compensation`` is the compensation for left-out blocks, see :mod:`adaspa_cli.report.compensation`.

    ``dense_attention`` says which kernel ran dense attention and what the others took, where there was a choice.

    ``attention`` is the time inside the attention operators, searches and mask selection included; it is part of
    ``denoising``, and None for a pipeline that ran as diffusers has it: nothing there could time it. Densities count
    blocks of text too. Waits for the device.
    """
    session, resolved = result.session, result.session.resolved
    pipe, handle, timeline = session.pipe, session.handle, session.timeline
    sampling, engine, total = resolved.config.sampling, handle.engine, result.seconds + writing
    steps, estimated = _steps(handle, timeline, session.chosen)
    sparsities = resolved.config.method.algorithm.sparsities(len(steps))
    steps = [dataclasses.replace(step, sparsity=value) for step, value in zip(steps, sparsities, strict=True)]
    denoising = sum(step.seconds for step in steps)
    return Report(
        fingerprint=fingerprint,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions=versions(),
        machine=machine(pipe._execution_device),
        random_weights=random_weights_note(resolved.config.model),
        model=_model(pipe, handle, resolved),
        settings={key: Setting(value, resolved.origins()[key]) for key, value in resolved.flat().items()},
        attention_backend=handle.backend,
        dense_attention=engine.dense_kernel,
        loras=_loras(resolved),
        linear=_linear(handle),
        cache=_cache(handle),
        merging=_merging(handle),
        search_steps=_search_steps(resolved, engine),
        prompt=result.prompt,
        seed=result.seed,
        video=Video(
            None if video is None else video.name, sampling.frames, sampling.height, sampling.width, sampling.fps
        ),
        pictures=_pictures(resolved),
        latents=None if latents is None else latents.name,
        seconds=Seconds(
            total=total - _total(timeline.steps) + denoising if estimated else total,
            text_encoding=_total(timeline.text),
            denoising=denoising,
            attention=sum(step.attention or 0.0 for step in steps) if handle.attached else None,
            decoding=_total(timeline.decode),
            writing=writing,
        ),
        estimated=estimated,
        density=_density(handle, steps, estimated),
        steps=tuple(steps),
        searches=search_table(engine),
        compensation=compensation_use(engine.calls, engine.densified),
        mask_file=mask_file_use(engine.policy),
        parallel=None if result.shared is None else parallel_use(result.shared, timeline.steps, session.chosen),
        peak_memory=PeakMemory(**result.peak),
    )


def _steps(handle: Handle, timeline: Timeline, chosen: StepsPerPhase | None) -> tuple[list[Step], Estimated | None]:
    """The steps, and where some of them were not computed, how many were."""
    spans = timeline.steps
    steps = step_table(spans, handle.engine.calls) if handle.attached else untouched_steps(spans)
    if handle.cache is not None:
        steps = [dataclasses.replace(step, skipped=handle.cache.work.skipped(step.step)) for step in steps]
    if chosen is None or len(chosen.computed) == len(steps):
        return steps, None
    of_steps = zip(chosen.plan, chosen.sparsities, chosen.stages, strict=True)
    kinds = [(plan.phase, sparsity, stage) for plan, sparsity, stage in of_steps]
    steps = with_estimates(steps, kinds, chosen.computed)
    return steps, Estimated(len(chosen.computed), len(steps), chosen.number)


def _density(handle: Handle, steps: list[Step], estimated: Estimated | None) -> float | None:
    """Over the calls that were made; where steps are estimated, over the steps, which have equally many calls."""
    if not handle.attached:
        return 1.0
    known = [step.density for step in steps if step.density is not None]
    return fmean(known) if estimated else handle.density


def _total(spans: Iterable[Span]) -> float:
    return sum(span.seconds() for span in spans)


def _model(pipe: Any, handle: Handle, resolved: Resolved) -> ModelRecord:
    shape = family_of(pipe).shape(pipe)
    return ModelRecord(
        name=resolved.config.model.model,
        pipeline=type(pipe).__name__,
        dtype=str(shape.dtype).removeprefix("torch."),
        layers=handle.layers,
        heads=shape.heads,
        head_dim=shape.head_dim,
    )


def _loras(resolved: Resolved) -> tuple[LoraUse, ...]:
    return tuple(
        LoraUse(lora.name, lora.file().sha256, lora.scale, None if key == "lora" else key.removeprefix("lora_"))
        for key, loras in resolved.config.model.loras.items()
        for lora in loras
    )


def _pictures(resolved: Resolved) -> dict[str, PictureUse] | None:
    sampling = resolved.config.sampling
    return {
        key: PictureUse(picture.path.name, picture.sha256, picture.note(sampling.height, sampling.width))
        for key, picture in read_pictures(sampling.pictures).items()
    } or None


def _cache(handle: Handle) -> CacheUse | None:
    return None if handle.cache is None else from_json(CacheUse, handle.cache.report())


def _linear(handle: Handle) -> LinearUse | None:
    found = handle.linears
    return None if found is None else LinearUse("float8_e4m3fn", found.layers, found.of, found.weight_bytes)


def _merging(handle: Handle) -> Merging | None:
    """What merged tokens, and the share of the video tokens that it did."""
    merging = handle.merging
    return None if merging is None else Merging("tomesd", merging.ratio, merging.merged)


def _search_steps(resolved: Resolved, engine: AttentionEngine) -> SearchSteps:
    method, steps = resolved.config.method, resolved.config.sampling.steps
    if not isinstance(method.algorithm, SparseConfig):
        return SearchSteps((), (), ())
    stages = () if engine.policy is None else engine.policy.stages
    return SearchSteps(
        asked=tuple(method.algorithm.search_steps),
        planned=() if method.mask_file.masks else tuple(method.algorithm.mask_steps(steps, stages)),
        done=tuple(sorted({search.step for search in engine.searches if not search.loaded})),
    )


def search_table(engine: AttentionEngine) -> tuple[Search, ...]:
    """Per mask found or loaded: where and when, and each head's achieved density and recall."""
    return tuple(
        Search(
            search.layer,
            search.branch,
            search.sample,
            search.step,
            search.loaded,
            density=tuple(round(value, 6) for value in search.density.tolist()),
            recall=None if search.recall is None else tuple(round(value, 6) for value in search.recall.tolist()),
        )
        for search in engine.searches
    )
