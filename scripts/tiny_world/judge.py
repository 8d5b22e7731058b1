"""An analytic judge: reads from a clip its background, and of each object colour, shape, motion, size and speed.

The world's colours, shapes and motions are few, so whether a model followed a caption can be *measured*, without any
learned metric:

- colours: the cost of a pixel under a colour is its distance from the colour's shades, and grows with the shading that
  it takes. A pixel belongs to the object colour that explains it better than the background does;
- objects: one for each colour that covers more than thin rims, and another where a part isn't connected with it;
- shape: the mask about its centre, in polar coordinates, against that of each drawn shape at all angles;
- motion: path of the centre, change of area, and turn of the best angle, in frames where nothing else is near;
- background: mean tone of the pixels without objects; its pattern by variance, plane, direction, rank and frequency;
  its drift by least squares over brightness gradients.

The judge sees nothing of the caption. Shapes: F frames, H height, W width, A angles, R radii, N objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.tiny_world.outline import Outlines, turned
from scripts.tiny_world.texture import drift_of, pattern_of
from scripts.tiny_world.words import BACKGROUNDS, COLORS, DIRECTIONS, DRIFTING, Scene, Thing

Array = NDArray[Any]

_SHADES = (0.60, 1.12)  # of an object's colour
_SHADOWS = (1.0, 0.86, 0.72)  # of a background's
_TONES = 46.0  # by which a background's pattern is lighter or darker, at most
_SHADING_COST = 0.16
_MOST_COST = 70.0
_LEAST_AREA = 0.0025  # of an object, of the frame, without its rim
_EXTRA = 0.005  # of the frame: area apart from an object, in most frames, from which its colour is there twice
_LEAST_BOUNCE, _LEAST_TRAVEL, _LEAST_GROWTH, _LEAST_TURN = 0.10, 0.11, 1.7, 0.5
_SIZES = (0.096, 0.158)  # radius, of the shorter side
_SPEEDS = (0.245, 0.41)  # way, of the shorter side
_TURNS = (1.5, 2.85)  # radians


@dataclass(frozen=True)
class Verdict:
    """What the judge saw: objects by colour, which of them passed behind another, and whether a colour was there
    twice."""

    things: dict[str, Thing]
    background: str
    pattern: str
    drift: str
    behind: str = ""
    twice: bool = False

    def hits(self, scene: Scene) -> dict[str, list[bool]]:
        """Category -> right or wrong, for each object where it is of objects; nothing where it does not apply."""
        pairs = [(thing, self.things.get(thing.color)) for thing in scene.things]
        found = {
            "background": [self.background == scene.background],
            "pattern": [self.pattern == scene.pattern],
            "drift": [self.drift == scene.drift] if scene.pattern in DRIFTING else [],
            "color": [set(self.things) == {thing.color for thing in scene.things} and not self.twice],
            "shape": [seen is not None and seen.shape == thing.shape for thing, seen in pairs],
            "motion": [seen is not None and seen.motion == thing.motion for thing, seen in pairs],
            "size": [seen is not None and seen.size == t.size for t, seen in pairs if _has_size(t)],
            "speed": [seen is not None and seen.speed == t.speed for t, seen in pairs if _has_speed(t)],
            "order": [self.behind == self._should_be_behind(scene)] if scene.crossing else [],
        }
        whole = [*found["color"], *found["shape"], *found["motion"]]
        found["two right"] = [all(whole)] if len(scene.things) == 2 else []
        found["three right"] = [all(whole)] if len(scene.things) == 3 else []
        found["all"] = [all(whole) and all(found["background"]) and all(found["order"])]
        return found

    @staticmethod
    def _should_be_behind(scene: Scene) -> str:
        return scene.things[0 if scene.crossing == "behind" else 1].color


def _has_size(thing: Thing) -> bool:
    return thing.size != "medium" and thing.motion not in ("grows", "shrinks")


def _has_speed(thing: Thing) -> bool:
    return thing.speed != "medium"


def judge(frames: Array) -> Verdict:
    """Judge one clip.

    Args:
        frames: uint8 RGB [F, H, W, 3], at least 5 frames of 64x64 pixels.

    Raises:
        ValueError: for any other shape or type.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 [frames, height, width, 3], not {frames.dtype} {frames.shape}")
    if frames.shape[0] < 5 or min(frames.shape[1:3]) < 64:
        raise ValueError(f"a clip needs at least 5 frames of 64x64 pixels, not {frames.shape[:3]}")
    pixels = frames.astype(np.float32)
    background = _background(pixels[:, ::3, ::3])
    ground = _ground_cost(pixels, background)
    labels = _labels(pixels, ground, background)  # [F, H, W]
    side = min(frames.shape[1:3])
    tracks = {}
    for index, color in enumerate(COLORS):
        track = _Track.of(labels == index, side)
        if track is not None:
            tracks[color] = track
    tone = pixels.mean(axis=-1) - float(np.mean(BACKGROUNDS[background]))
    free = (ground < 25.0) & ~_with_shadows(labels >= 0, side)
    pattern = pattern_of(tone, free)
    drift = drift_of(tone, free, pattern) if pattern in DRIFTING else "still"
    things = {color: _thing(color, track, tracks) for color, track in tracks.items()}
    twice = any(track.twice for track in tracks.values())
    return Verdict(things, background, pattern, drift, _behind(tracks, things), twice)


