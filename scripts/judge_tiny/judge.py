"""Vocabulary of the drawn clips, and an analytic judge that reads colour, background, shape and motion from a clip.

The bundled tiny model knows exactly this vocabulary, so whether it followed a caption can be *measured*, without any
learned metric. The judge needs numpy alone:

- background: a plane is fitted to the border pixels (drawn backgrounds carry a soft linear gradient); its centre is
  compared with the palette;
- object: pixels far from that plane; colour: the palette entry nearest to the object's core;
- shape: angular harmonics of the outline's radius function r(angle) about the centroid. A triangle is strong in the
  3rd, a square in the 4th, a star in the 5th, a circle in none. The amplitudes don't depend on size or rotation;
- motion: path of the centroid, change of area, and phase of the shape's harmonic over time.

Shapes: F frames, H height, W width, A angles, R radii.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Rgb = tuple[int, int, int]

SHAPES: Final = ("circle", "square", "triangle", "star")
MOTIONS: Final = ("left", "right", "up", "down", "still", "grows", "rotates", "bounces")
COLORS: Final = MappingProxyType(
    {
        "red": (225, 40, 45),
        "orange": (250, 145, 30),
        "yellow": (250, 230, 60),
        "green": (50, 185, 75),
        "blue": (50, 100, 240),
        "purple": (150, 60, 200),
        "pink": (250, 140, 195),
        "white": (250, 250, 250),
    }
)
BACKGROUNDS: Final = MappingProxyType(
    {
        "black": (20, 20, 24),
        "gray": (130, 130, 134),
        "white": (238, 238, 240),
        "blue": (40, 60, 150),
        "green": (35, 105, 60),
        "brown": (120, 80, 48),
    }
)
HARMONICS: Final = MappingProxyType({"triangle": 3, "square": 4, "star": 5})
NOTHING: Final = "none"

# Least relative amplitude of the 3rd, 4th and 5th harmonic at which the outline is not a circle. The ideal shapes
# have 0.27, 0.11 and 0.28; blur lowers them, the square's first.
_LEAST_AMPLITUDE = MappingProxyType({"triangle": 0.075, "square": 0.04, "star": 0.06})
_LEAST_CONTRAST = 45.0  # 8-bit RGB distance below which nothing stands out from the background
_LEAST_TRAVEL = 0.16  # of the frame's side
_LEAST_BOUNCE = 0.16
_LEAST_GROWTH = 1.8  # area at the end over area at the start
_LEAST_TURN = 30.0  # degrees


@dataclass(frozen=True)
class Scene:
    """One object in one clip, in words of the vocabulary."""

    shape: str
    color: str
    background: str
    motion: str

    def __post_init__(self) -> None:
        allowed = (("shape", SHAPES), ("color", COLORS), ("background", BACKGROUNDS), ("motion", MOTIONS))
        for field, words in allowed:
            if getattr(self, field) not in words:
                raise ValueError(f"{field} is {getattr(self, field)!r}; allowed are {', '.join(words)}")

    def is_drawable(self) -> bool:
        """False where the object would vanish in its background, or turn without anybody seeing it."""
        return self.color != self.background and not (self.shape == "circle" and self.motion == "rotates")


@dataclass(frozen=True)
class Verdict:
    """What the judge saw. Every field is a word of the vocabulary, or ``"none"`` where nothing stood out."""

    color: str
    background: str
    shape: str
    motion: str

    def hits(self, scene: Scene) -> dict[str, bool]:
        """Attribute -> whether the clip shows what ``scene`` asks for."""
        return {name: getattr(self, name) == getattr(scene, name) for name in ATTRIBUTES}


ATTRIBUTES: Final = ("color", "background", "shape", "motion")


def judge_clip(frames: Array) -> Verdict:
    """Judge one clip with a single object.

    Args:
        frames: uint8 RGB [F, H, W, 3], at least 5 frames of 32x32 pixels.

    Raises:
        ValueError: for any other shape or type.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 [frames, height, width, 3], not {frames.dtype} {frames.shape}")
    if frames.shape[0] < 5 or min(frames.shape[1:3]) < 32:
        raise ValueError(f"a clip needs at least 5 frames of 32x32 pixels, not {frames.shape[:3]}")
    pixels = frames.astype(np.float32)
    plane = _fit_background(pixels)
    background = _nearest(np.median(plane, axis=(0, 1)), BACKGROUNDS)

    distance = np.sqrt(np.square(pixels - plane).sum(axis=-1))  # [F, H, W]
    # The smallest drawn object covers 1 % of a frame; a sparse sample of the pixels is enough for a percentile.
    contrast = float(np.percentile(distance[:, ::2, ::2], 99.6))
    if contrast < _LEAST_CONTRAST:
        return Verdict(NOTHING, background, NOTHING, NOTHING)
    alpha = np.clip(distance / contrast, 0.0, 1.0)
    color = _nearest(np.median(pixels[alpha > 0.9], axis=0), COLORS)

    track = _Track.of(alpha)
    if track is None:
        return Verdict(color, background, NOTHING, NOTHING)
    spectrum = np.fft.rfft(_outlines(alpha, track), axis=1)  # [F, A // 2 + 1]
    spectrum = 2.0 * spectrum / np.maximum(spectrum[:, :1].real, 1e-6)
    shape = _shape(spectrum, track.area)
    return Verdict(color, background, shape, _motion(track, spectrum, shape, alpha.shape[1:]))


