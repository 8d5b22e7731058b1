"""Draws planned clips on any device: shaded objects with soft shadows before patterned, drifting backgrounds.

Every shape is a signed distance to its outline, exact where it is zero, which is what antialiasing needs. Shadows are
the same distance, shifted and softened. Nothing here is random: a plan gives the same clip on a CPU and, up to
rounding, on a GPU.

Shapes: B clips, F frames, H height, W width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.tiny_world.plan import TEXTURE, Plan
from scripts.tiny_world.words import PATTERNS, SHAPES

_CORNERS = {"square": (4, 1.22, 0.70710678, 0.25), "triangle": (3, 1.40, 0.5, -0.5), "star": (5, 1.38, 0.45, -0.5)}
_SHADOW = 0.34  # how much a shadow darkens
_SHADOW_AT = (0.016, 0.028)
_SHADOW_SOFT = 0.045
_HEART = 1.36  # side of the heart's square for a radius of 1
_HEART_CENTROID = 0.2215  # how far above the square's centre the heart's centroid lies, in the square's sides
_RING = (0.80, 0.28)  # middle and half width of the ring's band for a radius of 1


def draw(plan: Plan, frames: int, height: int, width: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Draw a plan.

    Returns:
        clips [B, 3, F, H, W] in [-1, 1], and how much of each pixel an object covers [B, 1, F, H, W] in [0, 1].
    """
    side = min(height, width)
    y = (torch.arange(height, device=device) + 0.5) / side
    x = (torch.arange(width, device=device) + 0.5) / side
    t = torch.linspace(0.0, 1.0, frames, device=device)
    clip = _background(plan.ground, plan.texture.to(device), plan.extent, t, y, x)
    cover = torch.zeros(len(plan), 1, frames, height, width, device=device)
    for index in range(plan.objects.shape[1]):
        there = plan.objects[:, index, -1] > 0
        if not there.any():
            continue
        rows = torch.nonzero(there)[:, 0].to(device)
        pixels, covered = _with_object(clip[rows], plan.objects[there, index], t, y, x, side)
        clip[rows] = pixels
        cover[rows] = torch.maximum(cover[rows], covered)
    return clip.div_(127.5).sub_(1.0).clamp_(-1.0, 1.0), cover


def to_uint8(clips: Tensor) -> Tensor:
    """[B, 3, F, H, W] in [-1, 1] -> [B, F, H, W, 3] uint8."""
    return ((clips.float() + 1.0) * 127.5).round().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)