def _background(pixels: Array) -> str:
    """The background colour that explains most pixels."""
    costs = {name: np.minimum(_ground_cost(pixels, name), 40.0).mean() for name in BACKGROUNDS}
    return min(costs, key=lambda name: float(costs[name]))


def _ground_cost(pixels: Array, name: str) -> Array:
    """How badly a background colour with its tones and shadows explains each pixel [F, H, W]."""
    color = np.array(BACKGROUNDS[name], dtype=np.float32)
    best = None
    for shadow in _SHADOWS:
        away = pixels - shadow * color
        tone = np.clip(away.mean(axis=-1), -_TONES, _TONES)
        cost = np.sqrt(np.square(away - tone[..., None]).sum(axis=-1)) + _SHADING_COST * np.abs(tone)
        cost += (1.0 - shadow) * 12.0
        best = cost if best is None else np.minimum(best, cost)
    return np.asarray(best)


def _labels(pixels: Array, ground: Array, background: str) -> Array:
    """Number of the object colour that each pixel has, -1 for the background [F, H, W]."""
    labels = np.full(ground.shape, -1, dtype=np.int8)
    best = np.minimum(ground, _MOST_COST)
    for index, (name, rgb) in enumerate(COLORS.items()):
        if name == background:
            continue
        color = np.array(rgb, dtype=np.float32)
        shade = np.clip(pixels @ color / (color @ color), *_SHADES)
        cost = np.sqrt(np.square(pixels - shade[..., None] * color).sum(axis=-1))
        cost += _SHADING_COST * np.abs(shade - 0.92) * np.linalg.norm(color)
        better = cost < best
        labels[better], best = index, np.where(better, cost, best)
    return labels


def _eroded(mask: Array) -> Array:
    """Without the pixels that have a neighbour outside [F, H, W]."""
    inner = mask.copy()
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    inner[:, :, 1:] &= mask[:, :, :-1]
    inner[:, :, :-1] &= mask[:, :, 1:]
    return inner


