"""What was found as Markdown tables and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from scripts.profile_steps.classes import CLASSES
from scripts.profile_steps.record import Profiled
from scripts.profile_steps.times import StepTimes

TOP = 10
_NAME_LENGTH = 100
_NOISE = ("void ", "at::native::", "(anonymous namespace)::")
_LEAST_OVERLAP = 0.001  # of a step; below it the sums are right to the digits that are shown

Steps = dict[str, StepTimes]


def steps_of(profiled: list[Profiled]) -> Steps:
    """Times by kind of step, over all runs."""
    return {kind: times for run in profiled for kind, (_, times) in run.steps.items()}


def work_table(steps: Steps) -> str:
    """Kinds of step as columns, kinds of work as rows: milliseconds, and per cent of the step."""
    rows = [(kind, [times.work[kind] for times in steps.values()]) for kind in CLASSES]
    rows += [("gaps", [times.gaps for times in steps.values()])]
    if any(times.overlap > _LEAST_OVERLAP * times.span for times in steps.values()):
        rows += [("counted twice: ran at once", [-times.overlap for times in steps.values()])]
    spans = [times.span for times in steps.values()]
    lines = [
        [name, *(_share(took, span) for took, span in zip(cells, spans, strict=True))]
        for name, cells in [*rows, ("the step", spans)]
    ]
    lines.append(["launches", *(f"{times.launches:,}" for times in steps.values())])
    return _markdown(["work, ms", *steps], lines)


def kernel_table(steps: Steps) -> str:
    """The most expensive kernels of each kind of step, with their class and milliseconds in all of them.

    In the order of the largest share that a kernel has in any step.
    """
    shares: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for times in steps.values():
        for kernel in times.kernels[:TOP]:
            shares[kernel.name] = max(shares.get(kernel.name, 0.0), kernel.milliseconds / times.span)
            kinds[kernel.name] = kernel.kind
    found = [{kernel.name: kernel.milliseconds for kernel in times.kernels} for times in steps.values()]
    lines = []
    for name in sorted(shares, key=lambda name: (-shares[name], name)):
        cells = ("" if name not in took else f"{took[name]:.2f}" for took in found)
        lines.append([f"`{short(name)}`", kinds[name], *cells])
    return _markdown(["kernel", "class", *(f"{kind}, ms" for kind in steps)], lines)


def short(name: str) -> str:
    """A kernel's name for a table: without namespaces that all have, and no longer than a line."""
    for noise in _NOISE:
        name = name.replace(noise, "")
    name = name.replace("|", "/").replace("`", "'")
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"


def run_record(run: Profiled) -> dict[str, Any]:
    """One run as JSON: each kind of step with its work, and its most expensive kernels by their whole names."""
    steps = [
        {
            "kind": kind,
            "step": step,
            "milliseconds": times.span,
            "work": times.work,
            "gaps": times.gaps,
            "overlap": times.overlap,
            "launches": times.launches,
            "kernels": [asdict(kernel) for kernel in times.kernels[:TOP]],
        }
        for kind, (step, times) in run.steps.items()
    ]
    return {"run": run.run, "peak_memory": run.peak, "dense_attention": run.dense_kernel, "steps": steps}


def memory_line(run: Profiled) -> str:
    """Peak memory of a run in words: of the GPU where there is one."""
    where, size = ("GPU", run.peak["gpu_bytes"]) if "gpu_bytes" in run.peak else ("process", run.peak["process_bytes"])
    return f"peak memory, {run.run}: {size / 1e9:.1f} GB ({where})"


def _share(took: float, span: float) -> str:
    return f"{took:.1f} ({took / span:.1%})"


def _markdown(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *lines])
