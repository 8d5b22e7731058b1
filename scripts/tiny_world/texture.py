"""Pattern and drift of a background, from the tone of the pixels that no object covers.

Shapes: F frames, H height, W width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_PLAIN = 3.2  # deviation of the tone (8-bit units) up to which there is no pattern
_PLANE = 0.80  # share of the variance that a plane explains, from which it is a gradient
_FINE = 0.82  # share of the spectrum above 3 cycles a side, up to which there are clouds
_ONE_WAY = 0.55  # share of the spectrum in one direction, from which they are stripes
_LOPSIDED = 1.0  # skewness from which there are dots: fewer pixels lie in them than around them
_LEAST_DRIFT = 0.08  # of the shorter side, over the whole clip


def pattern_of(tone: Array, free: Array) -> str:
    """The pattern of the frame with most of the background in sight [F, H, W]."""
    frame = int(free.sum(axis=(1, 2)).argmax())
    value, seen = tone[frame].astype(np.float64), free[frame]
    if seen.sum() < 0.2 * seen.size:
        return "plain"
    spread = float(value[seen].std())
    if spread < _PLAIN:
        return "plain"
    y, x = np.mgrid[-0.5 : 0.5 : value.shape[0] * 1j, -0.5 : 0.5 : value.shape[1] * 1j]
    basis = np.stack([np.ones(seen.sum()), x[seen], y[seen]], axis=1)
    plane, *_ = np.linalg.lstsq(basis, value[seen], rcond=None)
    rest = value[seen] - basis @ plane
    if 1.0 - float(np.square(rest).mean()) / spread**2 > _PLANE:
        return "gradient"
    rest_image = np.where(seen, value - value[seen].mean(), 0.0)
    if _fine(rest_image) < _FINE:
        return "cloudy"
    if _one_way(rest_image) > _ONE_WAY:
        return "striped"
    skewness = float((rest_image[seen] ** 3).mean()) / spread**3
    return "speckled" if abs(skewness) > _LOPSIDED else "checkered"


def _spectrum(image: Array) -> tuple[Array, Array, Array]:
    """Power of a windowed image, with its frequencies in cycles for each shorter side."""
    window = np.hanning(image.shape[0])[:, None] * np.hanning(image.shape[1])[None]
    power = np.square(np.abs(np.fft.fft2(image * window)))
    power[0, 0] = 0.0
    side = min(image.shape)
    fy, fx = np.fft.fftfreq(image.shape[0]) * side, np.fft.fftfreq(image.shape[1]) * side
    return power, np.broadcast_to(fy[:, None], power.shape), np.broadcast_to(fx[None], power.shape)


def _one_way(image: Array) -> float:
    """Share of the power along the direction that has most of it."""
    power, fy, fx = _spectrum(image)
    far = np.hypot(fy, fx) > 1.9
    best = 0.0
    for angle in np.arange(12) * np.pi / 12:
        off = np.abs(fy * np.cos(angle) - fx * np.sin(angle))
        best = max(best, float(power[far & (off < 1.7)].sum()))
    return best / max(float(power[far].sum()), 1e-9)


def _fine(image: Array) -> float:
    power, fy, fx = _spectrum(image)
    return float(power[np.hypot(fy, fx) > 3.0].sum() / max(power.sum(), 1e-9))


def drift_of(tone: Array, free: Array, pattern: str) -> str:
    """Which way the background goes, by least squares over I_x u + I_y v + I_t = 0 where it is in sight."""
    side = min(tone.shape[1:])
    factor = max(1, side // 64) * (2 if pattern != "checkered" else 1)
    small = _shrunk(tone, factor)
    sight = _shrunk(free.astype(np.float32), factor) > 0.99
    across = 0.5 * (np.diff(small[:, :, 1:], axis=2) + np.diff(small[:, :, :-1], axis=2))[:, 1:-1]
    along = 0.5 * (np.diff(small[:, 1:], axis=1) + np.diff(small[:, :-1], axis=1))[:, :, 1:-1]
    inner = small[:, 1:-1, 1:-1]
    gx, gy = (0.5 * (g[1:] + g[:-1]) for g in (across, along))
    gt = np.diff(inner, axis=0)
    good = sight[1:, 1:-1, 1:-1] & sight[:-1, 1:-1, 1:-1]
    gx, gy, gt = gx[good], gy[good], gt[good]
    xx, yy, xy = float(gx @ gx), float(gy @ gy), float(gx @ gy)
    ridge = 0.05 * (xx + yy) + 1e-6
    u, v = np.linalg.solve([[xx + ridge, xy], [xy, yy + ridge]], [-float(gx @ gt), -float(gy @ gt)])
    u, v = (value * factor * (len(tone) - 1) / side for value in (u, v))
    if max(abs(u), abs(v)) < _LEAST_DRIFT:
        return "still"
    if abs(u) > abs(v):
        return "right" if u > 0 else "left"
    return "down" if v > 0 else "up"


def _shrunk(values: Array, factor: int) -> Array:
    """Means of squares of pixels [F, H // factor, W // factor]."""
    height, width = (n // factor * factor for n in values.shape[1:])
    cut = values[:, :height, :width]
    return np.asarray(cut.reshape(len(cut), height // factor, factor, width // factor, factor).mean(axis=(2, 4)))
