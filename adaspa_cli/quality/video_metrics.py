"""PSNR, SSIM and the learned distances ST-LPIPS and LPIPS of a video against another of the same size, frame by frame.

PSNR, SSIM and LPIPS are torchmetrics'. A learned metric that is not available here has a reason instead of a
number: see :class:`~adaspa_cli.quality.measurement.Measurement`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaspa_cli.errors import BackendError
from adaspa_cli.quality.measurement import Measurement
from adaspa_cli.quality.st_lpips import ShiftTolerantLpips, UnavailableError

METRICS = ("psnr", "ssim", "st_lpips", "lpips")
PSNR_OF_EQUAL_FRAMES = 100.0  # dB: of frames that do not differ, for which it would be infinite
_FRAMES_AT_ONCE = 8  # intermediate results of SSIM are many times as large as the frames
_LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"  # the file that torchvision loads AlexNet from


class VideoMetrics:
    """The metrics available on this machine, loaded once.

    Attributes:
        reasons: why a learned metric is not available, by its name.

    Raises:
        BackendError: torchmetrics cannot be imported.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        import_torchmetrics()
        self._of: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr, "ssim": ssim}
        self.reasons: dict[str, str] = {}
        for name, load in (("st_lpips", ShiftTolerantLpips), ("lpips", _load_lpips)):
            try:
                self._of[name] = load(device)
            except UnavailableError as error:
                self.reasons[name] = str(error)

    def compare(self, video: NDArray[np.uint8], reference: NDArray[np.uint8]) -> dict[str, Measurement]:
        """Measure frames [F, H, W, 3] against reference frames of the same shape.

        PSNR is in dB, with pixels in [0, 1]; SSIM has the usual Gaussian window of 11 pixels; ST-LPIPS and LPIPS are
        AlexNet's. All is computed in float32, by the same algorithms each time.
        """
        if video.shape != reference.shape:
            reason = f"the videos differ in shape, {list(video.shape)} and {list(reference.shape)}"
            return {name: Measurement(None, reason) for name in METRICS}
        found = {name: Measurement(None, reason) for name, reason in self.reasons.items()}
        values: dict[str, list[Tensor]] = {name: [] for name in self._of}
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            for a, b in pieces(video, reference, self._device):
                for name in self._of.keys() - found.keys():
                    try:
                        values[name].append(self._of[name](a, b).double().cpu())
                    except (RuntimeError, ValueError) as error:  # frames smaller than a window
                        found[name] = Measurement(None, _one_line(error))
        means = {name: float(torch.cat(values[name]).mean()) for name in self._of.keys() - found.keys()}
        return {name: found[name] if name in found else Measurement(means[name]) for name in METRICS}


def pieces(
    video: NDArray[np.uint8], reference: NDArray[np.uint8], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """A few frames at once of both, uint8 [n, H, W, 3], as float32 [n, 3, H, W] in [0, 1].

    Their memory stays as it was, channels last, in which a CPU convolves them in half the time.
    """
    for start in range(0, len(video), _FRAMES_AT_ONCE):
        piece = (torch.from_numpy(frames[start : start + _FRAMES_AT_ONCE]).to(device) for frames in (video, reference))
        a, b = (frames.permute(0, 3, 1, 2).float().div_(255) for frames in piece)
        yield a, b


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """In dB [n] of frames [n, 3, H, W] in [0, 1]."""
    found = import_torchmetrics().peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return torch.as_tensor(found).clamp(max=PSNR_OF_EQUAL_FRAMES)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """[n] of frames [n, 3, H, W] in [0, 1], with a Gaussian window of 11 pixels.

    Raises:
        ValueError: the frames are smaller than the window.
    """
    found = import_torchmetrics().structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    return torch.as_tensor(found).reshape(-1)


def import_torchmetrics() -> Any:
    """The functions of torchmetrics for pictures.

    Raises:
        BackendError: they cannot be imported, for instance because of a torchvision that does not fit torch.
    """
    try:
        from torchmetrics.functional import image
    except Exception as error:  # a torchvision that does not fit torch breaks it with a RuntimeError
        raise BackendError(
            f"PSNR and SSIM need torchmetrics, which cannot be imported: {_one_line(error)}", hint=_mend_import()
        ) from error
    return image


def _mend_import() -> str:
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        pass
    except Exception:
        return (
            f"torchvision does not fit torch {torch.__version__}: install the one that belongs to it, "
            "or remove it: pip uninstall torchvision"
        )
    return "pip install --upgrade torchmetrics"


def _load_lpips(device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS with AlexNet, whose weights must be on the disk already: nothing is downloaded.

    Raises:
        UnavailableError: torchvision or the weights are missing.
    """
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        raise UnavailableError(
            f"torchvision cannot be imported ({_one_line(error)}); pip install 'adaspa[lpips]'"
        ) from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / _LPIPS_WEIGHTS
    if not weights.is_file():
        raise UnavailableError(
            f"AlexNet's weights are missing: https://download.pytorch.org/models/{weights.name} as {weights}"
        )
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(device)
    except Exception as error:
        raise UnavailableError(f"AlexNet cannot be loaded from {weights}: {_one_line(error)}") from error

    def distances(a: Tensor, b: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.stack([metric(x[None], y[None]) for x, y in zip(a, b, strict=True)])

    return distances


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
