"""Draws batches of clips on any device: coloured shapes that move over a softly graded background.

Planning (what is where, a few numbers per object, on the CPU) is apart from drawing (all pixels at once, on the GPU).
Everything follows from the seed, so a clip never needs storing: its seed is enough.

All four shapes are one formula. Fold the angle about the centre into one sector of an n-gon or n-pointed star; what
is left is the signed distance to a single straight edge. The zero level is exact, which is what antialiasing needs.

Lengths are fractions of the frame's side, times run from 0 to 1. Shapes: B clips, F frames, H height, W width.
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scripts.judge_tiny.captions import caption_of, training_scenes
from scripts.judge_tiny.judge import BACKGROUNDS, COLORS, SHAPES, Scene

# For circle, square, triangle, star: corners, outer radius for a nominal radius of 1, inner over outer radius.
_CORNERS = (0.0, 4.0, 3.0, 5.0)
_OUTER = (1.0, 1.22, 1.40, 1.38)
_INNER = (1.0, 0.70710678, 0.5, 0.45)
# Angle of the first corner: the square stands on its side, triangle and star point upwards.
_UPRIGHT = (0.0, 0.25 * torch.pi, -0.5 * torch.pi, -0.5 * torch.pi)

_MARGIN = 0.02
_GRADIENT = 13.0  # greatest shift of an 8-bit background value at the frame's edge
# Motions that leave each of two objects in its own half: side by side, and one above the other.
_SIDE_BY_SIDE = ("up", "down", "still", "grows", "rotates", "bounces")
_STACKED = ("left", "right", "still", "grows", "rotates")

PAIR_SHARE = 0.15


@dataclass(frozen=True)
class Plan:
    """What ``draw`` needs to know. ``objects`` [B, 2, 13] holds the columns of ``_object``, ``pairs`` [P] the rows
    with a second object, ``background`` [B, 5] an RGB colour and its change along x and y (8-bit units)."""

    scenes: list[tuple[Scene, ...]]
    captions: list[str]
    objects: Tensor
    background: Tensor
    pairs: Tensor

    def __len__(self) -> int:
        return len(self.captions)

    def rows(self, start: int, stop: int) -> "Plan":
        """The clips from ``start`` up to ``stop``."""
        pairs = self.pairs[(self.pairs >= start) & (self.pairs < stop)] - start
        part = slice(start, stop)
        return Plan(self.scenes[part], self.captions[part], self.objects[part], self.background[part], pairs)


def plan_clips(count: int, seed: int, *, pair_share: float = PAIR_SHARE) -> Plan:
    """Scenes, captions and geometry of ``count`` training clips; held-out scenes never occur."""
    rng = random.Random(seed)
    catalogue = _catalogue()
    return _plan([catalogue.choose(rng, pair_share) for _ in range(count)], rng)


def plan_scenes(scenes: Sequence[Scene], seed: int) -> Plan:
    """Clips of given scenes, one object each, with random geometry."""
    return _plan([((scene,), "") for scene in scenes], random.Random(seed))


def draw(plan: Plan, frames: int, height: int, width: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Draw a plan.

    Returns:
        clips [B, 3, F, H, W] in [-1, 1], and how much of each pixel an object covers [B, 1, F, H, W] in [0, 1].
    """
    objects, background = plan.objects.to(device), plan.background.to(device)
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    grade = background[:, 3, None, None] * (x - 0.5) + background[:, 4, None, None] * (y[:, None] - 0.5)  # [B, H, W]
    ground = background[:, :3, None, None] + grade[:, None]
    clip = ground[:, :, None].expand(-1, -1, frames, -1, -1).clone()

    cover = _cover(objects[:, 0], frames, x, y)[:, None]
    clip.lerp_(objects[:, 0, 1:4, None, None, None], cover)
    if len(plan.pairs):
        rows = plan.pairs.to(device)
        second = objects[rows, 1]
        cover2 = _cover(second, frames, x, y)[:, None]
        clip[rows] = clip[rows].lerp_(second[:, 1:4, None, None, None], cover2)
        cover[rows] = torch.maximum(cover[rows], cover2)
    return clip.div_(127.5).sub_(1.0), cover


