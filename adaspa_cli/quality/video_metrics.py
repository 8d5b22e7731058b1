"""PSNR, SSIM and LPIPS of a video against another of the same size, frame by frame, through torchmetrics.

A metric that cannot be had here is not a number but a reason: see :class:`Measurement`.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

METRICS = ("psnr", "ssim", "lpips")
PSNR_OF_EQUAL_FRAMES = 100.0  # dB: of frames that do not differ, for which it would be infinite
_FRAMES_AT_ONCE = 8  # of SSIM and LPIPS, whose intermediate results are many times as large as the frames
_LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"  # the file that torchvision loads AlexNet from


@dataclass(frozen=True)
class Measurement:
    """A metric of one video: its value (mean over frames), or the reason why there is none."""

    value: float | None
    reason: str | None = field(default=None, metadata={"absent": True})  # no key in JSON where there is a value


class VideoMetrics:
    """The metrics that can be had on this machine, loaded once.

    Attributes:
        reasons: why a metric cannot be had, by its name.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lpips: Any = None
        self.reasons: dict[str, str] = {}
        try:
            from torchmetrics.functional import image
        except Exception as error:  # a torchvision that does not fit torch breaks it with a RuntimeError
            reason = f"torchmetrics cannot be imported ({_one_line(error)}); pip install 'adaspa[quality]'"
            self.reasons = dict.fromkeys(METRICS, reason)
            return
        self._image = image
        try:
            self._lpips = self._load_lpips()
        except _UnavailableError as error:
            self.reasons["lpips"] = str(error)

    def _load_lpips(self) -> Any:
        """LPIPS with AlexNet, whose weights must be on the disk already: nothing is downloaded."""
        try:
            import torchvision  # noqa: F401
        except Exception as error:
            raise _UnavailableError(
                f"torchvision cannot be imported ({_one_line(error)}); pip install 'adaspa[lpips]'"
            ) from error
        weights = Path(torch.hub.get_dir()) / "checkpoints" / _LPIPS_WEIGHTS
        if not weights.is_file():
            raise _UnavailableError(
                f"AlexNet's weights are missing: https://download.pytorch.org/models/{weights.name} as {weights}"
            )
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        try:
            with contextlib.redirect_stdout(io.StringIO()):
                metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
        except Exception as error:
            raise _UnavailableError(f"AlexNet cannot be loaded from {weights}: {_one_line(error)}") from error
        return metric.to(self._device)

    def compare(self, video: NDArray[np.uint8], reference: NDArray[np.uint8]) -> dict[str, Measurement]:
        """Measure frames [F, H, W, 3] against reference frames of the same shape.

        PSNR is in dB, with pixels in [0, 1]; SSIM has the usual Gaussian window of 11 pixels; LPIPS is AlexNet's.
        """
        if video.shape != reference.shape:
            reason = f"the videos differ in shape, {list(video.shape)} and {list(reference.shape)}"
            return {name: Measurement(None, reason) for name in METRICS}
        found = {name: Measurement(None, reason) for name, reason in self.reasons.items()}
        by_frame: dict[str, list[Tensor]] = {name: [] for name in METRICS if name not in found}
        try:
            for start in range(0, len(video), _FRAMES_AT_ONCE):
                piece = slice(start, start + _FRAMES_AT_ONCE)
                a, b = (self._pixels(frames[piece]) for frames in (video, reference))
                for name, values in by_frame.items():
                    values.append(getattr(self, f"_{name}_of")(a, b))
        except (RuntimeError, ValueError) as error:
            return found | {name: Measurement(None, _one_line(error)) for name in by_frame}
        return found | {name: Measurement(float(torch.cat(values).mean())) for name, values in by_frame.items()}

    def _pixels(self, frames: NDArray[np.uint8]) -> Tensor:
        """uint8 [n, H, W, 3] to float32 [n, 3, H, W] in [0, 1]."""
        return torch.from_numpy(frames).to(self._device).permute(0, 3, 1, 2).float() / 255

    def _psnr_of(self, a: Tensor, b: Tensor) -> Tensor:
        psnr = self._image.peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
        return torch.as_tensor(psnr).clamp(max=PSNR_OF_EQUAL_FRAMES).double().cpu()

    def _ssim_of(self, a: Tensor, b: Tensor) -> Tensor:
        ssim = self._image.structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
        return torch.as_tensor(ssim).reshape(-1).double().cpu()

    def _lpips_of(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.stack([self._lpips(x[None], y[None]).double().cpu() for x, y in zip(a, b, strict=True)])


class _UnavailableError(Exception):
    """Why LPIPS cannot be had."""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
