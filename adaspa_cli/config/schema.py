"""The settings of a run: nested frozen dataclasses, each validated where it is built.

The keys of YAML files and, with dashes, the flags of the command line are the names of the fields, wherever they are
nested (:mod:`adaspa_cli.config.flat`). They are unique over all sections, so that files and flags stay flat.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from adaspa_cli.config.caches import Cache, NoCache
from adaspa_cli.config.fields import (
    MOST_SCALE,
    MOST_STEPS,
    above_zero,
    at_least,
    check_fields,
    from_on,
    one_of,
    rule,
    setting,
    shown,
)
from adaspa_cli.config.flat import idle_keys
from adaspa_cli.config.lora import LoraSource, check_loras
from adaspa_cli.config.mask_file import MaskFileConfig
from adaspa_cli.config.merging import Merging, NoMerging
from adaspa_cli.config.methods import AdaSpaConfig, Algorithm, DenseConfig, SearchingConfig, names_of
from adaspa_cli.config.names import (
    BACKENDS,
    DTYPES,
    FP8_OFFLOADS,
    LINEARS,
    OFFLOADS,
    TOKEN_ORDERS,
    WEIGHTS_DTYPES,
    OrderName,
)
from adaspa_cli.config.parallel import ParallelConfig
from adaspa_cli.errors import ConfigError

MOST_PIXELS = 16_384  # of one side
MOST_FRAMES = 10_000
MOST_LAYERS = 10_000


@rule("auto, cpu, cuda, cuda:N")
def _check_device(key: str, value: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value, re.ASCII):
        raise ConfigError(f"{key} '{value}' is unknown", hint="auto, cpu, cuda or cuda:N")


@dataclass(frozen=True)
class ModelConfig:
    """Which checkpoint, and how it is held in memory.

    Attributes:
        model: name of a model preset, a local folder, or a hub id (``org/name``).
        weights: folder or hub id of the checkpoint; ``bundled`` is the model that comes with adaspa.
        pipeline: diffusers class that runs the checkpoint; None: the class that its index names.
        dtype: dtype of the weights and of the computation. ``auto`` is bfloat16 on a GPU and on processors with
            bfloat16 products, float32 on others.
        device: ``auto`` (the first GPU, or the CPU), ``cpu``, ``cuda`` or ``cuda:N``.
        offload: what is moved to the GPU only while it runs: ``none``, ``model`` (whole modules) or ``group`` (layers).
        vae_tiling: decode in spatial tiles, which needs less memory.
        vae_framewise: decode in overlapping chunks of frames; None: the default of diffusers.
        flow_shift: shift of the flow-matching scheduler, above 0; None: the checkpoint's.
        random_weights: build the model at its real size with random weights. Nothing is downloaded, and only times are
            meaningful.
        layers: with ``random_weights``, number of attention layers to build; None: all.
        compile: run the transformer's blocks through torch.compile, except their attention.
        lora: LoRAs of the transformer, each as ``PATH_OR_HUB`` or ``PATH_OR_HUB:scale``.
        lora_high: LoRAs of the first of two transformers, for the high-noise steps.
        lora_low: LoRAs of the second of two transformers, for the low-noise steps.
        weights_dtype: dtype in which the transformer's weights are kept: ``model``, its own; ``fp8``, cast layer by
            layer; ``int8`` or ``nf4``, by torchao and bitsandbytes.
        transformer: a single safetensors or GGUF file with the transformer, used instead of the checkpoint's.
    """

    model: str = "tiny"
    weights: str = "bundled"
    pipeline: str | None = setting(None, late=True)
    dtype: str = setting("auto", one_of(DTYPES))
    device: str = setting("auto", _check_device)
    offload: str = setting("none", one_of(OFFLOADS))
    vae_tiling: bool = False
    vae_framewise: bool | None = None
    flow_shift: float | None = setting(None, above_zero(MOST_SCALE))
    random_weights: bool = False
    layers: int | None = setting(None, at_least(1, MOST_LAYERS))
    compile: bool = False
    lora: tuple[str, ...] = setting((), check_loras, late=True)
    lora_high: tuple[str, ...] = setting((), check_loras, late=True)
    lora_low: tuple[str, ...] = setting((), check_loras, late=True)
    weights_dtype: str = setting("model", one_of(WEIGHTS_DTYPES), late=True)
    transformer: str | None = setting(None, late=True)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.layers is not None and not self.random_weights:
            raise ConfigError(
                "layers needs random_weights: the layers of a checkpoint are fixed",
                hint="add --random-weights, or drop --layers",
            )
        if self.compile and self.offload == "group":
            raise ConfigError(
                "compile can't be combined with offload 'group', which moves the parts of a block one by one",
                hint="use --offload model, or drop --compile",
            )

        if self.weights_dtype != "model":
            self._check_weights_dtype()
        if self.transformer is not None and self.random_weights:
            raise ConfigError("random weights don't come from a file", hint="drop --transformer, or --random-weights")

    def _check_weights_dtype(self) -> None:
        kind = self.weights_dtype
        if self.compile:
            raise ConfigError(
                f"compile can't be combined with weights in {kind}", hint="drop --compile or --weights-dtype"
            )
        if kind == "nf4" and self.offload == "group":
            raise ConfigError(
                "weights in nf4 cannot be moved by offload 'group', which leaves their scales behind",
                hint="use --offload model, or --weights-dtype int8",
            )
        if self.is_gguf:
            raise ConfigError("a GGUF file is quantised already", hint="drop --weights-dtype")

    @property
    def is_gguf(self) -> bool:
        """Whether the transformer comes from a GGUF file."""
        return self.transformer is not None and self.transformer.lower().endswith(".gguf")

    @property
    def loras(self) -> dict[str, list[LoraSource]]:
        """The LoRAs by their setting, of those that have any."""
        given = {"lora": self.lora, "lora_high": self.lora_high, "lora_low": self.lora_low}
        return {key: [LoraSource.parse(key, text) for text in texts] for key, texts in given.items() if texts}

    def check_lora_stages(self, transformers: int) -> None:
        """Refuse LoRAs that do not say which of two transformers they are for, or do where there is one.

        Raises:
            ConfigError: names the setting.
        """
        for key in self.loras:
            if transformers > 1 and key == "lora":
                raise ConfigError(
                    "lora does not say which of the model's two transformers it is for",
                    hint="use --lora-high and --lora-low",
                )
            if transformers == 1 and key != "lora":
                raise ConfigError(f"{key} is for a model with two transformers", hint="use --lora")

    @property
    def is_bundled(self) -> bool:
        """Whether the weights are those that come with adaspa."""
        return self.weights == "bundled"

    @property
    def source(self) -> str:
        """What is loaded, for people: folder or hub id of the checkpoint, or the bundled model's name."""
        return self.model if self.is_bundled else self.weights