def draw_crowd(
    plan: Plan, others: Sequence[Plan], frames: int, height: int, width: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Draw a plan with the first object of each other plan, of as many clips, on top. Returns what ``draw`` does."""
    clip, cover = draw(plan, frames, height, width, device)
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    for other in others:
        objects = other.objects[:, 0].to(device)
        more = _cover(objects, frames, x, y)[:, None]
        clip.lerp_((objects[:, 1:4] / 127.5 - 1.0)[..., None, None, None], more)
        cover = torch.maximum(cover, more)
    return clip, cover


def to_uint8(clips: Tensor) -> Tensor:
    """[B, 3, F, H, W] in [-1, 1] -> [B, F, H, W, 3] uint8."""
    return ((clips.float() + 1.0) * 127.5).round().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)


def _cover(objects: Tensor, frames: int, x: Tensor, y: Tensor) -> Tensor:
    """Coverage [B, F, H, W] by one object per clip, edges softened over one pixel."""
    t = torch.linspace(0.0, 1.0, frames, device=x.device)
    kind = objects[:, 0].long()
    x0, y0, x1, y1, r0, r1, tilt, turn, bounce = (objects[:, 4 + i, None] for i in range(9))
    fall = (2.0 * t + 0.5) % 1.0
    centre_x = x0 + (x1 - x0) * t  # [B, F]
    centre_y = y0 + (y1 - y0) * t - bounce * 4.0 * fall * (1.0 - fall)
    radius = r0 + (r1 - r0) * t
    dx = (x - centre_x[..., None])[:, :, None, :]  # [B, F, 1, W]
    dy = (y - centre_y[..., None])[:, :, :, None]  # [B, F, H, 1]
    distance = _signed_distance(kind, dx, dy, radius[:, :, None, None], (tilt + turn * t)[:, :, None, None])
    return (0.5 - distance * min(len(x), len(y))).clamp_(0.0, 1.0)


def _signed_distance(kind: Tensor, dx: Tensor, dy: Tensor, radius: Tensor, angle: Tensor) -> Tensor:
    """Distance to the outline, negative inside, exact near it [B, F, H, W]."""

    def of_kind(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=dx.device)[kind][:, None, None, None]

    rho = torch.sqrt(dx * dx + dy * dy)
    outer = radius * of_kind(_OUTER)
    sector = torch.pi / of_kind(_CORNERS).clamp(min=1.0)  # half the angle between two corners
    theta = torch.atan2(dy, dx) - angle - of_kind(_UPRIGHT)
    folded = ((theta + sector) % (2.0 * sector) - sector).abs_()
    # The edge from the corner (outer, 0) to the inner vertex at the sector's border, and the point in that frame.
    edge_x = outer * (of_kind(_INNER) * torch.cos(sector) - 1.0)
    edge_y = outer * of_kind(_INNER) * torch.sin(sector)
    point_x, point_y = rho * folded.cos() - outer, rho * folded.sin()
    edge = (edge_y * point_x - edge_x * point_y) / torch.sqrt(edge_x**2 + edge_y**2).clamp(min=1e-6)
    return torch.where((kind == 0)[:, None, None, None], rho - outer, edge)


class _Catalogue:
    """The training scenes, and those of each background that can share a frame."""

    def __init__(self) -> None:
        self.scenes = training_scenes()
        self.halves = {
            (background, motions): [s for s in self.scenes if s.background == background and s.motion in motions]
            for background in BACKGROUNDS
            for motions in (_SIDE_BY_SIDE, _STACKED)
        }

    def choose(self, rng: random.Random, pair_share: float) -> tuple[tuple[Scene, ...], str]:
        """One scene, or two with the way the frame is split between them."""
        first = rng.choice(self.scenes)
        if rng.random() >= pair_share:
            return (first,), ""
        splits = [motions for motions in (_SIDE_BY_SIDE, _STACKED) if first.motion in motions]
        motions = rng.choice(splits)
        second = rng.choice(self.halves[first.background, motions])
        while second.color == first.color:
            second = rng.choice(self.halves[first.background, motions])
        return (first, second), "side" if motions is _SIDE_BY_SIDE else "stack"


@functools.cache
def _catalogue() -> _Catalogue:
    return _Catalogue()


def _plan(chosen: list[tuple[tuple[Scene, ...], str]], rng: random.Random) -> Plan:
    objects = torch.zeros(len(chosen), 2, 13)
    background = torch.zeros(len(chosen), 5)
    for row, (scenes, split) in enumerate(chosen):
        for column, scene in enumerate(scenes):
            objects[row, column] = torch.tensor(_object(scene, _cell(split, column), bool(split), rng))
        base = BACKGROUNDS[scenes[0].background]
        slope = [rng.uniform(-1.0, 1.0) * _GRADIENT for _ in range(2)]
        background[row] = torch.tensor([*(value + rng.uniform(-5, 5) for value in base), *slope])
    pairs = torch.tensor([row for row, (scenes, _) in enumerate(chosen) if len(scenes) == 2], dtype=torch.long)
    captions = [caption_of(scenes, rng) for scenes, _ in chosen]
    return Plan([scenes for scenes, _ in chosen], captions, objects, background, pairs)


def _cell(split: str, column: int) -> tuple[float, float, float, float]:
    """Left, top, width, height of the part of the frame that an object has for itself."""
    if split == "side":
        return 0.5 * column, 0.0, 0.5, 1.0
    if split == "stack":
        return 0.0, 0.5 * column, 1.0, 0.5
    return 0.0, 0.0, 1.0, 1.0


def _object(scene: Scene, cell: tuple[float, float, float, float], small: bool, rng: random.Random) -> list[float]:
    """Kind, RGB, start x y, end x y, start and end radius, tilt, turn, height of the bounce: 13 numbers."""
    kind = SHAPES.index(scene.shape)
    r0 = r1 = rng.uniform(0.095, 0.125) if small else rng.uniform(0.13, 0.17)
    if scene.motion == "grows":
        r0 = rng.uniform(0.050, 0.060) if small else rng.uniform(0.070, 0.085)
        r1 = r0 * rng.uniform(2.1, 2.4) if small else r0 * rng.uniform(2.3, 2.6)
    reach = r1 * _OUTER[kind]
    left, top, width, height = cell
    travel = rng.uniform(0.38, 0.46)
    moves = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.get(scene.motion, (0, 0))
    bounce = travel if scene.motion == "bounces" else 0.0
    x0, x1 = _span(left, width, reach, moves[0] * travel, 0.0, rng)
    y0, y1 = _span(top, height, reach, moves[1] * travel, bounce, rng)
    # One sense of rotation and nearly one length of a turn: the caption does not tell them apart, so neither do the
    # clips, and a model that cannot know the angle of a frame would draw the mean of all.
    turn = rng.uniform(2.4, 2.7) if scene.motion == "rotates" else 0.0
    color = [value + rng.uniform(-5, 5) for value in COLORS[scene.color]]
    return [float(kind), *color, x0, y0, x1, y1, r0, r1, rng.uniform(-0.1, 0.1), turn, bounce]


def _span(
    start: float, length: float, reach: float, travel: float, headroom: float, rng: random.Random
) -> tuple[float, float]:
    """First and last position on one axis, so that an object of radius ``reach`` stays inside all the while."""
    low = start + reach + _MARGIN + headroom + max(0.0, -travel)
    high = start + length - reach - _MARGIN - max(0.0, travel)
    position = rng.uniform(low, high) if low < high else 0.5 * (low + high)
    return position, position + travel
