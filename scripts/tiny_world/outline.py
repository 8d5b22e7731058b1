"""Masks of objects against the drawn shapes, in polar coordinates about their centres.

Shapes: F frames, A angles, R radii, S shapes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.tiny_world.draw import distance_to
from scripts.tiny_world.words import SHAPES

Array = NDArray[Any]

_ANGLES, _RADII = 72, 28
_REACH = 2.0  # in radii of a disc of the same area
_PERIODS = {"square": 4, "triangle": 3, "star": 5, "heart": 1}


@dataclass(frozen=True)
class Outlines:
    """``score`` [F, S, A]: how well each frame's mask agrees with each shape at each angle, 1 where they are equal."""

    score: Array

    @staticmethod
    def of(mask: Array, x: Array, y: Array, area: Array) -> Outlines:
        """Compare masks [F, H, W] of that area about their centres (pixels)."""
        seen = _polar(mask.astype(np.float32), x, y, area)  # [F, A, R]
        templates = _templates()[0]
        weight = np.arange(_RADII, dtype=np.float32) + 0.5
        spectrum = np.fft.rfft(seen * weight, axis=1)
        pattern = np.fft.rfft(templates, axis=1)
        both = np.fft.irfft(np.einsum("far,sar->fsa", spectrum, pattern.conj()), n=_ANGLES, axis=2)
        sums = (seen * weight).sum(axis=(1, 2))[:, None] + (templates * weight).sum(axis=(1, 2))[None]
        return Outlines(both / np.maximum(sums[..., None] - both, 1e-6))

    def shape(self) -> str:
        """The shape that agrees best over all frames."""
        return SHAPES[int(self.score.max(axis=2).mean(axis=0).argmax())]

    def angles(self, shape: str) -> Array:
        """Angle of the shape in each frame in radians [F]."""
        scores = self.score[:, SHAPES.index(shape)]
        best = scores.argmax(axis=1)
        rows = np.arange(len(best))
        before, at, after = (scores[rows, (best + step) % _ANGLES] for step in (-1, 0, 1))
        bend = before - 2.0 * at + after
        between = np.where(bend < -1e-9, 0.5 * (before - after) / np.minimum(bend, -1e-9), 0.0)
        return np.asarray((best + between) * 2.0 * np.pi / _ANGLES)

    @staticmethod
    def radius(shape: str, area: Array) -> Array:
        """Nominal radius of a shape of that area."""
        return np.asarray(np.sqrt(area / _templates()[1][SHAPES.index(shape)]))


def turned(angles: Array, frames: Array, shape: str, count: int) -> float:
    """Radians that a shape turned over a clip of ``count`` frames, from its angles in some ``frames`` of it.

    0 where nobody could see it. Only steps from one frame to the next count: in a longer gap it may have turned by more
    than the shape can tell.
    """
    next_to = np.diff(frames) == 1
    if shape not in _PERIODS or not next_to.any():
        return 0.0
    period = 2.0 * np.pi / _PERIODS[shape]
    steps = (np.diff(angles)[next_to] + period / 2) % period - period / 2
    return abs(float(steps.mean())) * (count - 1)


@functools.cache
def _templates() -> tuple[Array, Array]:
    """Polar masks [S, A, R] of the shapes, and the area of each for a radius of 1."""
    masks, areas = [], []
    at = (torch.arange(192) + 0.5) / 192 * 3.2 - 1.6
    for number in range(len(SHAPES)):
        kind, one = torch.tensor([number]), torch.ones(1, 1, 1, 1)
        mask = (distance_to(kind, at.view(1, 1, 1, -1), at.view(1, 1, -1, 1), one, 0.0 * one) < 0).numpy()[0]
        area = mask.sum(axis=(1, 2)).astype(np.float32)
        rows, columns = (mask.sum(axis=axis)[0] @ np.arange(192) / area for axis in (2, 1))
        masks.append(_polar(mask.astype(np.float32), columns, rows, area)[0])
        areas.append(float(area[0]) * (3.2 / 192) ** 2)
    return np.stack(masks), np.array(areas)


def _polar(mask: Array, x: Array, y: Array, area: Array) -> Array:
    """Bilinear values of masks [F, H, W] at angles and radii about a centre [F, A, R]."""
    angle = 2.0 * np.pi * np.arange(_ANGLES) / _ANGLES
    radius = _REACH * np.sqrt(np.maximum(area, 1.0) / np.pi)[:, None] * (np.arange(_RADII) + 0.5) / _RADII  # [F, R]
    at_x = x[:, None, None] + np.cos(angle)[:, None] * radius[:, None, :]
    at_y = y[:, None, None] + np.sin(angle)[:, None] * radius[:, None, :]
    height, width = mask.shape[1:]
    left, top = np.floor(at_x).astype(np.int64), np.floor(at_y).astype(np.int64)
    part_x, part_y = at_x - left, at_y - top
    frame = np.arange(len(mask))[:, None, None]
    total = np.zeros(at_x.shape)
    for dy, wy in ((0, 1.0 - part_y), (1, part_y)):
        for dx, wx in ((0, 1.0 - part_x), (1, part_x)):
            column, row = left + dx, top + dy
            within = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            value = mask[frame, row.clip(0, height - 1), column.clip(0, width - 1)]
            total += wy * wx * np.where(within, value, 0.0)
    return total
