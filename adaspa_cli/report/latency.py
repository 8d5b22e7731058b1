"""The latency report of one video: what ran, how long each part took, what attention left out."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adaspa_cli.config import Resolved
from adaspa_cli.config.architecture import random_weights_note
from adaspa_cli.masks import Action
from adaspa_cli.report.machine import machine, versions
from adaspa_cli.report.mask_file import mask_file_report

if TYPE_CHECKING:
    from adaspa_cli.sampling.engine import AttentionCall, AttentionEngine
    from adaspa_cli.sampling.handle import Handle
    from adaspa_cli.sampling.timeline import Timeline
    from adaspa_cli.sampling.timing import Span

FORMAT = 1


def latency_report(
    *,
    pipe: Any,
    handle: Handle,
    timeline: Timeline,
    resolved: Resolved,
    prompt: str,
    seed: int,
    video: Path | None,
    fingerprint: str,
    writing: float,
    total: float,
    peak: dict[str, int],
) -> dict[str, Any]:
    """Assemble the report of the video that the pipeline has just made; all times in seconds.

    ``skipped`` is the share of blocks or of attention calls that a cache left out; densities are those of the calls
    that were made.

    ``dense_attention`` says which kernel ran dense attention and what the others took, where there was a choice.

    ``attention`` is the time inside the attention operators, searches and mask selection included; it is part of
    ``denoising``. ``video`` is None for a run that ended in latents. Densities count blocks of text too. Waits for the
    device.
    """
    sampling, engine = resolved.config.sampling, handle.engine
    steps = step_table(timeline.steps, engine.calls)
    for step in steps:
        step["skipped"] = None if handle.cache is None else handle.cache.work.skipped(step["step"])
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
        "prompt": prompt,
        "seed": seed,
        "video": {
            "file": None if video is None else video.name,
            "frames": sampling.frames,
            "height": sampling.height,
            "width": sampling.width,
            "fps": sampling.fps,
        },
        "seconds": {
            "total": total,
            "text_encoding": _total(timeline.text),
            "denoising": _total(timeline.steps),
            "attention": sum(step["attention"] for step in steps),
            "decoding": _total(timeline.decode),
            "writing": writing,
        },
        "density": run_density(engine.calls),
        "steps": steps,
        "searches": search_table(engine),
        "mask_file": mask_file_report(engine.policy),
        "peak_memory": peak,
    }


def _total(spans: Iterable[Span]) -> float:
    return sum(span.seconds() for span in spans)


def _model(pipe: Any, handle: Handle, resolved: Resolved) -> dict[str, Any]:
    config = pipe.transformer.config
    return {
        "name": resolved.config.model.model,
        "pipeline": type(pipe).__name__,
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "layers": handle.layers,
        "heads": config.num_attention_heads,
        "head_dim": config.attention_head_dim,
    }


def _merging(handle: Handle) -> dict[str, Any] | None:
    """What merged tokens, and the share of the video tokens that it did."""
    merging = handle.merging
    return None if merging is None else {"name": "tomesd", "asked": merging.ratio, "merged": merging.merged}


def _search_steps(resolved: Resolved, engine: AttentionEngine) -> dict[str, Any]:
    """What was asked for, what the schedule made of it, and when masks were really searched."""
    method, steps = resolved.config.method, resolved.config.sampling.steps
    if method.algorithm == "full":
        return {"asked": [], "planned": [], "done": []}
    return {
        "asked": list(method.search_steps),
        "planned": [] if method.masks else list(method.mask_steps(steps)),
        "done": sorted({search.step for search in engine.searches if not search.loaded}),
    }


def step_table(spans: list[Span], calls: list[AttentionCall]) -> list[dict[str, Any]]:
    """Per denoising step: its phase, its time and that of its attention, and the mean density over its calls."""
    by_step: dict[int, list[AttentionCall]] = defaultdict(list)
    for call in calls:
        by_step[call.step].append(call)
    return [
        {
            "step": step,
            "phase": _phase(by_step[step]),
            "seconds": span.seconds(),
            "attention": sum(call.span.seconds() for call in by_step[step]),
            "density": run_density(by_step[step]),
        }
        for step, span in enumerate(spans)
    ]


def _phase(calls: list[AttentionCall]) -> str:
    """The phase that most layers were in; a cache may leave a layer out at a search step.

    Of two the one that finds masks: a branch of guidance that shares those of the other finds none.
    """
    if not calls:
        return "skipped"
    actions = [call.action for call in calls]
    plain = (Action.DENSE, Action.SPARSE)
    return max(Action, key=lambda action: (actions.count(action), action not in plain)).value


def run_density(calls: list[AttentionCall]) -> float | None:
    """Mean achieved density over attention calls and heads; dense calls count as 1. None without a call."""
    if not calls:
        return None
    sparse = [call.density for call in calls if call.density is not None]
    dense = len(calls) - len(sparse)
    return (dense + (float(torch.stack(sparse).mean(-1).sum()) if sparse else 0.0)) / len(calls)


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
