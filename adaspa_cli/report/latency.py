"""The latency report of one video: what ran, how long each part took, what attention left out."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from adaspa_cli.config import Resolved
from adaspa_cli.config.architecture import random_weights_note
from adaspa_cli.config.methods import SparseConfig
from adaspa_cli.models.registry import family_of
from adaspa_cli.report.compensation import compensation_report
from adaspa_cli.report.machine import machine, versions
from adaspa_cli.report.mask_file import mask_file_report
from adaspa_cli.report.steps import estimate_others, run_density, step_table, untouched_steps

if TYPE_CHECKING:
    from adaspa_cli.hooks.timeline import Timeline
    from adaspa_cli.hooks.timing import Span
    from adaspa_cli.sampling.engine import AttentionEngine
    from adaspa_cli.sampling.handle import Handle
    from adaspa_cli.sampling.run import RunResult
    from adaspa_cli.sampling.steps_per_phase import StepsPerPhase

FORMAT = 1


def latency_report(
    result: RunResult, *, video: Path | None, latents: Path | None, fingerprint: str, writing: float
) -> dict[str, Any]:
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

    ``compensation`` is what made up for left-out blocks, see :mod:`adaspa_cli.report.compensation`.

    ``dense_attention`` says which kernel ran dense attention and what the others took, where there was a choice.

    ``attention`` is the time inside the attention operators, searches and mask selection included; it is part of
    ``denoising``, and None for a pipeline that ran as diffusers has it: nothing there could time it. Densities count
    blocks of text too. Waits for the device.
    """
    session, resolved = result.session, result.session.resolved
    pipe, handle, timeline = session.pipe, session.handle, session.timeline
    sampling, engine, total = resolved.config.sampling, handle.engine, result.seconds + writing
    steps, estimated = _steps(handle, timeline, session.chosen)
    for step, sparsity in zip(steps, _sparsities(resolved, len(steps)), strict=True):
        step["sparsity"] = sparsity
    denoising = sum(step["seconds"] for step in steps)
    return {
        "format": FORMAT,
        "kind": "adaspa latency report",
        "fingerprint": fingerprint,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(pipe._execution_device),
        "random_weights": random_weights_note(resolved.config.model),
        "model": _model(pipe, handle, resolved),
        "settings": {k: {"value": v, "origin": resolved.origins()[k]} for k, v in resolved.flat().items()},
        "attention_backend": handle.backend,
        "dense_attention": engine.dense_kernel,
        "cache": None if handle.cache is None else handle.cache.report(),
        "merging": _merging(handle),
        "search_steps": _search_steps(resolved, engine),
        "prompt": result.prompt,
        "seed": result.seed,
        "video": {
            "file": None if video is None else video.name,
            "frames": sampling.frames,
            "height": sampling.height,
            "width": sampling.width,
            "fps": sampling.fps,
        },
        "latents": None if latents is None else latents.name,
        "seconds": {
            "total": total - _total(timeline.steps) + denoising if estimated else total,
            "text_encoding": _total(timeline.text),
            "denoising": denoising,
            "attention": sum(step["attention"] for step in steps) if handle.attached else None,
            "decoding": _total(timeline.decode),
            "writing": writing,
        },
        "estimated": estimated,
        "density": _density(handle, steps, estimated),
        "steps": steps,
        "searches": search_table(engine),
        "compensation": compensation_report(engine.calls, engine.densified),
        "mask_file": mask_file_report(engine.policy),
        "peak_memory": result.peak,
    }


def _sparsities(resolved: Resolved, steps: int) -> Sequence[float | None]:
    """γ of the masks of each step; None of a method without masks."""
    algorithm = resolved.config.method.algorithm
    if not isinstance(algorithm, SparseConfig):
        return [None] * steps
    sparsity = algorithm.sparsity_by_step(steps)
    return sparsity if isinstance(sparsity, tuple) else [sparsity] * steps


def _steps(
    handle: Handle, timeline: Timeline, chosen: StepsPerPhase | None
) -> tuple[list[dict[str, Any]], dict[str, int] | None]:
    """The steps, and where some of them were not computed, how many were."""
    spans = timeline.steps
    steps = step_table(spans, handle.engine.calls) if handle.attached else untouched_steps(spans)
    for step in steps:
        step["skipped"] = None if handle.cache is None else handle.cache.work.skipped(step["step"])
    if chosen is None or len(chosen.computed) == len(steps):
        return steps, None
    estimate_others(steps, [plan.phase for plan in chosen.plan], chosen.computed)
    return steps, {"computed_steps": len(chosen.computed), "of": len(steps), "steps_per_phase": chosen.number}


def _density(handle: Handle, steps: list[dict[str, Any]], estimated: dict[str, int] | None) -> float | None:
    """Over the calls that were made; where steps are estimated, over the steps, which have equally many calls."""
    if not handle.attached:
        return 1.0
    return fmean(step["density"] for step in steps) if estimated else run_density(handle.engine.calls)


def _total(spans: Iterable[Span]) -> float:
    return sum(span.seconds() for span in spans)


def _model(pipe: Any, handle: Handle, resolved: Resolved) -> dict[str, Any]:
    shape = family_of(pipe).shape(pipe)
    return {
        "name": resolved.config.model.model,
        "pipeline": type(pipe).__name__,
        "dtype": str(shape.dtype).removeprefix("torch."),
        "layers": handle.layers,
        "heads": shape.heads,
        "head_dim": shape.head_dim,
    }


def _merging(handle: Handle) -> dict[str, Any] | None:
    """What merged tokens, and the share of the video tokens that it did."""
    merging = handle.merging
    return None if merging is None else {"name": "tomesd", "asked": merging.ratio, "merged": merging.merged}


def _search_steps(resolved: Resolved, engine: AttentionEngine) -> dict[str, Any]:
    """What was asked for, what the schedule made of it, and when masks were really searched."""
    method, steps = resolved.config.method, resolved.config.sampling.steps
    if not isinstance(method.algorithm, SparseConfig):
        return {"asked": [], "planned": [], "done": []}
    return {
        "asked": list(method.algorithm.search_steps),
        "planned": [] if method.mask_file.masks else list(method.algorithm.mask_steps(steps)),
        "done": sorted({search.step for search in engine.searches if not search.loaded}),
    }


def search_table(engine: AttentionEngine) -> list[dict[str, Any]]:
    """Per mask found or loaded: where and when, and each head's achieved density and recall (None where it is not
    known). The recall of a loaded mask is that of the search that made its file."""
    return [
        {
            "layer": search.layer,
            "branch": search.branch,
            "sample": search.sample,
            "step": search.step,
            "loaded": search.loaded,
            "density": [round(value, 6) for value in search.density.tolist()],
            "recall": None if search.recall is None else [round(value, 6) for value in search.recall.tolist()],
        }
        for search in engine.searches
    ]
