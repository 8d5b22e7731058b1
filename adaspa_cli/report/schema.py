"""The latency report on disk: its types, its format, and the one way to read it.

Which formats can be read: see :mod:`adaspa_cli.report.versioned`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from adaspa_cli.config.methods import DENSE
from adaspa_cli.files.typed_json import ABSENT, REST
from adaspa_cli.report.versioned import Versioned, read_versioned


@dataclass(frozen=True)
class Machine:
    """The processor, and the GPU where one is used."""

    device: str
    cpu: str
    cores: int
    threads: int
    system: str
    gpu: str | None = field(default=None, metadata=ABSENT)
    gpu_memory_bytes: int | None = field(default=None, metadata=ABSENT)
    compute_capability: str | None = field(default=None, metadata=ABSENT)

    def line(self) -> str:
        """In words."""
        return f"{self.gpu or f'{self.cpu}, threads: {self.threads}'} ({self.system})"


@dataclass(frozen=True)
class ModelRecord:
    """The model as it ran."""

    name: str
    pipeline: str
    dtype: str
    layers: int
    heads: int
    head_dim: int


@dataclass(frozen=True)
class Setting:
    """A setting, and where its value came from."""

    value: Any
    origin: str = ""


@dataclass(frozen=True)
class LinearUse:
    """Linear layers that multiplied in another dtype than the model's.

    Attributes:
        dtype: that they multiplied in; each row had a scale.
        layers, of: how many of the blocks' layers did.
        weight_bytes: of their weights; the model's own are in main memory meanwhile.
    """

    dtype: str
    layers: int
    of: int
    weight_bytes: int


@dataclass(frozen=True)
class LoraUse:
    """A LoRA: its file, the file's hash, its scale, and which transformer it is for where there are two."""

    file: str
    sha256: str
    scale: float
    stage: str | None = None


@dataclass(frozen=True)
class CacheUse:
    """A cache, and the share of calls that it skipped, counted; ``details`` are its own."""

    name: str
    unit: str
    computed: int
    possible: int
    skipped: float | None
    details: Mapping[str, Any] = field(default_factory=dict, metadata=REST)


@dataclass(frozen=True)
class Merging:
    """What merged tokens: the requested share, and the share of the video tokens that it merged."""

    name: str
    asked: float
    merged: float | None


@dataclass(frozen=True)
class SearchSteps:
    """The requested search steps, the schedule that follows from them, and the steps at which masks were searched."""

    asked: tuple[int, ...]
    planned: tuple[int, ...]
    done: tuple[int, ...]


@dataclass(frozen=True)
class Video:
    """The video; ``file`` is None for a run that ended in latents."""

    file: str | None
    frames: int
    height: int
    width: int
    fps: int


@dataclass(frozen=True)
class PictureUse:
    """A picture that the video was made from; ``note`` says how it was cut to the video's size."""

    file: str
    sha256: str
    note: str


@dataclass(frozen=True)
class Seconds:
    """Where the time went. ``attention`` is part of ``denoising``; None where nothing could time it."""

    total: float
    text_encoding: float
    denoising: float
    attention: float | None
    decoding: float
    writing: float


@dataclass(frozen=True)
class Estimated:
    """How many of the steps were computed, where the others are estimated."""

    computed_steps: int
    of: int
    steps_per_phase: int


@dataclass(frozen=True)
class Step:
    """A denoising step.

    Attributes:
        seconds, attention: of the step, and of it those of attention; None where nothing could time it.
        density: mean over its calls; None if a cache left out all of them.
        estimated: whether it was not computed.
        skipped: the share of calls that a cache left out; None without one.
        sparsity: γ of its masks; None of a method without masks.
    """

    step: int
    phase: str
    seconds: float
    attention: float | None
    density: float | None
    estimated: bool = False
    skipped: float | None = None
    sparsity: float | None = None


@dataclass(frozen=True)
class Search:
    """A mask that was found or loaded: density and recall by head; recall is None where it is not known.

    The recall of a loaded mask is that of the search that made its file.
    """

    layer: int
    branch: str
    sample: int
    step: int
    loaded: bool
    density: tuple[float, ...]
    recall: tuple[float, ...] | None


@dataclass(frozen=True)
class LoadedAt:
    """A step at which masks were loaded, and the step of the search that made them."""

    step: int
    searched_at: int


@dataclass(frozen=True)
class MaskCheck:
    """Recall by head of a loaded mask: of the search that made the file, and on the attention of this video."""

    layer: int
    branch: str
    sample: int
    step: int
    stored: tuple[float, ...]
    measured: tuple[float, ...]
    below: bool
    searched: bool


@dataclass(frozen=True)
class MaskFileUse:
    """A mask file, and how well its masks fitted where that was measured."""

    file: str
    checksum: str
    schedule: tuple[LoadedAt, ...]
    min_recall: float | None
    below: int
    searched: int
    checks: tuple[MaskCheck, ...]


