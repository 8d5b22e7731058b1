"""The difference between a video and the one it is compared with, and the speed-up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaspa_cli.errors import OutputError
from adaspa_cli.files.videos import read_frames
from adaspa_cli.quality.by_frame import Comparing, by_frame, silent
from adaspa_cli.report.compare import Compared
from adaspa_cli.report.schema import ComparedRun, Report


def measure_difference(
    report: Report,
    compared: Compared,
    files: tuple[Path, Path] | None,
    *,
    lossless: bool,
    comparing: Comparing = silent,
) -> ComparedRun:
    """Compare a run with the one shown beside it.

    A video that cannot be compared is no reason to lose it: what hinders it is noted instead.

    Args:
        files: of the frames of both; None if one of them ended in latents.
        lossless: whether these hold the frames as they were before compression.
        comparing: what it raises is not held back.
    """
    psnr: Sequence[float] = ()
    ssim: Sequence[float] = ()
    reason = None if files else "a run ended in latents"
    if files is not None:
        try:
            curves = by_frame(read_frames(files[0]), read_frames(files[1]), comparing)
            psnr, ssim = curves["psnr"], curves["ssim"]
        except (OutputError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
    return ComparedRun(
        method=compared.report.setting("method"),
        dense=compared.report.dense,
        speed_up=speed_up(report, compared.report),
        lossless=lossless,
        psnr=tuple(round(value, 4) for value in psnr),
        ssim=tuple(round(value, 6) for value in ssim),
        reason=reason,
    )


def speed_up(report: Report, compared: Report) -> float:
    """How many times as long as a run the other one took."""
    return compared.seconds.total / report.seconds.total
