"""Where and how large everything is: numbers for each clip, drawn on the CPU from a seed.

Lengths are fractions of the frame's shorter side, times run from 0 to 1. Objects that do not cross stand in a row or
in a column, in the order in which the caption names them, and keep clear of each other; what does not fit is drawn by
lot again. So a caption tells which object stands where: a model that has to choose does so at each place on its own,
and may draw one object twice, or both in one colour. For the same reason each object keeps to the middle half of the
room that it has.

Shapes: B clips, N objects (3, those that are missing have no radius).
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scripts.tiny_world.captions import caption_of
from scripts.tiny_world.scenes import KINDS, random_scene
from scripts.tiny_world.words import BACKGROUNDS, COLORS, DIRECTIONS, PATTERNS, SHAPES, Scene, Thing

MOST_OBJECTS = 3
OBJECT_NUMBERS = 15  # kind, RGB, start x y, end x y, start and end radius, tilt, turn, height of a bounce, depth, there
GROUND_NUMBERS = 12  # pattern, RGB, contrast, angle, period, softness, drift x y, phase x y
TEXTURE = 24  # cells of a clip's random texture a side

# For each shape: greatest distance of its outline from the centre, for a radius of 1.
OUTER = {"circle": 1.0, "square": 1.22, "triangle": 1.40, "star": 1.38, "heart": 1.265, "ring": 1.08}
_MARGIN = 0.025
_HELD_OUT = (112, 64, 32, 48)  # scenes of each kind
_RADIUS = {"small": (0.070, 0.085), "medium": (0.115, 0.145), "large": (0.185, 0.220)}
_CROWDED = {"small": (0.065, 0.080), "medium": (0.105, 0.120), "large": (0.170, 0.190)}  # where there are several
_TRAVEL = {"slow": (0.17, 0.21), "medium": (0.28, 0.36), "fast": (0.46, 0.56)}
_TURN = {"slow": (0.9, 1.2), "medium": (1.8, 2.4), "fast": (3.3, 4.0)}
_CONTRAST = {"plain": (0, 0), "gradient": (20, 30), "striped": (12, 20), "checkered": (12, 20), "speckled": (14, 22)}


class NoRoomError(Exception):
    """The objects of a scene do not fit beside each other."""


@dataclass(frozen=True)
class Plan:
    """What ``draw`` needs to know: ``objects`` [B, N, 15], from back to front, ``ground`` [B, 12] and ``texture``
    [B, 2, 24, 24] in [0, 1]; width and height of the frame in units of its shorter side."""

    scenes: list[Scene]
    captions: list[str]
    objects: Tensor
    ground: Tensor
    texture: Tensor
    extent: tuple[float, float]

    def __len__(self) -> int:
        return len(self.scenes)

    def rows(self, start: int, stop: int) -> Plan:
        """The clips from ``start`` up to ``stop``."""
        part = slice(start, stop)
        tensors = (self.objects[part], self.ground[part], self.texture[part])
        return Plan(self.scenes[part], self.captions[part], *tensors, self.extent)


def extent_of(height: int, width: int) -> tuple[float, float]:
    """Width and height in units of the shorter side."""
    return width / min(height, width), height / min(height, width)


def plan_clips(count: int, seed: int, extent: tuple[float, float] = (1.0, 1.0)) -> Plan:
    """Scenes, captions and geometry of ``count`` training clips; held-out combinations never occur."""
    rng = random.Random(seed)
    chosen = []
    while len(chosen) < count:
        scene = random_scene(rng)
        try:
            chosen.append((scene, _placed(scene, extent, rng)))
        except NoRoomError:
            continue
    captions = [caption_of(scene, rng) for scene, _ in chosen]
    return _plan([scene for scene, _ in chosen], [objects for _, objects in chosen], captions, extent, rng)


def plan_scenes(scenes: Sequence[Scene], seed: int, extent: tuple[float, float] = (1.0, 1.0)) -> Plan:
    """Clips of given scenes with random geometry; captions stay empty.

    Raises:
        NoRoomError: a scene does not fit.
    """
    rng = random.Random(seed)
    objects = [_placed(scene, extent, rng) for scene in scenes]
    return _plan(list(scenes), objects, [""] * len(scenes), extent, rng)


def fits(scene: Scene, extent: tuple[float, float] = (1.0, 1.0)) -> bool:
    """Whether there is room for a scene, and not only with luck."""
    try:
        _placed(scene, extent, random.Random(0), tries=4)
    except NoRoomError:
        return False
    return True


@functools.cache
def held_out_scenes() -> tuple[Scene, ...]:
    """The 256 scenes of the evaluation, each once, in a fixed order: 112 of one object, 64 of two, 32 of three, 48
    of two that cross."""
    rng = random.Random(20261)
    scenes: dict[Scene, None] = {}
    for kind, count in zip(KINDS, _HELD_OUT, strict=True):
        wanted = len(scenes) + count
        while len(scenes) < wanted:
            scene = random_scene(rng, kind=kind, held_out=True)
            if fits(scene):
                scenes[scene] = None
    return tuple(scenes)


def spread(scenes: Sequence[Scene], count: int) -> list[Scene]:
    """So many of them, from begin to end."""
    return [scenes[index * len(scenes) // count] for index in range(count)]


def _plan(
    scenes: list[Scene],
    objects: list[list[list[float]]],
    captions: list[str],
    extent: tuple[float, float],
    rng: random.Random,
) -> Plan:
    placed = torch.zeros(len(scenes), MOST_OBJECTS, OBJECT_NUMBERS)
    for row, things in enumerate(objects):
        placed[row, : len(things)] = torch.tensor(things)
    ground = torch.tensor([_ground(scene, rng) for scene in scenes]).view(len(scenes), GROUND_NUMBERS)
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    texture = torch.rand(len(scenes), 2, TEXTURE, TEXTURE, generator=generator)
    return Plan(scenes, captions, placed, ground, texture, extent)


def _ground(scene: Scene, rng: random.Random) -> list[float]:
    tint = rng.uniform(-6, 6)
    color = [value + tint + rng.uniform(-3, 3) for value in BACKGROUNDS[scene.background]]
    contrast = rng.uniform(*_CONTRAST.get(scene.pattern, (16, 26))) * rng.choice((-1, 1))
    if scene.pattern == "striped":  # along a stripe no drift is seen, and of a slanting one not where to
        along_x = {"left": 0.0, "right": 0.0, "up": math.pi / 2, "down": math.pi / 2}
        angle = along_x.get(scene.drift, rng.choice((0.0, 0.25, 0.5, 0.75)) * math.pi)
    else:
        angle = rng.uniform(0, 2 * math.pi)
    period = rng.uniform(0.14, 0.26) if scene.pattern in ("striped", "checkered") else rng.uniform(0.085, 0.12)
    step = DIRECTIONS.get(scene.drift, (0, 0))
    speed = rng.uniform(0.22, 0.40)
    softness = rng.uniform(0.006, 0.02)
    phase = [rng.uniform(0, TEXTURE), rng.uniform(0, TEXTURE)]
    drift = [step[0] * speed, step[1] * speed]
    return [float(PATTERNS.index(scene.pattern)), *color, contrast, angle, period, softness, *drift, *phase]


@dataclass(frozen=True)
class _Size:
    """Radii at start and end, path, height of the bounce and room that an object takes."""

    r0: float
    r1: float
    travel: tuple[float, float]
    bounce: float
    reach: float

    @property
    def room(self) -> tuple[float, float]:
        x, y = (abs(way) + 2 * self.reach + 2 * _MARGIN for way in self.travel)
        return x, y + self.bounce


def _placed(scene: Scene, extent: tuple[float, float], rng: random.Random, tries: int = 100) -> list[list[float]]:
    """Numbers of each object, from back to front."""
    for _ in range(tries):
        if scene.crossing:
            numbers = _crossing(scene, extent, rng)
        else:
            sizes = [_size(thing, len(scene.things) > 1, rng) for thing in scene.things]
            numbers = _in_line(scene, sizes, extent, rng)
        if numbers is not None:
            return numbers
    raise NoRoomError(str(scene))


def _size(thing: Thing, crowded: bool, rng: random.Random) -> _Size:
    r0 = r1 = rng.uniform(*(_CROWDED if crowded else _RADIUS)[thing.size])
    if thing.motion in ("grows", "shrinks"):
        r0 = rng.uniform(0.050, 0.060)
        r1 = r0 * (rng.uniform(2.1, 2.4) if crowded else rng.uniform(2.4, 3.0))
        r0, r1 = (r0, r1) if thing.motion == "grows" else (r1, r0)
    way = rng.uniform(*_TRAVEL[thing.speed])
    step = DIRECTIONS.get(thing.motion, (0, 0))
    bounce = rng.uniform(0.18, 0.24) if thing.motion == "bounces" else 0.0
    return _Size(r0, r1, (step[0] * way, step[1] * way), bounce, max(r0, r1) * OUTER[thing.shape])


def _in_line(
    scene: Scene, sizes: list[_Size], extent: tuple[float, float], rng: random.Random
) -> list[list[float]] | None:
    """From left to right or from top to bottom, as the caption names them; None if they don't fit.

    What moves sideways takes little height, so a column suits it; everything else stands in a row if that fits.
    """
    sideways = sum(abs(size.travel[0]) for size in sizes)
    upright = sum(abs(size.travel[1]) + size.bounce for size in sizes)
    axes = (1, 0) if sideways > upright else (0, 1)
    axis = next((axis for axis in axes if _slack(sizes, extent, axis) >= 0.0), None)
    if axis is None:
        return None
    numbers, start, more = [], 0.0, _slack(sizes, extent, axis) / len(sizes)
    for thing, size in zip(scene.things, sizes, strict=True):
        length = size.room[axis] + more
        cell = [(0.0, extent[0]), (0.0, extent[1])]
        cell[axis] = (start, start + length)
        start += length
        position = [_first(cell[a], size, a, rng) for a in range(2)]
        numbers.append(_numbers(thing, size, position, rng))
    return numbers


def _slack(sizes: list[_Size], extent: tuple[float, float], axis: int) -> float:
    """What is left of the frame's length along the line; negative if they don't fit."""
    if any(size.room[1 - axis] > extent[1 - axis] for size in sizes):
        return -math.inf
    return extent[axis] - sum(size.room[axis] for size in sizes)


def _first(cell: tuple[float, float], size: _Size, axis: int, rng: random.Random) -> float:
    """First position on one axis, so that the object stays in its cell all the while."""
    low = cell[0] + size.reach + _MARGIN + max(0.0, -size.travel[axis]) + (size.bounce if axis else 0.0)
    high = cell[1] - size.reach - _MARGIN - max(0.0, size.travel[axis])
    return _near_middle(low, max(low, high), rng)


def _near_middle(low: float, high: float, rng: random.Random) -> float:
    """A number from the middle half of ``low`` to ``high``, most often near the middle."""
    quarter = (high - low) / 4
    return rng.triangular(low + quarter, high - quarter)


def _crossing(scene: Scene, extent: tuple[float, float], rng: random.Random) -> list[list[float]] | None:
    """The first object's way leads across the second, and clear of it at both ends."""
    mover, other = scene.things
    small, large = _size(mover, True, rng), _size(other, True, rng)
    axis = 0 if mover.motion in ("left", "right") else 1
    way = extent[axis] - 2 * (small.reach + _MARGIN) - rng.uniform(0.0, 0.06)
    way = min(way, 0.66)
    if way < 2 * (small.reach + large.reach) + 0.02:
        return None
    step = DIRECTIONS[mover.motion]
    small = _Size(small.r0, small.r1, (step[0] * way, step[1] * way), 0.0, small.reach)
    room = [max(0.0, (extent[a] - (way + 2 * small.reach + 2 * _MARGIN if a == axis else 0.5)) / 2) for a in range(2)]
    centre = [extent[a] / 2 + _near_middle(-room[a], room[a], rng) for a in range(2)]
    aside = rng.uniform(-0.35, 0.35) * large.r0
    first = [centre[a] - small.travel[a] / 2 + (aside if a != axis else 0.0) for a in range(2)]
    pair = [_numbers(mover, small, first, rng), _numbers(other, large, centre, rng)]
    return pair if scene.crossing == "behind" else pair[::-1]


def _numbers(thing: Thing, size: _Size, position: Sequence[float], rng: random.Random) -> list[float]:
    # One sense of rotation: the caption does not tell them apart, so neither do the clips, and a model that cannot
    # know the angle of a frame would draw the mean of all.
    turn = rng.uniform(*_TURN[thing.speed]) if thing.motion == "rotates" else 0.0
    tint = rng.uniform(-5, 5)
    color = [value + tint for value in COLORS[thing.color]]
    end = [position[a] + size.travel[a] for a in range(2)]
    numbers = [float(SHAPES.index(thing.shape)), *color, *position, *end, size.r0, size.r1]
    return [*numbers, rng.uniform(-0.12, 0.12), turn, size.bounce, rng.uniform(0.8, 1.2), 1.0]
