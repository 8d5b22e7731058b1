"""The page of a latency report: one HTML file with the video in it, readable on a phone, that loads nothing."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adaspa_cli.report import meanings
from adaspa_cli.report.compare import Compared
from adaspa_cli.report.compensation import error_note
from adaspa_cli.report.dense_run import command_parts, dense_commands
from adaspa_cli.report.heat import error_heats, heats
from adaspa_cli.report.media import data_uri
from adaspa_cli.report.player import Clip, Player
from adaspa_cli.report.schema import ComparedRun, Report
from adaspa_cli.report.steps import estimated_note
from adaspa_cli.report.template import render
from adaspa_cli.report.words import pace, run_name, why_slower

PHASES = {
    "dense": "#3b6ea5",
    "merged": "#3a8ea5",
    "search": "#d1622b",
    "cached search": "#e0a03a",
    "sparse": "#2f8f6b",
    "estimate": "#a4457f",
    "mask check": "#8f4a2f",
    "loaded masks": "#7fae4a",
    "skipped": "#5c5c8a",
}
_NO_DIFFERENCE = ("out", "compare_with", "resume", "lossless", "prompt", "prompts", "seed")  # to the video
_REST = "var(--rest)"
_OTHER_PARTS = {"text encoding": "#7a6a2f", "decoding": "#8a5c5c", "writing": "var(--writing)", "other": "var(--other)"}


@dataclass(frozen=True)
class Part:
    """A share of a run's time, in seconds."""

    name: str
    seconds: float
    colour: str


@dataclass(frozen=True)
class Run:
    """A run as the page shows it."""

    name: str
    report: Report
    parts: list[Part]
    video: str | None
    estimated: str | None


def page(report: Report, video: Path | None, compared: Compared | None = None) -> str:
    """The page as HTML.

    Args:
        report: what :func:`~adaspa_cli.report.latency.latency_report` gave.
        video: file of the video, None if the run ended in latents.
        compared: the run to show beside it; without it the page shows no comparison, though the report may hold one.
    """
    runs = [_run(report, video)]
    if compared is None:
        report = replace(report, compared=None)
    else:
        runs = _told_apart([*runs, _run(compared.report, compared.video)])
    return render(
        Path(__file__).parent / "report.html.j2",
        report=report,
        runs=runs,
        pace=pace,
        why_slower=None if compared is None else why_slower(report, compared.report),
        player=_player(report, runs),
        difference=_difference(report.compared),
        meanings=meanings,
        density=next(filter(None, (meanings.density(run.report) for run in runs)), None),
        phase_meanings=meanings.phases([run.report for run in runs]),
        dense_commands=None if compared is not None else dense_commands(report),
        command_parts=command_parts,
        notes=_notes(report, compared),
        longest=max(run.report.seconds.total for run in runs),
        slowest=max(step.seconds for run in runs for step in run.report.steps),
        phases=PHASES,
        rest=_REST,
        heats=heats(report.searches),
        error_heats=error_heats(report.compensation),
        error=error_note(report),
        settings={
            key: (_shown(setting.value), setting.origin)
            for key, setting in report.settings.items()
            if setting.value is not None
        },
    )


def _player(report: Report, runs: list[Run]) -> Player | None:
    """Both videos in step; None unless there are two."""
    compared = report.compared
    curves = {} if compared is None else {"psnr": compared.psnr, "ssim": compared.ssim}
    clips = [
        Clip(run.name, run.video, run.report.video.fps, {} if number else curves)
        for number, run in enumerate(runs)
        if run.video is not None
    ]
    if len(clips) < 2:
        return None
    video = report.video
    return Player(clips, 1, video.frames, video.height, video.width)


def _difference(compared: ComparedRun | None) -> str | None:
    """How far the video is from the one beside it, in words."""
    if compared is None:
        return None
    psnr, ssim = compared.mean("psnr"), compared.mean("ssim")
    if psnr is None or ssim is None:
        return f"PSNR and SSIM are not available: {compared.reason}"
    source = "before compression" if compared.lossless else "decoded from the video files"
    return f"PSNR {psnr:.2f} dB, SSIM {ssim:.4f}: means over {len(compared.psnr)} frames {source}"