def _with_shadows(mask: Array, side: int) -> Array:
    """Objects and their surroundings, in squares of a 32nd of the frame [F, H, W]."""
    cell = max(1, side // 32)
    frames, height, width = mask.shape
    padded = np.pad(mask, ((0, 0), (0, -height % cell), (0, -width % cell)))
    cells = padded.reshape(frames, padded.shape[1] // cell, cell, padded.shape[2] // cell, cell).any(axis=(2, 4))
    for _ in range(2):
        grown = np.pad(cells, ((0, 0), (1, 1), (1, 1)))
        cells = grown[:, :-2] | grown[:, 1:-1] | grown[:, 2:]
        cells = cells[:, :, :-2] | cells[:, :, 1:-1] | cells[:, :, 2:]
    whole = cells.repeat(cell, axis=1).repeat(cell, axis=2)
    return np.asarray(whole[:, :height, :width])


@dataclass(frozen=True)
class _Track:
    """Mask [F, H, W], centre [F] and area [F] in pixels of one object, the frames in which it is seen, and whether its
    colour seems to be there twice."""

    mask: Array
    x: Array
    y: Array
    area: Array
    seen: Array
    twice: bool
    side: int

    @staticmethod
    def of(mask: Array, side: int) -> _Track | None:
        """None where the colour covers no more than rims and specks, or lies far from its own centre."""
        core = _eroded(_eroded(mask)) if side > 128 else _eroded(mask)
        x, y, area = _centre(core)
        least = _LEAST_AREA * 0.5 * side * side
        if np.median(area) < least:
            return None
        x, y = _steady(x, y, core, area)
        rows = np.arange(mask.shape[1], dtype=np.float32)[None, :, None]
        columns = np.arange(mask.shape[2], dtype=np.float32)[None, None, :]
        whole = mask.sum(axis=(1, 2))
        reach = 6.0 * np.minimum(area * 1.5, whole) / np.pi + (0.06 * side) ** 2
        near = mask & ((columns - x[:, None, None]) ** 2 + (rows - y[:, None, None]) ** 2 < reach[:, None, None])
        x, y, area = _centre(near)
        seen = area > 0.25 * least
        if not seen.any():
            return None
        apart = core & ~_connected(mask, _nearest(core, x, y))
        twice = float(np.median(apart.sum(axis=(1, 2)))) > _EXTRA * side * side
        return _Track(near, x, y, area, seen, twice, side)

    def clear_of(self, others: list[_Track]) -> Array:
        """The frames in which it is seen and nothing else is near [F]."""
        clear = self.seen.copy()
        for other in others:
            reach = 1.2 * (np.sqrt(self.area / np.pi) + np.sqrt(np.median(other.area) / np.pi)) + 2.0
            clear &= (np.hypot(self.x - other.x, self.y - other.y) > reach) | ~other.seen
        return clear if clear.sum() >= 4 else self.seen


def _steady(x: Array, y: Array, core: Array, area: Array) -> tuple[Array, Array]:
    """Centres of the larger part, where specks of the same colour lie far from it."""
    reach = 6.0 * area / np.pi + 9.0
    rows = np.arange(core.shape[1], dtype=np.float32)[None, :, None]
    columns = np.arange(core.shape[2], dtype=np.float32)[None, None, :]
    near = core & ((columns - x[:, None, None]) ** 2 + (rows - y[:, None, None]) ** 2 < reach[:, None, None])
    again = _centre(near)
    return np.where(again[2] > 0, again[0], x), np.where(again[2] > 0, again[1], y)


def _centre(mask: Array) -> tuple[Array, Array, Array]:
    """x [F], y [F] and area [F] of a bool mask [F, H, W]."""
    columns = mask.sum(axis=1, dtype=np.float32)
    rows = mask.sum(axis=2, dtype=np.float32)
    area = columns.sum(axis=1)
    least = np.maximum(area, 1.0)
    x = columns @ np.arange(mask.shape[2], dtype=np.float32) / least
    y = rows @ np.arange(mask.shape[1], dtype=np.float32) / least
    return x, y, area


def _nearest(mask: Array, x: Array, y: Array) -> Array:
    """Of a bool mask [F, H, W] the pixel nearest to a point, in each frame that has any [F, H, W]."""
    rows = np.square(np.arange(mask.shape[1], dtype=np.float32) - y[:, None])
    columns = np.square(np.arange(mask.shape[2], dtype=np.float32) - x[:, None])
    away = np.where(mask, rows[:, :, None] + columns[:, None, :], np.inf).reshape(len(mask), -1)
    found = np.zeros(away.shape, dtype=bool)
    found[np.arange(len(mask)), away.argmin(axis=1)] = True
    return np.asarray(found.reshape(mask.shape) & mask)


def _connected(mask: Array, seed: Array) -> Array:
    """What of a bool mask is connected with the pixels of ``seed`` by its sides [F, H, W]."""
    found, count = seed, 0
    while (reached := int(found.sum())) > count:
        count, grown = reached, found.copy()
        grown[:, 1:] |= found[:, :-1]
        grown[:, :-1] |= found[:, 1:]
        grown[:, :, 1:] |= found[:, :, :-1]
        grown[:, :, :-1] |= found[:, :, 1:]
        found = grown & mask
    return found


def _thing(color: str, track: _Track, tracks: dict[str, _Track]) -> Thing:
    clear = np.flatnonzero(track.clear_of([other for name, other in tracks.items() if name != color]))
    outlines = Outlines.of(track.mask[clear], track.x[clear], track.y[clear], track.area[clear])
    shape = outlines.shape()
    x, y = track.x[clear] / track.side, track.y[clear] / track.side
    area = track.area[clear]
    turn = turned(outlines.angles(shape), clear, shape, len(track.mask))
    motion = _motion(_smooth(x), _smooth(y), area, turn)
    radius = float(np.median(outlines.radius(shape, area))) / track.side
    size = ("small", "medium", "large")[int(np.searchsorted(_SIZES, radius))]
    way = max(abs(float(x[-1] - x[0])), abs(float(y[-1] - y[0])))
    speed = "medium"
    if motion in DIRECTIONS:
        speed = ("slow", "medium", "fast")[int(np.searchsorted(_SPEEDS, way))]
    elif motion == "rotates":
        speed = ("slow", "medium", "fast")[int(np.searchsorted(_TURNS, turn))]
    return Thing(shape, color, motion, size, speed)


def _motion(x: Array, y: Array, area: Array, turn: float) -> str:
    if _turning_points(y, _LEAST_BOUNCE) >= 2:
        return "bounces"
    dx, dy = float(x[-1] - x[0]), float(y[-1] - y[0])
    if max(abs(dx), abs(dy)) > _LEAST_TRAVEL:
        if abs(dx) > abs(dy):
            return "right" if dx > 0 else "left"
        return "down" if dy > 0 else "up"
    edge = max(1, len(area) // 10)
    growth = float(np.median(area[-edge:]) / max(1.0, np.median(area[:edge])))
    if growth > _LEAST_GROWTH or growth < 1.0 / _LEAST_GROWTH:
        return "grows" if growth > 1.0 else "shrinks"
    return "rotates" if turn > _LEAST_TURN else "still"


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


def _behind(tracks: dict[str, _Track], things: dict[str, Thing]) -> str:
    """Colour of the one of two objects that lost more of its area while they were near; empty where none lost any."""
    if len(tracks) != 2:
        return ""
    lost = {}
    for (color, track), other in zip(tracks.items(), list(tracks.values())[::-1], strict=True):
        reach = np.sqrt(np.percentile(track.area, 80) / np.pi) + np.sqrt(np.percentile(other.area, 80) / np.pi)
        near = np.hypot(track.x - other.x, track.y - other.y) < reach
        lost[color] = float(np.percentile(track.area, 80) - track.area[near].min()) if near.any() else 0.0
    if max(lost.values()) <= 0.0 or not any(thing.motion in DIRECTIONS for thing in things.values()):
        return ""
    return max(lost, key=lambda color: lost[color])
