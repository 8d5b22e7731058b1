"""``bench.json``: the figures of a bench on disk, their types, their format, and the one way to read them.

Every output of a bench (tables, plots, page, CSV) shows what is here. Which formats can be read: see
:mod:`adaspa_cli.report.versioned`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from adaspa_cli.bench.spec import Plot
from adaspa_cli.files.typed_json import ABSENT, later
from adaspa_cli.report.schema import Estimated, Machine
from adaspa_cli.report.versioned import Versioned, read_versioned

Metric = Literal["psnr", "ssim", "st_lpips", "lpips", "vbench"]
Part = Literal["latency", "text_encoding", "denoising", "attention", "decoding"]
ComparedPart = Literal["latency", "denoising", "attention"]
QUALITY: tuple[Metric, ...] = get_args(Metric)
_LATER_METRICS = later({"st_lpips": {"missing": "the bench is older than this metric"}})
PARTS: tuple[Part, ...] = get_args(Part)
COMPARED_PARTS: tuple[ComparedPart, ...] = get_args(ComparedPart)


@dataclass(frozen=True)
class Summary:
    """A figure over runs: mean, median, and from ``low`` to ``high`` its ``spread``, the quartiles or the range."""

    mean: float
    median: float
    low: float
    high: float
    spread: str
    count: int


@dataclass(frozen=True)
class Ratio:
    """A speed-up, over so many pairs of runs."""

    value: float
    pairs: int


@dataclass(frozen=True)
class Missing:
    """Why there is no figure."""

    missing: str


Figure = Summary | Missing
SpeedUps = Mapping[ComparedPart, Ratio | Missing]


@dataclass(frozen=True)
class CompleteRun:
    """A complete run: one video, its files, and the values that the figures of its row summarise.

    Attributes:
        report, quality, video: files, relative to the folder of the bench; None where there is none.
        metrics: value of each measured metric, the mean over the frames: ``psnr`` in dB, ``vbench`` in percent. A
            dense row has at most ``vbench``; empty without a video, and in benches older than this key.
        seconds: of each timed part. Empty if times are left out, and in benches older than this key.
    """

    prompt: str
    seed: int
    report: str
    quality: str | None
    video: str | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FailedRun:
    """A run that failed, why, and the file that says so."""

    prompt: str
    seed: int
    error: str
    hint: str | None
    file: str


@dataclass(frozen=True)
class PhaseFigures:
    """Denoising steps of one phase, how many of them were computed, and the median seconds of one.

    Seconds, and of them those of attention, are None where they were not timed or are left out.
    """

    steps: int
    computed: int
    seconds: float | None
    attention: float | None


@dataclass(frozen=True, kw_only=True)
class PaperFigures:
    """What the paper reports of such a run: in which table, on which machine; None for what it does not report."""

    table: str
    machine: str
    psnr: float | None = field(default=None, metadata=ABSENT)
    ssim: float | None = field(default=None, metadata=ABSENT)
    lpips: float | None = field(default=None, metadata=ABSENT)
    vbench: float | None = field(default=None, metadata=ABSENT)
    latency: float | None = field(default=None, metadata=ABSENT)
    speed_up: float | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """A row of the tables.

    Attributes:
        series: the line of a plot that it is a point of.
        settings: of its runs, all but those that the bench decides; ``differs_in`` are those that the row sets.
        random_weights: what to say of them; None if the weights are real.
        planned: runs that it should have.
        runs, failures: those that are complete, and those that failed.
        reference, diffusers_row: the rows that it is compared with: dense attention, and diffusers as it comes.
        identical_frames: frames of all runs that equal the dense ones.
        seconds: of each part of a run.
        speed_up, speed_up_over_diffusers: over these rows; the second None in a bench without such rows.
        estimated: how many steps of a run were computed, if not all.
        density: share of the blocks that were computed.
        skipped, merged: shares of what a cache left out and of tokens that were merged; None without.
        made_up, own_error: the cost of compensation for left-out blocks, and the runs' estimate of their attention
            error; None without.
        phases: of the denoising steps.
        peak_gpu_bytes: the largest of all runs.
        paper: the paper's figures, where it ran the same.
    """

    name: str
    series: str
    settings: Mapping[str, Any]
    differs_in: tuple[str, ...]
    random_weights: str | None
    planned: int
    runs: tuple[CompleteRun, ...]
    failures: tuple[FailedRun, ...]
    reference: str | None
    diffusers_row: str | None
    quality: Mapping[Metric, Figure] = field(metadata=_LATER_METRICS)
    identical_frames: int
    seconds: Mapping[Part, Figure]
    speed_up: SpeedUps
    speed_up_over_diffusers: SpeedUps | None
    estimated: Estimated | None
    density: Summary | None
    skipped: Summary | None
    merged: Summary | None
    made_up: Summary | None = None
    own_error: Summary | None = None
    phases: Mapping[str, PhaseFigures]
    peak_gpu_bytes: int | None
    attention_backend: str | None
    paper: PaperFigures | None


@dataclass(frozen=True, kw_only=True)
class Bench(Versioned):
    """A bench with its figures.

    Attributes:
        source: the preset or file that it came from.
        machines, versions: those of the runs, each once.
        times: whether times and speed-ups are shown.
        random_weights, estimated: what every output says of them; None where nothing is to be said.
        notes: what a reader must know to read the figures right.
        plots: curves that the bench asks for.
    """

    kind: str = "adaspa bench"
    created: str
    title: str
    about: str
    source: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    machines: tuple[Machine, ...]
    versions: tuple[Mapping[str, str], ...]
    times: bool
    random_weights: str | None
    estimated: str | None
    notes: tuple[str, ...]
    plots: tuple[Plot, ...]
    rows: tuple[BenchRow, ...]


def read_bench(path: Path) -> Bench:
    """Read a ``bench.json``.

    Raises:
        ReportError: the file cannot be read, is no bench, or is one of another format.
    """
    return read_versioned(Bench, path)