@dataclass(frozen=True)
class MethodConfig:
    """How attention is computed, which work is skipped, and where masks come from.

    Attributes:
        mask_file: masks from a file instead of a search.
        cache: what reuses the results of earlier denoising steps; ``none`` computes every step.
        merge: what merges tokens before attention; ``none`` merges nothing.
        method: name of the method preset.
        algorithm: the method that the preset runs.
        share_cfg_masks: with classifier-free guidance the unconditional branch uses the masks of the conditional
            branch, and searches none of its own.
        token_order: order of the video tokens in the sequence: ``raster``, the order of the model, or ``hilbert``,
            along a space-filling curve, so that blocks are compact pieces of the video.
        attention_backend: implementation of the operators: ``auto`` (Triton on a GPU, PyTorch on a CPU), ``triton``,
            ``cpu``, or ``reference``, which is slow and meant for comparisons.
        linear: precision of the linear layers in the transformer's blocks: ``model``, the dtype of the model, or
            ``fp8``, e4m3 with a scale for each row, on GPUs of compute capability 8.9 or newer.
    """

    mask_file: MaskFileConfig = field(default_factory=MaskFileConfig)
    cache: Cache = field(default_factory=NoCache)
    merge: Merging = field(default_factory=NoMerging)
    method: str = "adaspa"
    algorithm: Algorithm = field(default_factory=AdaSpaConfig)
    share_cfg_masks: bool = False
    attention_backend: str = setting("auto", one_of(BACKENDS))
    token_order: str = setting("raster", one_of(TOKEN_ORDERS), late=True)
    linear: str = setting("model", one_of(LINEARS), late=True)

    def __post_init__(self) -> None:
        check_fields(self)
        self.algorithm.check_chosen()
        if self.token_order != "raster":
            self._check_order()
        if self.mask_file.masks is not None and not isinstance(self.algorithm, SearchingConfig):
            raise ConfigError(
                f"masks can't be used with {self._named}, which does not search for masks", hint=_searching()
            )
        if not self.algorithm.attached:
            self._check_untouched()
        if self.share_cfg_masks and isinstance(self.algorithm, DenseConfig):
            raise ConfigError(
                f"share_cfg_masks: {self._named} attends densely and has no masks",
                hint="drop --share-cfg-masks",
            )
        if not isinstance(self.merge, NoMerging):
            self._check_merging()
        self.cache.check_chosen()

    def _check_untouched(self) -> None:
        """Refuse what would be attached to a pipeline that is to run as diffusers has it."""
        chosen = {"cache": self.cache.name, "merge": self.merge.name, "attention_backend": self.attention_backend}
        chosen["linear"] = "none" if self.linear == "model" else self.linear
        for key, value in chosen.items():
            if value not in ("none", "auto"):
                raise ConfigError(
                    f"{self._named} runs the pipeline unchanged, without the {key} '{value}'",
                    hint=f"drop {key}, or use --method full",
                )

    def _check_order(self) -> None:
        """Refuse what needs the tokens frame by frame."""
        chosen = {"merge": self.merge.name, "cache": self.cache.name if self.cache.needs_raster else "none"}
        needing = [f"{key} '{value}'" for key, value in chosen.items() if value != "none"]
        if not self.algorithm.any_order:
            needing.insert(0, f"method {self._named}")
        if needing:
            raise ConfigError(
                f"{needing[0]} needs the tokens frame by frame, not in token_order '{self.token_order}'",
                hint="use --token-order raster, or a method that keeps it, as --method adaspa",
            )

    def _check_merging(self) -> None:
        merge, algorithm = self.merge.name, self.algorithm
        if not algorithm.merges_tokens:
            raise ConfigError(
                f"merge '{merge}' needs dense attention: the masks of {self._named} do not fit merged tokens",
                hint=f"use --method {merge}, or drop merge",
            )
        if self.attention_backend != "auto":
            raise ConfigError(
                f"merge '{merge}' uses PyTorch's attention kernels, not the backend '{self.attention_backend}'",
                hint="drop --attention-backend",
            )

    @property
    def _named(self) -> str:
        """The method as it was given, and the algorithm where that has another name."""
        name = self.algorithm.name
        return f"'{name}'" if name == self.method else f"'{self.method}' (algorithm {name})"

    @property
    def order(self) -> OrderName:
        """The token order, one of those that its rule allows."""
        return "hilbert" if self.token_order == "hilbert" else "raster"

    @property
    def searching(self) -> SearchingConfig:
        """The algorithm, which searches for masks; raises ConfigError for one that does not."""
        if not isinstance(self.algorithm, SearchingConfig):
            raise ConfigError(f"{self._named} does not search for masks", hint=_searching())
        return self.algorithm

    def ignored(self, given: Iterable[str]) -> dict[str, str]:
        """Those of the ``given`` keys that mean something to other methods, caches, mergings or settings than these
        alone, each with what leaves it without an effect, as ``with method full``."""
        own, idle = f"with algorithm {self.algorithm.name}", idle_keys(self)
        reasons = {key: f"with method {self.method}" if reason == own else reason for key, reason in idle.items()}
        return {key: reasons[key] for key in given if key in reasons}


