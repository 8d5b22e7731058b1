"""The forecast of a run, from its settings only: nothing is downloaded, loaded or written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adaspa_cli.attention import TokenLayout, resolve
from adaspa_cli.config import GenerateConfig, ModelConfig
from adaspa_cli.config import resolve as resolve_settings
from adaspa_cli.config.architecture import Architecture, architecture_of, known_architecture
from adaspa_cli.config.devices import check_offload
from adaspa_cli.config.presets import preset_names
from adaspa_cli.config.weights import fp8_weights
from adaspa_cli.forecast import memory
from adaspa_cli.forecast.calibration import Rates, Sample
from adaspa_cli.forecast.duration import ModelWork, StepTime, step_times
from adaspa_cli.forecast.linear import first_steps, weights_per_token
from adaspa_cli.forecast.steps import PlannedStep, foretold, phases, plan_steps
from adaspa_cli.maskfiles.check import open_masks
from adaspa_cli.maskfiles.stored import stored_policy
from adaspa_cli.masks import MaskPolicy
from adaspa_cli.masks.methods.registry import make_policy
from adaspa_cli.masks.plan import Attention, MaskSource
from adaspa_cli.models.loading import choose_device, choose_dtype, quiet_libraries
from adaspa_cli.models.memory import estimate_memory, token_layout
from adaspa_cli.models.registry import heavy

Calibrate = Callable[[Sample], Rates]


@dataclass(frozen=True)
class Forecast:
    """The forecast of a run. Times and memory are estimates.

    Attributes:
        model, method: by name.
        device, dtype, backend: of the run.
        work: of one video.
        layers: attention layers of all transformers.
        steps: what each does.
        rates: of this machine; None where the time is not predicted.
        times: of each step; empty without rates.
        memory: at the peak of denoising.
        videos: that the run makes, one after another.
        notes: what the estimates don't know.
    """

    model: str
    method: str
    device: str
    dtype: str
    backend: str | None
    work: ModelWork
    layers: int
    steps: Sequence[PlannedStep]
    rates: Rates | None
    times: Sequence[StepTime]
    memory: memory.MemoryForecast
    videos: int
    notes: Sequence[str]

    @property
    def density(self) -> float:
        """Mean expected density over the steps that attend; skipped ones count for nothing."""
        computed = [step.density for step in self.steps if step.plan is not None]
        return sum(computed) / len(computed) if computed else 0.0

    @property
    def denoising(self) -> float | None:
        """Estimated seconds of one video."""
        return sum(time.seconds for time in self.times) if self.times else None

    @property
    def attention(self) -> float | None:
        """Estimated seconds of its attention."""
        return sum(time.attention for time in self.times) if self.times else None

    def as_json(self) -> dict[str, Any]:
        """Plain types."""
        work, held, rates = self.work, self.memory, self.rates
        return {
            "model": self.model,
            "method": self.method,
            "device": self.device,
            "dtype": self.dtype,
            "attention_backend": self.backend,
            "videos": self.videos,
            "grid": [work.layout.frames, work.layout.height, work.layout.width],
            "video_tokens": work.layout.video_tokens,
            "estimated_text_tokens": work.layout.text_tokens,
            "layers": self.layers,
            "heads": work.heads,
            "head_dim": work.head_dim,
            "passes_per_step": work.branches,
            "phases": phases(self.steps),
            "estimated_density": self.density,
            "estimated_attention_flops": work.attention_flops(self.steps),
            "estimated_memory_bytes": {
                "total": held.total,
                "weights": held.weights,
                "activations": held.activations,
                "masks": held.masks,
            },
            "available_memory_bytes": held.available,
            "device_memory_bytes": held.device_total,
            "fits": held.fits,
            "estimated_seconds": {"denoising": self.denoising, "attention": self.attention},
            "calibration_seconds": rates and rates.seconds,
            "notes": list(self.notes),
            "steps": [self._step(step) for step in self.steps],
        }

    def _step(self, step: PlannedStep) -> dict[str, Any]:
        time = self.times[step.step] if self.times else None
        return {
            "step": step.step,
            "phase": step.phase,
            "sparsity": step.sparsity,
            "estimated_density": step.density,
            "estimated_seconds": time and time.seconds,
            "estimated_attention": time and time.attention,
        }


def forecast(config: GenerateConfig, prompts: Sequence[str], measure: Calibrate) -> Forecast:
    """The forecast of a run on this machine; for the device ``cuda``, where there is no GPU, of its memory alone.

    Args:
        config: of the run.
        prompts: of its videos; the first one's length counts.
        measure: gives the rates of the machine.

    Raises:
        ModelError: the architecture is not known without a download.
        BackendError: the device or the backend is not there.
        MaskFileError: the mask file is corrupt.
    """
    quiet_libraries()
    model = config.model
    config = dataclasses.replace(config, model=_of_known_sizes(model))
    architecture = architecture_of(config.model)
    elsewhere = config.model.device == "cuda" and not torch.cuda.is_available()
    device = torch.device("cuda") if elsewhere else choose_device(config.model.device)
    check_offload(config.model.offload, device.type)
    dtype = choose_dtype(config.model.dtype, device)
    prompt = prompts[0] if prompts else ""
    layout = token_layout(config, architecture, prompt)
    held = estimate_memory(config, architecture, prompt, dtype.itemsize)
    available, total = (None, None) if elsewhere else memory.device_memory(device)
    steps, policy = _plan(config, architecture, layout)
    work = _work(config, architecture, layout)
    unknown = "this machine has no GPU" if elsewhere else _unpredicted(config)
    rates = None if unknown else measure(_sample(config, device, dtype, work, steps, policy))
    attached = config.method.algorithm.attached and not elsewhere
    backend = resolve(config.method.attention_backend, device).name if attached else None
    return Forecast(
        model=model.source,
        method=config.method.method,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        backend=backend,
        work=work,
        layers=architecture.layers,
        steps=steps,
        rates=rates,
        times=[] if rates is None else step_times(steps, work, rates),
        memory=memory.MemoryForecast(**vars(held), available=available, device_total=total),
        videos=max(1, len(prompts)) * len(config.sampling.seed),
        notes=[
            *([f"time not predicted: {unknown}"] if unknown else []),
            *([] if config.model is model else [f"the sizes are taken to be those of {config.model.weights}"]),
            *_notes(config, held.everything, fp8_weights(architecture) * dtype.itemsize, timed=rates is not None),
        ],
    )


def _of_known_sizes(model: ModelConfig) -> ModelConfig:
    """The model, or the preset that it is run with (``--model PRESET --weights ORG/NAME``), where only a download
    would tell its sizes; raises ModelError if there is none."""
    if known_architecture(model) is not None or model.model not in preset_names("models"):
        return model
    own = resolve_settings({"model": model.model}, download=False).config.model
    return dataclasses.replace(model, weights=own.weights, pipeline=own.pipeline)


def _plan(
    config: GenerateConfig, architecture: Architecture, layout: TokenLayout
) -> tuple[list[PlannedStep], MaskPolicy]:
    method, number = config.method, config.sampling.steps
    stages = first_steps(heavy(architecture.facts), architecture, config.model.flow_shift, number)
    file = open_masks(method)
    if file is None:
        policy = make_policy(method.algorithm, number, stages)
    else:
        policy = stored_policy(method, file, number, stages)
    sparsities = method.algorithm.sparsities(number)
    return plan_steps(policy, sparsities, layout, cache=method.cache, merges=method.merge.name != "none"), policy


def _work(config: GenerateConfig, architecture: Architecture, layout: TokenLayout) -> ModelWork:
    facts, family = architecture.facts, heavy(architecture.facts)
    transformers = list(architecture.transformers.values())
    weights, rows = weights_per_token(family, architecture), layout.video_tokens + facts.text_rows
    return ModelWork(
        layout=layout,
        heads=int(transformers[0]["num_attention_heads"]),
        head_dim=int(transformers[0]["attention_head_dim"]),
        layers=tuple(sum(int(one[key]) for key in facts.layer_keys) for one in transformers),
        rows=rows,
        linear_flops=tuple(2.0 * count * rows for count in weights),
        branches=2 if facts.guided(config.sampling) else 1,
        shares_masks=config.method.share_cfg_masks,
    )


def _sample(
    config: GenerateConfig,
    device: torch.device,
    dtype: torch.dtype,
    work: ModelWork,
    steps: Sequence[PlannedStep],
    policy: MaskPolicy,
) -> Sample:
    """What is to be measured; with masks from a file those of a search of its method stand for them."""
    sparse = [step for step in steps if step.plan is not None and step.plan.attention is Attention.SPARSE]
    middle = sorted(sparse, key=lambda step: step.sparsity or 0.0)[len(sparse) // 2].step if sparse else 0
    sources = {step.plan.mask for step in steps if step.plan is not None}
    own = policy if config.method.mask_file.masks is None else make_policy(config.method.algorithm, len(steps))
    searches = {MaskSource.SEARCH, MaskSource.CACHED_SEARCH, MaskSource.CHECK}
    return Sample(
        device,
        dtype,
        resolve(config.method.attention_backend, device),
        work.layout,
        work.heads,
        work.head_dim,
        policy=own if sparse or sources & searches else None,
        sparse_step=middle,
        searches=bool(sources & searches),
        estimates=MaskSource.ESTIMATE in sources,
    )


def _unpredicted(config: GenerateConfig) -> str | None:
    """Why a time would not be honest; None if it would."""
    if config.parallel.gpus > 1:
        return "several GPUs make one video together, and what they exchange is not measured"
    if config.method.merge.name != "none":
        return f"{config.method.merge.name} merges tokens, which is not measured"
    if not config.method.algorithm.attached:
        return "attention inside diffusers is not measured; --method full is"
    return None


def _notes(config: GenerateConfig, weights: int | None, fp8: int, *, timed: bool) -> list[str]:
    """What the estimates leave out, of the time only where it is predicted; bytes of all weights, and of those that may
    be put into FP8."""
    model, method = config.model, config.method
    work = "time and attention work are" if timed else "the attention work is"
    upper, lower = ("upper bounds", "lower bounds") if timed else ("an upper bound", "a lower bound")
    lines = {
        "the time covers denoising only: text encoding, decoding, loading and compiling are extra": timed,
        f"cache '{method.cache.name}' decides at run time which steps to skip: {work} {upper}": (
            not foretold(method.cache)
        ),
        f"layers whose error is above max_error attend densely: {work} {lower}": (
            getattr(method.algorithm, "max_error", None) is not None
        ),
        "minference may keep up to twice the blocks that its sparsity leaves": method.algorithm.name == "minference",
        "the memory is that of each GPU": config.parallel.gpus > 1,
        f"moving weights with --offload {model.offload} is not in the time": timed and model.offload != "none",
        f"--offload {model.offload} keeps all weights in main memory: {(weights or 0) / 1e9:.1f} GB, estimated": (
            model.offload != "none" and weights is not None
        ),
        f"--linear fp8 keeps {fp8 / 1e9:.1f} GB of weights in main memory": (
            method.linear == "fp8" and model.offload == "none"
        ),
        "FP8 products are faster than the measured ones: the time is an upper bound": timed and method.linear == "fp8",
        "compiled blocks are faster than the measured ones: the time is an upper bound": timed and model.compile,
        f"weights in {model.weights_dtype} are converted at each use, which is not in the time": (
            timed and model.weights_dtype != "model"
        ),
        f"only some steps of each phase will be computed; {work} for all steps": (
            config.sampling.steps_per_phase is not None
        ),
    }
    return [line for line, holds in lines.items() if holds]
