"""Runs of a pipeline under the profiler, cut into their denoising steps.

A step ends with a mark on the device's own timeline: on a GPU a kernel that does nothing, in the stream of the others.
So nothing waits for the GPU at the end of a step that would not wait without the profiler, and the idle time between
two steps counts. CPU activities are not recorded on a GPU, because that would slow the launches down. On a CPU, where
there is no device timeline, the operators' own times are taken, which tests the flow and no more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from adaspa_cli.bench.warm_up import few_steps
from adaspa_cli.config import Resolved
from adaspa_cli.config.load import method_config
from adaspa_cli.errors import RunError
from adaspa_cli.hooks.clock import Listener, Order, StepClock
from adaspa_cli.masks.plan import PLANS, CallPlan
from adaspa_cli.models.registry import check_sampling
from adaspa_cli.sampling.handle import Handle
from adaspa_cli.sampling.memory import peak_memory, reset_peak_memory
from adaspa_cli.sampling.records import AttentionCall
from adaspa_cli.sampling.run import check_finite, sample
from scripts.profile_steps.times import Kernel, StepTimes, Window, step_times, windows

DIFFUSERS = "diffusers as it comes"
DIFFUSERS_STEPS = 2  # the first still has what follows the start of a run in it
WITHOUT_ATTENTION = "no attention"  # where a cache left all of it out
CPU_MARK = "end of a denoising step"
GPU_MARK = "spin_kernel"  # what torch.cuda._sleep launches


@dataclass(frozen=True)
class Profiled:
    """One step of each kind of a run.

    Attributes:
        run: what ran.
        steps: by kind of step, the number of the step and its times; the last step of the kind.
        peak: bytes, as :func:`~adaspa_cli.sampling.memory.peak_memory` gives them.
        dense_kernel: what ran dense attention, where adaspa's backend chose.
    """

    run: str
    steps: dict[str, tuple[int, StepTimes]]
    peak: dict[str, int]
    dense_kernel: dict[str, Any] | None = None


def profile_diffusers(pipe: Any, resolved: Resolved, prompt: str) -> Profiled:
    """Profile the pipeline by the method ``diffusers``, over two steps, whatever the method of the settings is."""
    config = dataclasses.replace(resolved.config, method=method_config("diffusers", {}))
    few = few_steps(dataclasses.replace(resolved, config=config), DIFFUSERS_STEPS)
    with Handle(pipe, config.method) as handle:
        steps, peak = _run_twice(pipe, handle.clock, few, prompt)
    last = DIFFUSERS_STEPS - 1
    name = f"{DIFFUSERS}, blocks compiled" if config.model.compile else DIFFUSERS
    return Profiled(name, {name: (last, step_times(steps[last]))}, peak)


def profile_method(pipe: Any, resolved: Resolved, prompt: str) -> Profiled:
    """Profile the pipeline with the method, over all its steps."""
    with Handle(pipe, resolved.config.method) as handle:
        steps, peak = _run_twice(pipe, handle.clock, resolved, prompt)
        kinds = kinds_of_steps(handle.engine.calls, len(steps))
        # Of each kind the last: dense attention at step 0 still has what follows the start of a run beside it.
        chosen = {kind: step for step, kind in enumerate(kinds)}
        times = {kind: (chosen[kind], step_times(steps[chosen[kind]])) for kind in sorted(chosen, key=_rank)}
        return Profiled(resolved.config.method.method, times, peak, handle.engine.dense_kernel)


def kinds_of_steps(calls: list[AttentionCall], steps: int) -> list[str]:
    """What the attention calls of each step did; several, joined, where its layers or branches differ."""
    plans: list[set[CallPlan]] = [set() for _ in range(steps)]
    for call in calls:
        plans[call.step].add(call.plan)
    return [" + ".join(plan.phase for plan in PLANS if plan in found) or WITHOUT_ATTENTION for found in plans]


def _rank(kind: str) -> tuple[int, str]:
    """Kinds in the order of the plans, mixed ones last."""
    phases = [plan.phase for plan in PLANS]
    return (phases.index(kind) if kind in phases else len(phases), kind)


def check_profiler(device: torch.device) -> None:
    """Profile one mark, before anything slow begins; raises RunError where the profiler does not see it."""
    _mark(device)  # CUDA is initialised, and the kernel loaded
    seen = [kernel.name for kernel in record_kernels(device, lambda: _mark(device))]
    if sum(map(_is_mark, seen)) != 1:
        raise RunError(
            f"torch.profiler does not see the marks between steps on {device}; it saw {seen or 'nothing'}",
            hint="another profiler, or a driver that keeps CUPTI from profiling, may be in its way",
        )


def _run_twice(pipe: Any, clock: StepClock, resolved: Resolved, prompt: str) -> tuple[list[Window], dict[str, int]]:
    """Sample a video to compile and choose kernels, then once more for the profiler; windows and peak memory of it."""
    config = resolved.config
    check_sampling(pipe, config.sampling)
    device = pipe._execution_device
    sample(pipe, resolved, prompt, seed=0)
    reset_peak_memory(device)
    clock.listen(Listener(Order.TIMES, start=lambda _steps: _mark(device), step_end=lambda _step: _mark(device)))
    latents: list[torch.Tensor] = []
    kernels = record_kernels(device, lambda: latents.append(sample(pipe, resolved, prompt, seed=0)))
    peak = peak_memory(device)
    check_finite(latents[0])
    steps = windows(kernels, _is_mark)
    if len(steps) != config.sampling.steps:
        raise RunError(f"the profiler saw {len(steps)} of {config.sampling.steps} denoising steps")
    return steps, peak


def _mark(device: torch.device) -> None:
    """Leave a mark on the device's timeline."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda._sleep(1)
    else:
        with record_function(CPU_MARK):
            pass


def _is_mark(name: str) -> bool:
    return name == CPU_MARK or GPU_MARK in name


def record_kernels(device: torch.device, call: Callable[[], object]) -> list[Kernel]:
    """Call, and list what ran on the device, in microseconds."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as recorded:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return [
        Kernel(event.name, event.time_range.start, event.time_range.end)
        for event in recorded.events() or ()
        if event.device_type == wanted and not (on_gpu and _is_no_work(event))
    ]


def _is_no_work(event: Any) -> bool:
    """Entries of the GPU's timeline that keep it from nothing: ranges of annotations, and waits."""
    waits = ("Context Sync", "Stream Sync", "Event Sync", "Stream Wait Event")
    return bool(getattr(event, "is_user_annotation", False)) or event.name.startswith(waits)