def _searching() -> str:
    return f"methods that do: {', '.join(names_of(SearchingConfig))}"


@dataclass(frozen=True)
class PromptConfig:
    """What the videos show.

    Attributes:
        prompt: prompts; each gives one video for each seed.
        prompts: file with one prompt per line. Empty lines and lines that begin with ``#`` are skipped.
        strict_prompt: refuse words and sizes that the model was not trained on, and prompts that are longer than it
            reads, instead of only naming them.
    """

    prompt: tuple[str, ...] = ()
    prompts: str | None = None
    strict_prompt: bool = setting(False, late=True)

    def __post_init__(self) -> None:
        check_fields(self)


@rule("0 to 2^64 - 1 each")
def _check_seeds(key: str, value: tuple[int, ...]) -> None:
    if not value or min(value) < 0 or max(value) >= 2**64:
        raise ConfigError(f"{key} must be one or more numbers from 0 to 2^64 - 1, got {shown(value)}")


@dataclass(frozen=True)
class SamplingConfig:
    """What is sampled.

    Attributes:
        steps: number of denoising steps.
        height: height of the video in pixels.
        width: width of the video in pixels.
        frames: number of frames.
        fps: frames per second of the video file.
        guidance_scale: guidance scale of the model: embedded for HunyuanVideo, classifier-free for CogVideoX and Wan.
        guidance_scale_2: Wan 2.2: guidance scale of the second transformer, for the low-noise steps; None:
            ``guidance_scale``.
        true_cfg_scale: HunyuanVideo: classifier-free guidance in two passes; above 1 it needs a negative prompt.
        negative_prompt: what the video should not show.
        image: file of the picture that the video starts from, for image-to-video models. It is cropped about its centre
            to the size of the video.
        last_image: file of the picture that the video ends with, for models that take one.
        seed: seeds of the noise; each gives one video of each prompt.
        steps_per_phase: with ``random_weights``, number of steps to compute of each phase (dense, search, sparse, ...),
            besides the first step and every search. Every other step counts as the median of its phase. None: all steps
            are computed.
    """

    steps: int = setting(50, at_least(1, MOST_STEPS))
    height: int = setting(720, at_least(1, MOST_PIXELS))
    width: int = setting(1280, at_least(1, MOST_PIXELS))
    frames: int = setting(129, at_least(1, MOST_FRAMES))
    fps: int = setting(24, at_least(1, 1_000))
    guidance_scale: float = setting(6.0, from_on(0, MOST_SCALE))
    guidance_scale_2: float | None = setting(None, from_on(0, MOST_SCALE), late=True)
    true_cfg_scale: float = setting(1.0, from_on(0, MOST_SCALE))
    negative_prompt: str | None = None
    seed: tuple[int, ...] = setting((0,), _check_seeds)
    steps_per_phase: int | None = setting(None, at_least(1, MOST_STEPS))
    image: str | None = setting(None, late=True)
    last_image: str | None = setting(None, late=True)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.last_image is not None and self.image is None:
            raise ConfigError("last_image needs the image that the video begins with", hint="add --image FILE")
        if self.true_cfg_scale > 1 and not self.negative_prompt:
            raise ConfigError(
                f"true_cfg_scale {self.true_cfg_scale} needs a negative prompt", hint="add --negative-prompt TEXT"
            )

    @property
    def pictures(self) -> dict[str, str]:
        """Files of the pictures that are given, by their setting."""
        given = {"image": self.image, "last_image": self.last_image}
        return {key: path for key, path in given.items() if path is not None}