def _with_object(clip: Tensor, objects: Tensor, t: Tensor, y: Tensor, x: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """One object with its shadow laid over each clip [B, 3, F, H, W] in 0 to 255, and its coverage [B, 1, F, H, W]."""
    kind, objects = objects[:, 0].long(), objects.to(t.device)  # kinds stay on the CPU: nothing waits for a GPU
    x0, y0, x1, y1, r0, r1, tilt, turn, bounce, depth = (objects[:, 4 + i, None] for i in range(10))
    fall = (2.0 * t + 0.5) % 1.0
    centre_x = x0 + (x1 - x0) * t  # [B, F]
    centre_y = y0 + (y1 - y0) * t - bounce * 4.0 * fall * (1.0 - fall)
    radius = (r0 + (r1 - r0) * t)[..., None, None]
    angle = (tilt + turn * t)[..., None, None]
    dx = (x - centre_x[..., None])[:, :, None, :]  # [B, F, 1, W]
    dy = (y - centre_y[..., None])[:, :, :, None]  # [B, F, H, 1]
    shift_x, shift_y = (depth[..., None, None] * at for at in _SHADOW_AT)
    soft = _SHADOW_SOFT * depth[..., None, None]
    shadow = _smooth(0.5 - distance_to(kind, dx - shift_x, dy - shift_y, radius, angle) / soft)
    clip = clip * (1.0 - _SHADOW * shadow)[:, None]
    distance = distance_to(kind, dx, dy, radius, angle)
    cover = (0.5 - distance * side).clamp_(0.0, 1.0)[:, None]
    # Light from above and from the left, and a rim that is a little darker.
    light = (
        1.0 - 0.11 * ((0.5 * dx + dy) / radius).clamp(-1.0, 1.4) - 0.14 * (1.0 + distance / (0.28 * radius)).clamp(0, 1)
    )
    color = (objects[:, 1:4, None, None, None] * light[:, None]).clamp(max=255.0)
    return torch.lerp(clip, color, cover), cover


def distance_to(kind: Tensor, dx: Tensor, dy: Tensor, radius: Tensor, angle: Tensor) -> Tensor:
    """Distance to the outline of each clip's shape, negative inside [B, F, H, W]; ``kind`` [B] lies on the CPU."""
    result = torch.empty(torch.broadcast_shapes(dx.shape, dy.shape, radius.shape), device=dx.device)
    for number in range(len(SHAPES)):
        rows = torch.nonzero(kind == number)[:, 0].to(dx.device)
        if len(rows):
            result[rows] = _of_shape(SHAPES[number], dx[rows], dy[rows], radius[rows], angle[rows])
    return result


def _of_shape(shape: str, dx: Tensor, dy: Tensor, radius: Tensor, angle: Tensor) -> Tensor:
    if shape == "circle":
        return torch.sqrt(dx * dx + dy * dy) - radius
    if shape == "ring":
        return (torch.sqrt(dx * dx + dy * dy) - _RING[0] * radius).abs() - _RING[1] * radius
    cos, sin = angle.cos(), angle.sin()
    if shape == "heart":
        return _heart(cos * dx + sin * dy, cos * dy - sin * dx, _HEART * radius)
    corners, outer, inner, upright = _CORNERS[shape]
    return _corners(torch.atan2(dy, dx) - angle - upright * torch.pi, dx, dy, radius, corners, outer, inner)


def _corners(theta: Tensor, dx: Tensor, dy: Tensor, radius: Tensor, corners: int, outer: float, inner: float) -> Tensor:
    """A polygon or star: fold the angle about the centre into one sector, of which one straight edge is left."""
    sector = math.pi / corners  # half the angle between two corners
    rho = torch.sqrt(dx * dx + dy * dy)
    folded = ((theta + sector) % (2.0 * sector) - sector).abs_()
    cos, sin = math.cos(sector), math.sin(sector)
    edge_x, edge_y = inner * cos - 1.0, inner * sin
    length = (edge_x**2 + edge_y**2) ** 0.5
    point_x, point_y = rho * folded.cos() - outer * radius, rho * folded.sin()
    return (edge_y * point_x - edge_x * point_y) / length


def _heart(x: Tensor, y: Tensor, side: Tensor) -> Tensor:
    """A square on its corner with a half circle on each of the two upper sides, about its centroid; y grows down."""
    x, y = x.abs(), y - _HEART_CENTROID * side
    diagonal = (x + y.abs()) * 0.70710678 - 0.5 * side
    middle = 0.35355339 * side
    circle = torch.sqrt((x - middle) ** 2 + (y + middle) ** 2) - 0.5 * side
    return torch.minimum(diagonal, circle)


def _background(
    ground: Tensor, texture: Tensor, extent: tuple[float, float], t: Tensor, y: Tensor, x: Tensor
) -> Tensor:
    """Backgrounds [B, 3, F, H, W] in 0 to 255: a colour, darker and lighter by a pattern."""
    kind, ground = ground[:, 0].long(), ground.to(t.device)
    tone = torch.zeros(len(ground), len(t), len(y), len(x), device=t.device)
    for number, pattern in enumerate(PATTERNS):
        rows = torch.nonzero(kind == number)[:, 0].to(t.device)
        if len(rows) and pattern != "plain":
            tone[rows] = _tone(pattern, ground[rows], texture[rows], extent, t, y, x)
    color, contrast = ground[:, 1:4, None, None, None], ground[:, 4, None, None, None]
    return (color + (contrast * tone)[:, None]).clamp_(0.0, 255.0)


def _tone(
    pattern: str, ground: Tensor, texture: Tensor, extent: tuple[float, float], t: Tensor, y: Tensor, x: Tensor
) -> Tensor:
    """How light the pattern is, in [-1, 1] [B, F, H, W]."""
    angle, period, soft = (ground[:, i, None, None, None] for i in (5, 6, 7))
    moved_x = (x - ground[:, 8, None, None] * t[:, None])[:, :, None, :]  # [B, F, 1, W]
    moved_y = (y - ground[:, 9, None, None] * t[:, None])[:, :, :, None]
    if pattern == "gradient":
        away_x, away_y = moved_x - 0.5 * extent[0], moved_y - 0.5 * extent[1]
        return ((away_x * angle.cos() + away_y * angle.sin()) / 0.7).clamp(-1.0, 1.0)
    phase_x, phase_y = ground[:, 10, None, None, None], ground[:, 11, None, None, None]
    if pattern == "striped":
        return _wave(moved_x * angle.cos() + moved_y * angle.sin() + phase_x, period, soft)
    if pattern == "checkered":
        return _wave(moved_x + phase_x, period, soft) * _wave(moved_y + phase_y, period, soft)
    if pattern == "speckled":
        return _dots(texture, moved_x / period + phase_x, moved_y / period + phase_y, period)
    return _clouds(texture, moved_x + phase_x / TEXTURE, moved_y + phase_y / TEXTURE)


def _wave(position: Tensor, period: Tensor, soft: Tensor) -> Tensor:
    """A square wave in [-1, 1] whose flanks are softened."""
    folded = (position / period % 1.0 - 0.5).abs() - 0.25
    return (folded * period / soft).clamp(-1.0, 1.0)


def _dots(texture: Tensor, x: Tensor, y: Tensor, period: Tensor) -> Tensor:
    """A round dot in each cell, of another size and at another place."""
    column, row = x.floor(), y.floor()
    flat = texture.flatten(2)
    index = ((row.long() % TEXTURE) * TEXTURE + column.long() % TEXTURE).flatten(1)  # [B, F H W]
    shape = torch.broadcast_shapes(x.shape, y.shape)
    first, second = (flat[:, i].gather(1, index).view(shape) for i in range(2))
    radius = 0.13 + 0.17 * second
    away_x = x - column - 0.5 - (0.36 - radius) * 2.0 * (first - 0.5)
    away_y = y - row - 0.5 - (0.36 - radius) * (2.0 * ((first * 7.0) % 1.0) - 1.0)
    distance = torch.sqrt(away_x**2 + away_y**2) - radius
    return 2.0 * _smooth(0.5 - distance * period / 0.02) - 0.6


def _clouds(texture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Smooth noise of three sizes."""
    total: Tensor | float = 0.0
    for cells, weight, layer in ((4.0, 1.0, 0), (9.0, 0.5, 1), (19.0, 0.22, 0)):
        total = total + weight * _noise(texture[:, layer], x * cells, y * cells)
    return torch.as_tensor(total).mul(1.5).clamp(-1.0, 1.0)


def _noise(texture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The texture's values in [-1, 1], smooth between its cells, over and over again."""
    padded = F.pad(texture[:, None], (0, 1, 0, 1), mode="circular")
    left, top = x.floor(), y.floor()
    part_x, part_y = _smooth(x - left), _smooth(y - top)
    at = torch.stack(torch.broadcast_tensors((left % TEXTURE) + part_x, (top % TEXTURE) + part_y), dim=-1)
    grid = (at / TEXTURE * 2.0 - 1.0).flatten(1, 2)  # [B, F H, W, 2]
    values = F.grid_sample(padded, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return values.view(at.shape[:-1]) * 2.0 - 1.0


def _smooth(value: Tensor) -> Tensor:
    value = value.clamp(0.0, 1.0)
    return value * value * (3.0 - 2.0 * value)
