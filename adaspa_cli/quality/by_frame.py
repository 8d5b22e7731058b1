"""PSNR and SSIM of each frame of a video, for curves; as :class:`~adaspa_cli.quality.video_metrics.VideoMetrics`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaspa_cli.quality.video_metrics import PSNR_OF_EQUAL_FRAMES

_FRAMES_AT_ONCE = 8  # intermediate results of SSIM are many times as large as the frames


def by_frame(video: NDArray[np.uint8], reference: NDArray[np.uint8]) -> dict[str, tuple[float, ...]]:
    """PSNR (in dB, pixels in [0, 1]) and SSIM of frames [F, H, W, 3] against reference frames of the same shape.

    On the CPU: the GPU may be full.

    Raises:
        ValueError: says why there is no figure: shapes that differ, frames smaller than SSIM's window of 11 pixels, or
            no torchmetrics.
    """
    if video.shape != reference.shape:
        raise ValueError(f"the videos differ in shape, {list(video.shape)} and {list(reference.shape)}")
    try:
        from torchmetrics.functional import image
    except Exception as error:  # a torchvision that does not fit torch breaks it with a RuntimeError
        raise ValueError(f"torchmetrics cannot be imported: {error}") from error
    found: dict[str, list[Tensor]] = {"psnr": [], "ssim": []}
    for start in range(0, len(video), _FRAMES_AT_ONCE):
        a, b = (_pixels(frames[start : start + _FRAMES_AT_ONCE]) for frames in (video, reference))
        psnr = image.peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
        found["psnr"].append(torch.as_tensor(psnr).clamp(max=PSNR_OF_EQUAL_FRAMES))
        ssim = image.structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
        found["ssim"].append(torch.as_tensor(ssim).reshape(-1))
    return {name: tuple(torch.cat(values).double().tolist()) for name, values in found.items()}


def _pixels(frames: NDArray[np.uint8]) -> Tensor:
    """uint8 [n, H, W, 3] to float32 [n, 3, H, W] in [0, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
