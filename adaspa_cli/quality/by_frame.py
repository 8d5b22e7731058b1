"""PSNR and SSIM of each frame of a video, for curves; as :class:`~adaspa_cli.quality.video_metrics.VideoMetrics`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from adaspa_cli.errors import BackendError
from adaspa_cli.quality.video_metrics import pieces, psnr, ssim

Comparing = Callable[[int, int], None]
"""Is told now and then how many frames were compared, and of how many; first of 0."""


def silent(done: int, frames: int) -> None:
    """Shows nothing."""


def by_frame(
    video: NDArray[np.uint8], reference: NDArray[np.uint8], comparing: Comparing = silent
) -> dict[str, tuple[float, ...]]:
    """PSNR (in dB, pixels in [0, 1]) and SSIM of frames [F, H, W, 3] against reference frames of the same shape.

    On the CPU: the GPU may be full.

    Raises:
        ValueError: says why there is no figure: shapes that differ, frames smaller than SSIM's window of 11 pixels, or
            no torchmetrics.
    """
    if video.shape != reference.shape:
        raise ValueError(f"the videos differ in shape, {list(video.shape)} and {list(reference.shape)}")
    found: dict[str, list[float]] = {"psnr": [], "ssim": []}
    comparing(0, len(video))
    try:
        for a, b in pieces(video, reference, torch.device("cpu")):
            found["psnr"] += psnr(a, b).double().tolist()
            found["ssim"] += ssim(a, b).double().tolist()
            comparing(len(found["ssim"]), len(video))
    except BackendError as error:
        raise ValueError(error.message) from error
    return {name: tuple(values) for name, values in found.items()}