@dataclass(frozen=True)
class _Track:
    """Position [F] and area [F] of the object in pixels, of the frames in which it is seen."""

    frame: Array
    x: Array
    y: Array
    area: Array

    @staticmethod
    def of(alpha: Array) -> "_Track | None":
        mask = alpha > 0.5
        x, y, area = _centroid(mask)
        # Second look without specks: only what lies near the object's own centre counts.
        rows = np.arange(alpha.shape[1], dtype=np.float32)[None, :, None]
        columns = np.arange(alpha.shape[2], dtype=np.float32)[None, None, :]
        reach = 6.0 * area / np.pi + 9.0
        mask &= (columns - x[:, None, None]) ** 2 + (rows - y[:, None, None]) ** 2 < reach[:, None, None]
        x, y, area = _centroid(mask)
        seen = np.flatnonzero(area > 0.002 * alpha[0].size)
        if len(seen) < max(5, alpha.shape[0] // 2):
            return None
        return _Track(seen, x[seen], y[seen], area[seen])


def _centroid(mask: Array) -> tuple[Array, Array, Array]:
    """x [F], y [F] and area [F] of a bool mask [F, H, W]."""
    columns = mask.sum(axis=1, dtype=np.float32)  # [F, W]
    rows = mask.sum(axis=2, dtype=np.float32)  # [F, H]
    area = columns.sum(axis=1)
    least = np.maximum(area, 1.0)
    x = columns @ np.arange(mask.shape[2], dtype=np.float32) / least
    y = rows @ np.arange(mask.shape[1], dtype=np.float32) / least
    return x, y, area


def _fit_background(pixels: Array) -> Array:
    """Plane [H, W, 3] through the border pixels of all frames, without those an object covers."""
    height, width = pixels.shape[1:3]
    strip = max(2, round(0.04 * min(height, width)))
    border = np.ones((height, width), dtype=bool)
    border[strip:-strip, strip:-strip] = False
    y, x = np.nonzero(border)
    color = np.median(pixels[:, y, x], axis=0)  # [border, 3]
    near = np.abs(color - np.median(color, axis=0)).max(axis=-1) < 50.0
    basis = np.stack([np.ones_like(x), x / width - 0.5, y / height - 0.5], axis=1).astype(np.float64)
    plane, *_ = np.linalg.lstsq(basis[near], color[near], rcond=None)  # [3, 3]
    everywhere_y, everywhere_x = np.mgrid[0:height, 0:width]
    full = np.stack([np.ones((height, width)), everywhere_x / width - 0.5, everywhere_y / height - 0.5], axis=-1)
    return np.asarray(full @ plane, dtype=np.float32)


def _nearest(color: Array, palette: MappingProxyType[str, Rgb]) -> str:
    names = list(palette)
    distances = np.linalg.norm(np.array([palette[n] for n in names], dtype=np.float64) - color, axis=1)
    return names[int(distances.argmin())]


def _outlines(alpha: Array, track: _Track, angles: int = 72, radii: int = 56) -> Array:
    """Radius of the object in each direction about its centre, in pixels [F, A]; all four shapes are star-shaped."""
    angle = 2.0 * np.pi * np.arange(angles) / angles
    reach = 2.3 * np.sqrt(track.area / np.pi)  # [F]
    radius = reach[:, None] * (np.arange(radii) + 0.5) / radii  # [F, R]
    x = track.x[:, None, None] + np.cos(angle)[:, None] * radius[:, None, :]  # [F, A, R]
    y = track.y[:, None, None] + np.sin(angle)[:, None] * radius[:, None, :]
    value = _sample(alpha, track.frame[:, None, None], y, x)
    # A steep ramp about one half keeps the edge's place below a pixel and ignores residues of the background.
    inside = np.clip(4.0 * (value - 0.5) + 0.5, 0.0, 1.0)
    return np.asarray(inside.sum(axis=-1) * reach[:, None] / radii)


def _sample(alpha: Array, frame: Array, y: Array, x: Array) -> Array:
    """Bilinear values of alpha [F, H, W]; positions outside the frame count as background."""
    height, width = alpha.shape[1:]
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = x - x0, y - y0
    total = np.zeros(x.shape)
    for dy, wy in ((0, 1.0 - fy), (1, fy)):
        for dx, wx in ((0, 1.0 - fx), (1, fx)):
            column, row = x0 + dx, y0 + dy
            within = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            value = alpha[frame, row.clip(0, height - 1), column.clip(0, width - 1)]
            total += wy * wx * np.where(within, value, 0.0)
    return total


def _shape(spectrum: Array, area: Array) -> str:
    """Shape whose harmonic stands out most, over the frames in which the object is large enough to tell."""
    large = area >= np.median(area)
    amplitude = np.median(np.abs(spectrum[large]), axis=0)
    score = {shape: amplitude[k] / _LEAST_AMPLITUDE[shape] for shape, k in HARMONICS.items()}
    best = max(score, key=lambda shape: score[shape])
    return best if score[best] >= 1.0 else "circle"


def _motion(track: _Track, spectrum: Array, shape: str, size: tuple[int, ...]) -> str:
    height, width = size
    x, y = _smooth(track.x / width), _smooth(track.y / height)
    if _turning_points(y, _LEAST_BOUNCE) >= 2:
        return "bounces"
    dx, dy = float(x[-1] - x[0]), float(y[-1] - y[0])
    if max(abs(dx), abs(dy)) > _LEAST_TRAVEL:
        if abs(dx) > abs(dy):
            return "right" if dx > 0 else "left"
        return "down" if dy > 0 else "up"
    edge = max(1, len(track.area) // 10)
    if float(np.median(track.area[-edge:]) / np.median(track.area[:edge])) > _LEAST_GROWTH:
        return "grows"
    if shape in HARMONICS and _turn(spectrum[:, HARMONICS[shape]], HARMONICS[shape]) > _LEAST_TURN:
        return "rotates"
    return "still"


def _smooth(path: Array) -> Array:
    return np.convolve(np.pad(path, 1, mode="edge"), np.ones(3) / 3.0, mode="valid")


def _turning_points(path: Array, swing: float) -> int:
    """How often the path turns back by at least ``swing`` from its last extreme."""
    turns, direction = 0, 0
    low = high = float(path[0])
    for value in path:
        low, high = min(low, float(value)), max(high, float(value))
        if direction >= 0 and high - value >= swing:
            turns, direction, low = turns + (direction > 0), -1, float(value)
        elif direction <= 0 and value - low >= swing:
            turns, direction, high = turns + (direction < 0), 1, float(value)
    return turns


def _turn(harmonic: Array, k: int) -> float:
    """Degrees turned between first and last frame, from the phase of the k-th harmonic [F]."""
    phase = np.unwrap(np.angle(harmonic))
    return float(abs(np.median(phase[-3:]) - np.median(phase[:3])) / k * 180.0 / np.pi)
