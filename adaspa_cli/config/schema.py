"""What a run can be told: frozen dataclasses, each validated where it is built.

The field names are the keys of YAML files and, with dashes, the flags of the command line. They are unique over
all sections, so that files and flags stay flat.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from adaspa_cli.config.caching import CacheSettings
from adaspa_cli.config.masks import MaskFileSettings
from adaspa_cli.config.names import ALGORITHMS, ATTENTION_CACHES, BACKENDS, DENSE, DTYPES, ESTIMATING, OFFLOADS
from adaspa_cli.errors import ConfigError, nearest


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key} '{value}' is unknown{nearest(value, allowed)}", hint=f"one of {', '.join(allowed)}")


def _at_least(key: str, value: float | None, least: float) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{key} must be at least {least}, got {value}")


@dataclass(frozen=True)
class ModelConfig:
    """Which checkpoint, and how it is held in memory.

    Attributes:
        model: a preset's name, a local folder or a hub id.
        weights: folder or hub id of the checkpoint; ``bundled`` is the model that comes with adaspa.
        dtype: ``auto`` is bfloat16 on a GPU and on processors with bfloat16 products, float32 on others.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        offload: ``model`` moves whole modules to the GPU and back, ``group`` layers.
        vae_tiling: decode in tiles, for less memory.
        vae_framewise: decode in overlapping pieces of time; None leaves it as diffusers has it.
        flow_shift: shift of the flow-matching scheduler; None leaves the checkpoint's.
        random_weights: build the model at its real size with random weights: for latency alone, nothing is downloaded.
        layers: with random weights, build that many attention layers instead of all.
        compile: run the transformer's blocks through torch.compile, all but their attention.
    """

    model: str = "tiny"
    weights: str = "bundled"
    dtype: str = "auto"
    device: str = "auto"
    offload: str = "none"
    vae_tiling: bool = False
    vae_framewise: bool | None = None
    flow_shift: float | None = None
    random_weights: bool = False
    layers: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("offload", self.offload, OFFLOADS)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device '{self.device}' is unknown", hint="auto, cpu, cuda or cuda:N")
        if self.flow_shift is not None and not 0 < self.flow_shift < math.inf:
            raise ConfigError(f"flow_shift must be above 0, got {self.flow_shift}")
        _at_least("layers", self.layers, 1)
        if self.layers is not None and not self.random_weights:
            raise ConfigError(
                "layers cuts a model that random_weights builds; a checkpoint has the layers it has",
                hint="add --random-weights, or drop --layers",
            )
        if self.compile and self.offload == "group":
            raise ConfigError(
                "compile does not go with offload 'group', which moves the parts of a block one by one",
                hint="use --offload model, or drop --compile",
            )


@dataclass(frozen=True)
class MethodConfig(CacheSettings, MaskFileSettings):
    """How attention is thinned, with :class:`CacheSettings` what is not computed at all, and with
    :class:`MaskFileSettings` where masks come from if they are not searched.

    Attributes:
        method: the preset's name.
        algorithm: what the preset runs, one of ``ALGORITHMS``.
        sparsity: γ in [0, 1), share of the video blocks left out.
        block_size: tokens of a block, query and key alike.
        search_steps: 0-based denoising steps at which masks are searched; before the first, attention is dense.
            Only that matters to methods that find masks at every step.
        search_steps_for: number of steps that ``search_steps`` is meant for. A run that ends before the last of
            them scales them; None means that they are exact.
        head_adaptive: spread the sparsity over the heads by their recall.
        lse_cache: searches after the first reuse its log-sum-exp.
        share_cfg_masks: with classifier-free guidance the unconditional branch uses the masks of the conditional one,
            and searches none of its own.
        attention_backend: what runs the operators.
    """

    method: str = "adaspa"
    algorithm: str = "adaspa"
    sparsity: float = 0.8
    block_size: int = 64
    search_steps: tuple[int, ...] = (10, 30)
    search_steps_for: int | None = 50
    head_adaptive: bool = True
    lse_cache: bool = True
    share_cfg_masks: bool = False
    attention_backend: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("algorithm", self.algorithm, ALGORITHMS)
        self.check_masks(self.algorithm)
        _one_of("attention_backend", self.attention_backend, BACKENDS)
        if self.algorithm == "diffusers":
            self._check_untouched()
        if not 0 <= self.sparsity < 1:
            raise ConfigError(
                f"sparsity must lie in [0, 1), got {self.sparsity}", hint="0.8 leaves out 80 % of the blocks"
            )
        _at_least("block_size", self.block_size, 1)
        _at_least("search_steps_for", self.search_steps_for, 1)
        if not self.search_steps or min(self.search_steps) < 0:
            raise ConfigError(f"search_steps must be one or more steps from 0 on, got {list(self.search_steps)}")
        if list(self.search_steps) != sorted(set(self.search_steps)):
            raise ConfigError(f"search_steps must be ascending, got {list(self.search_steps)}")
        if self.share_cfg_masks and self.algorithm in DENSE:
            raise ConfigError(
                f"share_cfg_masks: '{self.algorithm}' attends densely and has no masks", hint="drop --share-cfg-masks"
            )
        if self.merge != "none" and self.algorithm != "full":
            raise ConfigError(
                f"merge '{self.merge}' needs dense attention: the masks of '{self.algorithm}' do not fit merged tokens",
                hint=f"use --method {self.merge}, or drop merge",
            )
        if self.merge != "none" and self.attention_backend != "auto":
            raise ConfigError(
                f"merge '{self.merge}' attends by PyTorch's kernels, not by the backend '{self.attention_backend}'",
                hint="drop --attention-backend",
            )

    def _check_untouched(self) -> None:
        """Refuse what would be attached to a pipeline that is to run as diffusers has it."""
        for key, nothing in (("cache", "none"), ("merge", "none"), ("attention_backend", "auto")):
            value = getattr(self, key)
            if value != nothing:
                raise ConfigError(
                    f"'diffusers' runs the pipeline as it comes, without the {key} '{value}'",
                    hint=f"drop {key}, or use --method full",
                )

    def schedule(self, steps: int) -> tuple[int, ...]:
        """The search steps of a run of ``steps`` denoising steps.

        Raises:
            ConfigError: an exact search step lies beyond the last step.
        """
        last = self.search_steps[-1]
        if last < steps:
            return self.search_steps
        if self.search_steps_for is None:
            raise ConfigError(
                f"search step {last} lies beyond the last step, which is {steps - 1}",
                hint="choose smaller --search-steps or more --steps",
            )
        scaled = {min(steps - 1, step * steps // self.search_steps_for) for step in self.search_steps}
        return tuple(sorted(scaled))

    def mask_steps(self, steps: int) -> tuple[int, ...]:
        """The steps at which masks are found: those of the schedule, every one from its first on, or none."""
        if self.algorithm in DENSE:
            return ()
        schedule = self.schedule(steps)
        return tuple(range(schedule[0], steps)) if self.algorithm in ESTIMATING else schedule


@dataclass(frozen=True)
class PromptConfig:
    """What to show.

    Attributes:
        prompt: texts, one video each (and each seed).
        prompts: file with one prompt a line; empty lines and lines that begin with ``#`` are left out.
    """

    prompt: tuple[str, ...] = ()
    prompts: str | None = None


@dataclass(frozen=True)
class SamplingConfig:
    """What is drawn.

    Attributes:
        steps: denoising steps.
        height, width: pixels.
        frames: pictures of the video.
        fps: pictures per second of the file.
        guidance_scale: guidance of the model (embedded for HunyuanVideo, classifier-free for CogVideoX).
        true_cfg_scale: HunyuanVideo: classifier-free guidance in two passes; above 1 it needs a negative prompt.
        negative_prompt: what the video should not show.
        seed: seed of the noise; several make several videos of each prompt.
        steps_per_phase: with random weights, compute of each phase (dense, search, sparse, ...) only so many steps,
            the first step besides, and every search; the others count as the median of those of their phase. None
            computes all.
    """

    steps: int = 50
    height: int = 720
    width: int = 1280
    frames: int = 129
    fps: int = 24
    guidance_scale: float = 6.0
    true_cfg_scale: float = 1.0
    negative_prompt: str | None = None
    seed: tuple[int, ...] = (0,)
    steps_per_phase: int | None = None

    def __post_init__(self) -> None:
        for key in ("steps", "height", "width", "frames", "fps"):
            _at_least(key, getattr(self, key), 1)
        _at_least("steps_per_phase", self.steps_per_phase, 1)
        if not self.seed or min(self.seed) < 0 or max(self.seed) >= 2**64:
            raise ConfigError(f"seed must be one or more numbers from 0 to 2^64 - 1, got {list(self.seed)}")
        for key in ("guidance_scale", "true_cfg_scale"):
            if not math.isfinite(getattr(self, key)) or getattr(self, key) < 0:
                raise ConfigError(f"{key} must be a number from 0 on, got {getattr(self, key)}")
        if self.true_cfg_scale > 1 and not self.negative_prompt:
            raise ConfigError(
                f"true_cfg_scale {self.true_cfg_scale} needs a negative prompt", hint="add --negative-prompt TEXT"
            )


@dataclass(frozen=True)
class OutputConfig:
    """Where results go.

    Attributes:
        out: folder; made if it is not there.
        resume: skip what is already complete there with the same settings.
        decode: turn the latents into a video; None means yes, unless the weights are random.
        lossless: write the frames once more as they are, for measurements, beside the video.
        compare_with: reports of runs that are shown beside this one's video, on the page of its report.
    """

    out: str = "videos"
    resume: bool = False
    decode: bool | None = None
    lossless: bool = False
    compare_with: tuple[str, ...] = ()


@dataclass(frozen=True)
class GenerateConfig:
    """Everything about a run."""

    prompts: PromptConfig = field(default_factory=PromptConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        if self.method.cache == "pab" and self.sampling.true_cfg_scale > 1:
            raise ConfigError(
                "pab keeps one attention output a layer, and true_cfg_scale above 1 runs two branches a step",
                hint="use another --cache, or drop --true-cfg-scale",
            )
        if self.model.compile and self.method.cache in ATTENTION_CACHES:
            raise ConfigError(
                f"compile does not go with cache '{self.method.cache}', which skips calls inside of blocks",
                hint="use a cache that skips whole blocks (adacache, first-block, magcache), or drop --compile",
            )
        if self.method.algorithm not in DENSE:
            self.method.schedule(self.sampling.steps)
        if self.sampling.steps_per_phase is not None:
            self._check_steps_per_phase()
        if self.output.lossless and not self.decodes:
            raise ConfigError("lossless frames need a decoded video", hint="add --decode, or drop --lossless")

    def _check_steps_per_phase(self) -> None:
        if not self.model.random_weights:
            raise ConfigError(
                "steps_per_phase leaves steps out, so there is no video: it is for times with random weights",
                hint="add --random-weights, or drop --steps-per-phase",
            )
        if self.method.cache != "none":
            raise ConfigError(
                f"steps_per_phase cannot foretell which steps the cache '{self.method.cache}' skips",
                hint="drop the cache, or drop --steps-per-phase",
            )

    @property
    def decodes(self) -> bool:
        """Whether the run ends in a video, not in latents."""
        return not self.model.random_weights if self.output.decode is None else self.output.decode