@dataclass(frozen=True)
class OutputConfig:
    """Where results are written.

    Attributes:
        out: folder; created if it does not exist.
        resume: skip videos that are complete in the folder with the same settings.
        decode: turn the latents into a video; None: unless the weights are random.
        lossless: also write the frames losslessly beside the video, for measurements.
        compare_with: paths of reports of other runs, to show beside this run on its report page.
    """

    out: str = "videos"
    resume: bool = False
    decode: bool | None = None
    lossless: bool = False
    compare_with: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class GenerateConfig:
    """Everything about a run.

    Attributes:
        prompts: what the videos show.
        model: which checkpoint.
        method: how attention is computed.
        sampling: what is sampled.
        output: where results are written.
        parallel: how many GPUs make one video together.
    """

    prompts: PromptConfig = field(default_factory=PromptConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        cache = self.method.cache
        if cache.single_branch and self.sampling.true_cfg_scale > 1:
            raise ConfigError(
                f"{cache.name} keeps one attention output per layer, but true_cfg_scale above 1 runs two branches",
                hint="use another --cache, or drop --true-cfg-scale",
            )
        if self.model.compile and cache.inside_blocks:
            raise ConfigError(
                f"compile can't be combined with cache '{cache.name}', which skips calls inside of blocks",
                hint="use a cache that skips whole blocks (adacache, first-block, magcache), or drop --compile",
            )
        if self.method.linear == "fp8":
            self._check_fp8()
        self.method.algorithm.mask_steps(self.sampling.steps)
        if self.sampling.steps_per_phase is not None:
            self._check_steps_per_phase()
        if self.output.lossless and not self.decodes:
            raise ConfigError("lossless frames need a decoded video", hint="add --decode, or drop --lossless")

    def _check_fp8(self) -> None:
        if self.model.weights_dtype != "model" or self.model.is_gguf:
            raise ConfigError(
                "linear 'fp8' quantises plain weights, and these are quantised already",
                hint="drop --linear, or drop --weights-dtype and --transformer",
            )
        if self.model.device == "cpu":
            raise ConfigError("linear 'fp8' needs a GPU, and the device is 'cpu'", hint="drop --linear")
        if self.model.dtype not in ("auto", "bfloat16"):
            raise ConfigError(
                f"linear 'fp8' gives bfloat16, and dtype is '{self.model.dtype}'", hint="use --dtype bfloat16"
            )
        if self.model.offload not in FP8_OFFLOADS:
            raise ConfigError(
                f"linear 'fp8' replaces the layers that offload '{self.model.offload}' moves one by one",
                hint="use --offload model, or drop --linear",
            )

    def _check_steps_per_phase(self) -> None:
        if getattr(self.method.algorithm, "max_error", None) is not None:
            raise ConfigError(
                "steps_per_phase can't be combined with max_error: which steps are dense is only known at run time",
                hint="drop --max-error, or drop --steps-per-phase",
            )
        if not self.model.random_weights:
            raise ConfigError(
                "steps_per_phase skips steps, so it makes no video: it measures times with random weights",
                hint="add --random-weights, or drop --steps-per-phase",
            )
        if self.method.cache.name != "none":
            raise ConfigError(
                f"steps_per_phase can't be combined with the cache '{self.method.cache.name}': "
                "which steps it skips is only known at run time",
                hint="drop the cache, or drop --steps-per-phase",
            )

    @property
    def decodes(self) -> bool:
        """Whether the run ends in a video, not in latents."""
        return not self.model.random_weights if self.output.decode is None else self.output.decode
