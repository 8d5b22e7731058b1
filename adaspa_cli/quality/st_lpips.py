"""ST-LPIPS, a learned distance of pictures that small shifts change little (arXiv 2207.13686), with AlexNet's layers.

The weights are those of the package stlpips-pytorch (BSD-2-Clause), which carries them. Its code is not imported: that
needs packages which it does not declare, and a part of it may not be used commercially. The network is built here, and
the file is read as tensors alone.

Shapes: n pictures, C channels, H and W of a layer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from adaspa_cli.errors import shortened

_PACKAGE = "stlpips_pytorch"
_WEIGHTS = "weights/vST0.0/alex_shift_tolerant.pth"
_PIXELS_AT_ONCE = 2**19  # the first layer has 64 channels at full size: 128 MiB, a few times over


class UnavailableError(Exception):
    """Why a metric is not available."""


class ShiftTolerantLpips:
    """The distance, with its weights on a device.

    Raises:
        UnavailableError: the package is not installed, or has no such weights.
    """

    def __init__(self, device: torch.device) -> None:
        found = importlib.util.find_spec(_PACKAGE)  # finds the package without running it
        if found is None or found.origin is None:
            raise UnavailableError("stlpips-pytorch is not installed; pip install 'adaspa[perceptual]'")
        path = Path(found.origin).parent / _WEIGHTS
        try:
            self._weights: dict[str, Tensor] = torch.load(path, map_location=device, weights_only=True)
            picture = torch.zeros(1, 3, 32, 32, device=device, dtype=torch.float32)
            self(picture, picture)
        except Exception as error:
            why = shortened(" ".join(str(error).split()) or type(error).__name__, 200)  # may be the device's memory
            raise UnavailableError(
                f"stlpips-pytorch has no weights of ST-LPIPS that can be read in {path}: {why}"
            ) from error

    @torch.inference_mode()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances [n] of pictures [n, 3, H, W] in [0, 1], float32; 0 for equal ones.

        Pictures are taken by so many pixels at once, so memory does not grow with their number.
        """
        at_once = max(1, _PIXELS_AT_ONCE // (a.shape[2] * a.shape[3]))
        pairs = zip(torch.split(a, at_once), torch.split(b, at_once), strict=True)
        return torch.cat([self._distance(x, y) for x, y in pairs])

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Squared differences of the normalised features, weighted by channel, mean over places, summed over layers."""
        by_layer = []
        for number, (x, y) in enumerate(zip(self._features(a), self._features(b), strict=True)):
            difference = (_normalised(x) - _normalised(y)).square()  # [n, C, H, W]
            weighted = F.conv2d(difference, self._weights[f"lin{number}.model.1.weight"])  # [n, 1, H, W]
            by_layer.append(weighted.mean(dim=(1, 2, 3)))
        return torch.stack(by_layer).sum(dim=0)

    def _features(self, pictures: Tensor) -> Iterator[Tensor]:
        """The outputs [n, C, H, W] of the five convolutions, each after its ReLU."""
        shift, scale = self._weights["scaling_layer.shift"], self._weights["scaling_layer.scale"]
        x = (2 * pictures - 1 - shift) / scale
        x = F.relu(self._halved(self._convolved(x, "slice1.0", padding=2), "slice1.1"))
        yield x
        for blur, layer, padding in (("slice2.4", "slice2.5", 2), ("slice3.8", "slice3.9", 1)):
            x = self._halved(F.max_pool2d(x, 3, stride=1), blur)
            x = F.relu(self._convolved(x, layer, padding))
            yield x
        for layer in ("slice4.11", "slice5.13"):
            x = F.relu(self._convolved(x, layer, padding=1))
            yield x

    def _convolved(self, x: Tensor, layer: str, padding: int) -> Tensor:
        weight, bias = (self._weights[f"net.{layer}.{name}"] for name in ("weight", "bias"))
        return F.conv2d(x, weight, bias, padding=padding)

    def _halved(self, x: Tensor, layer: str) -> Tensor:
        """Blurred, and every second place of each direction kept: what makes the distance tolerate shifts."""
        return F.conv2d(
            F.pad(x, (2, 2, 2, 2), mode="reflect"), self._weights[f"net.{layer}.filt"], stride=2, groups=x.shape[1]
        )


def _normalised(x: Tensor) -> Tensor:
    """To length 1 over the channels."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