def _shown(value: Any) -> str:
    """A setting as YAML would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _run(report: Report, video: Path | None) -> Run:
    inside = None if video is None else data_uri("video/mp4", video.read_bytes())
    return Run(run_name(report), report, time_parts(report), inside, estimated_note(report))


def _told_apart(runs: list[Run]) -> list[Run]:
    """The runs, those of one name with the settings that make the difference, or what each is on the page."""
    first, second = runs
    if first.name != second.name:
        return runs
    keys = [
        key
        for key, setting in first.report.settings.items()
        if key not in _NO_DIFFERENCE and setting.value != second.report.setting(key, setting.value)
    ]
    if not keys:
        return [replace(first, name=f"{first.name} (this run)"), replace(second, name=f"{second.name} (compared)")]
    return [
        replace(run, name=f"{run.name} ({', '.join(f'{key} {_shown(run.report.setting(key))}' for key in keys[:2])})")
        for run in runs
    ]


def time_parts(report: Report) -> list[Part]:
    """Where the total time went, in the order of a run; the parts sum to the total.

    Attention is split by the phase of its step, so that a step's search stands in one part with the dense attention
    that it needs. Where its time is unknown, denoising is one part.
    """
    seconds = report.seconds
    known_attention = seconds.attention is not None
    attention: dict[str, float] = defaultdict(float)
    for step in report.steps:
        attention[step.phase] += step.attention or 0.0
    parts = [Part("text encoding", seconds.text_encoding, _OTHER_PARTS["text encoding"])]
    parts += [Part(f"attention, {phase}", attention[phase], PHASES[phase]) for phase in PHASES if attention[phase]]
    rest = "rest of denoising" if known_attention else "denoising"
    parts.append(Part(rest, seconds.denoising - (seconds.attention or 0.0), _REST))
    parts += [Part(key, getattr(seconds, key), _OTHER_PARTS[key]) for key in ("decoding", "writing")]
    known = sum(part.seconds for part in parts)
    return [*parts, Part("other", max(0.0, seconds.total - known), _OTHER_PARTS["other"])]


def _notes(report: Report, compared: Compared | None) -> list[str]:
    """What the reader must know to judge the figures."""
    notes = [
        f"{report.model.name} ({report.model.layers} layers, {report.model.heads} heads of {report.model.head_dim}, "
        f"{report.model.dtype}), {_attention(report)}",
        _machine(report),
    ]
    if compared is not None and _machine(compared.report) != notes[1]:
        notes.append(f"different machine: the compared run was made on {_machine(compared.report)}")
    if compared is not None and _compiled(report) != _compiled(compared.report):
        which = "this run" if _compiled(report) else "the compared run"
        notes.append(f"blocks ran through torch.compile only in {which}")
    notes += [
        f"LoRA {lora.file}, scale {lora.scale:g}{f', {lora.stage} noise' if lora.stage else ''}"
        for lora in report.loras
    ]
    notes += [f"{key.replace('_', ' ')} {used.note}" for key, used in (report.pictures or {}).items()]
    notes += _linear_notes(report, compared)
    if report.cache and report.cache.skipped is not None:
        notes.append(f"{report.cache.name} skipped {report.cache.skipped:.1%} of {report.cache.unit} calls")
    if report.merging and report.merging.merged is not None:
        notes.append(f"{report.merging.name} merged {report.merging.merged:.1%} of the video tokens")
    return notes


def _compiled(report: Report) -> bool:
    return bool(report.setting("compile"))


def _linear_notes(report: Report, compared: Compared | None) -> list[str]:
    """Which linear layers multiplied in FP8, and how it was in the run beside this one if that differs."""
    notes = [_linear(report)] if report.linear else []
    if compared is not None and bool(compared.report.linear) != bool(report.linear):
        notes.append(f"compared run: {_linear(compared.report)}")
    return notes


def _linear(report: Report) -> str:
    found = report.linear
    if found is None:
        return "no linear layer multiplied in FP8"
    return f"{found.layers} of {found.of} linear layers of the blocks multiplied in FP8 (e4m3)"


def _attention(report: Report) -> str:
    backend = report.attention_backend
    return f"attention backend {backend}" if backend else "attention inside diffusers, not timed"


def _machine(report: Report) -> str:
    known = report.versions
    versions = ", ".join(f"{name} {known.get(name)}" for name in ("torch", "diffusers", "adaspa"))
    return f"{report.machine.line()}; {versions}"
