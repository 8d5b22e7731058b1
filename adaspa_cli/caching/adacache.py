"""AdaCache (arXiv 2411.02397): a block's residual is reused for a number of steps that depends on its change.

A residual is what a block adds to the tokens. When it is computed again, its relative L1 distance to the one before,
per step, is looked up in a table: small distance, many reuses. Motion regularisation scales the distance, so that a
video that moves more is computed more often.

Shapes: B batch, F frames, N video tokens (frame-major), C channels.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adaspa_cli.caching.step_cache import StepCache
from adaspa_cli.config.caches import AdaCacheConfig
from adaspa_cli.hooks.clock import StepClock
from adaspa_cli.hooks.override import Override
from adaspa_cli.models.attachment import Attachment

# Each run's last steps are computed, whatever the table says, as the authors have it.
_FINAL_STEPS = 2

Key = tuple[int, tuple[tuple[str, int], ...]]  # block, rows of the batch


@dataclass
class _Residual:
    """What a block added at a step, how much that moves, and for how many steps it may be reused."""

    added: tuple[Tensor, ...]  # to the video's tokens, and to the text's where a block changes them
    step: int
    motion: Tensor | None = None
    reuses: int = 0


@dataclass
class _Measured:
    """Distances and motions of a run, for the report."""

    distances: list[Tensor] = field(default_factory=list)
    motions: list[Tensor] = field(default_factory=list)


class AdaCache(StepCache):
    """The residuals of all blocks, one each, stay in memory: blocks x tokens x channels.

    Blocks have schedules of their own. The rows of a batch (videos, or the branches of guidance in one pass) share
    one, because they share the block's call; branches in passes of their own have their own.
    """

    def __init__(self, settings: AdaCacheConfig, attachment: Attachment, clock: StepClock) -> None:
        self._settings, self._attachment = settings, attachment
        self._memory: dict[Key, _Residual] = {}
        self._pending: list[tuple[_Residual, Tensor]] = []  # with its distance, which the device may still compute
        self._measured = _Measured()
        super().__init__("adacache", "block", attachment, clock)
        self._overrides = [
            Override(block, "forward", self._cached(index)) for index, block in enumerate(attachment.blocks)
        ]

    def start(self, steps: int) -> None:  # noqa: ARG002
        self.release()
        self._measured = _Measured()

    def release(self) -> None:
        self._memory.clear()
        self._pending.clear()

    def details(self) -> dict[str, Any]:
        return {"distance": _mean(self._measured.distances), "motion": _mean(self._measured.motions)}

    def remove(self) -> None:
        for override in self._overrides:
            override.restore()
        super().remove()

    def _cached(self, index: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        family = self._attachment.family

        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                tokens = family.block_input(args, kwargs)
                key = (index, tuple((row.branch, row.sample) for row in self._attachment.rows))
                before = self._memory.get(key)
                if before is not None and self._may_reuse(before):
                    return family.joined(tuple(old + new for old, new in zip(tokens, before.added, strict=True)))
                output = original(*args, **kwargs)
                made = family.block_output(output)
                added = tuple(new - old for new, old in zip(made, tokens, strict=True))
                self._memory[key] = self._compare(added, before)
                return output

            return forward

        return wrap

    def _may_reuse(self, before: _Residual) -> bool:
        """Whether this step is one of those that the table gave the residual."""
        step = self._clock.step
        if any(residual.step < step for residual, _ in self._pending):
            self._look_up()
        return step - before.step <= before.reuses and step < self._clock.steps - _FINAL_STEPS

    def _look_up(self) -> None:
        """Read the distances of a whole step at once: waiting for the device block by block would leave it idle."""
        values = torch.stack([distance for _, distance in self._pending]).tolist()
        for (residual, _), distance in zip(self._pending, values, strict=True):
            residual.reuses = reuses(distance, self._settings)
        self._pending.clear()

    def _compare(self, added: tuple[Tensor, ...], before: _Residual | None) -> _Residual:
        """The new residual with its distance to the one before."""
        settings, video, now = self._settings, added[0], _Residual(added, self._clock.step)
        frames = self._attachment.rows[0].layout.frames
        if settings.adacache_motion and frames > 1:
            now.motion = motion(self._attachment.whole_video(video), frames)
            self._measured.motions.append(now.motion)
        if before is not None:
            gap = now.step - before.step
            distance = relative_distance(video, before.added[0], self._attachment.over_tokens) / gap
            self._measured.distances.append(distance)
            if now.motion is not None and before.motion is not None:
                distance = distance * motion_factor(now.motion, before.motion, gap, settings.adacache_motion_reference)
            self._pending.append((now, distance))
        return now


def relative_distance(new: Tensor, old: Tensor, over_all: Callable[[Tensor], Tensor] = lambda sums: sums) -> Tensor:
    """|new - old| / |old| in L1 norms over all elements: float32 [].

    Args:
        over_all: makes sums over the elements that are here those over all elements.
    """
    sums = over_all(torch.stack([_l1(new - old), _l1(old)]))
    return sums[0] / sums[1]


def motion(residual: Tensor, frames: int) -> Tensor:
    """Change between neighbouring frames of a residual [B, N, C], over the size of what is compared: float32 in [0, 1].

    0 where all frames are alike, 1 where they have nothing in common (AdaCache, motion score).
    """
    by_frame = residual.reshape(len(residual), frames, -1, residual.shape[-1])
    later, earlier = by_frame[:, 1:], by_frame[:, :-1]
    return _l1(later - earlier) / (_l1(later) + _l1(earlier))


def motion_factor(now: Tensor, before: Tensor, gap: int, reference: float) -> Tensor:
    """What the distance is multiplied by: motion score and motion gradient, over the motion that counts as usual.

    The gradient is the change of the motion per step, ``gap`` steps lying between the two (AdaCache, motion
    regularisation).
    """
    return (now + (now - before).abs() / gap) / reference


def reuses(distance: float, settings: AdaCacheConfig) -> int:
    """The table's entry: steps for which a residual of that distance is reused. A distance that is NaN: none."""
    if math.isnan(distance):
        return 0
    return settings.adacache_reuses[bisect_right(settings.adacache_thresholds, distance)]


def _l1(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, ord=1, dtype=torch.float32)
    return norm


def _mean(values: list[Tensor]) -> float | None:
    return round(float(torch.stack(values).mean()), 6) if values else None