@dataclass(frozen=True)
class LayerCompensation:
    """The figures of :class:`CompensationUse` of one layer, by its steps; of all heads."""

    layer: int
    pooled: tuple[float | None, ...]
    before: tuple[float | None, ...]
    after: tuple[float | None, ...]


@dataclass(frozen=True)
class CompensationUse:
    """Compensation for left-out blocks.

    Attributes:
        work: what it cost, as a share of dense attention, mean over all calls; no part of ``density``.
        pooled: share of the attention weights that summaries represent, mean over the calls that had any.
        before, after: the repair: distance of the probe rows from dense attention relative to its norm, root mean
            square over the repaired calls and their heads. None without a repair.
        densified: calls that were dense because of the error of the call before, where ``max_error`` limits it.
        steps: those with such calls.
        layers: the figures of each layer by these steps.
    """

    work: float
    pooled: float | None
    before: float | None
    after: float | None
    densified: int = 0
    steps: tuple[int, ...] = ()
    layers: tuple[LayerCompensation, ...] = ()


@dataclass(frozen=True)
class ParallelUse:
    """Several processes that made the video together.

    Attributes:
        processes: how many there were, each with a GPU of its own if they ran on GPUs.
        branches: guidance branches that ran at the same time, each on as many of the processes.
        communication: seconds of the first process's exchanges in the computed steps but the first, with what it waited
            for in them; part of ``denoising``, not of ``attention``.
        share: of the time of those steps; None without any.
        attention: seconds of attention of each process, in these steps.
        imbalance: the largest of these over their mean, of the processes that share the tokens; None without attention.
        peak_gpu_bytes: peak memory of each GPU.
    """

    processes: int
    branches: int
    communication: float
    share: float | None
    attention: tuple[float, ...]
    imbalance: float | None
    peak_gpu_bytes: tuple[int, ...] = ()


@dataclass(frozen=True)
class ComparedRun:
    """The run that ``--compare-with`` named, such as the dense one, and how this run and its video differ from it.

    Attributes:
        method: of that run; ``dense`` says whether it computed all blocks of attention.
        speed_up: its total time over this run's.
        lossless: whether the frames were compared as they were before compression, not as the video files have them.
        psnr, ssim: of each frame, in dB and up to 1; empty if the videos could not be compared.
        reason: why they could not.
    """

    method: str
    speed_up: float
    lossless: bool
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    reason: str | None = field(default=None, metadata=ABSENT)
    dense: bool = False

    def mean(self, metric: Literal["psnr", "ssim"]) -> float | None:
        """Mean over the frames; None if they could not be compared."""
        values = getattr(self, metric)
        return statistics.fmean(values) if values else None


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory in bytes: of the whole process, and of this video on the GPU."""

    process_bytes: int
    gpu_bytes: int | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True, kw_only=True)
class Report(Versioned):
    """The latency report of one video.

    Attributes:
        fingerprint: of all settings that decide what the video looks like.
        random_weights: what to say of them; None if the weights are real.
        attention_backend: that ran; None where attention was left as diffusers has it.
        dense_attention: which kernel ran dense attention and what the others took, where there was a choice.
        linear: linear layers in FP8; None without.
        latents: file of the latents, where they were not decoded and are worth keeping.
        estimated: how many steps were computed, if not all; every sum is with the estimates then.
        density: mean over the calls that were made, blocks of text too; None without a call.
        searches: masks that were found or loaded.
        parallel: how several processes made it; None where one did.
        compared: how it differs from the run that its page shows beside it; None without one.
    """

    kind: str = "adaspa latency report"
    fingerprint: str
    created: str
    versions: Mapping[str, str]
    machine: Machine
    random_weights: str | None = None
    model: ModelRecord
    settings: Mapping[str, Setting]
    attention_backend: str | None = None
    dense_attention: Mapping[str, Any] | None = None
    loras: tuple[LoraUse, ...] = ()
    linear: LinearUse | None = None
    cache: CacheUse | None = None
    merging: Merging | None = None
    search_steps: SearchSteps
    prompt: str
    seed: int
    video: Video
    pictures: Mapping[str, PictureUse] | None = None
    latents: str | None = None
    seconds: Seconds
    estimated: Estimated | None = None
    density: float | None
    steps: tuple[Step, ...]
    searches: tuple[Search, ...]
    compensation: CompensationUse | None = None
    mask_file: MaskFileUse | None = None
    parallel: ParallelUse | None = field(default=None, metadata=ABSENT)
    peak_memory: PeakMemory
    compared: ComparedRun | None = field(default=None, metadata=ABSENT)

    @property
    def dense(self) -> bool:
        """Whether all blocks of attention were computed, at every step and of all tokens."""
        return self.setting("algorithm") in DENSE and self.cache is None and self.merging is None

    def setting(self, key: str, default: Any = None) -> Any:
        """The value of a setting; ``default`` if the report is older than the setting."""
        found = self.settings.get(key)
        return default if found is None else found.value


def read_report(path: Path) -> Report:
    """Read a report.

    Raises:
        ReportError: the file cannot be read, is no latency report, or is one of another format.
    """
    return read_versioned(Report, path)
