"""Pools of encoded clips of several sizes; a step has clips of one of them, the same in all processes."""

import dataclasses

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor

from scripts.tiny_world.draw import draw
from scripts.tiny_world.plan import Plan, extent_of, plan_clips
from scripts.train_tiny.checkpoint import generator_at, seed_at
from scripts.train_tiny.parallel import rank
from scripts.train_tiny.pool import Batch, Geometry, LatentPool
from scripts.train_tiny.text import Text
from scripts.train_world.recipe import PROCESSES, Share


def refilled(sizes: tuple[Share, ...], processes: int) -> tuple[Share, ...]:
    """The same with as many new clips for the clips that a process trains on, whatever the number of processes."""
    return tuple(
        dataclasses.replace(
            size,
            pool=dataclasses.replace(
                size.pool, refill_every=max(1, round(size.pool.refill_every * processes / PROCESSES))
            ),
        )
        for size in sizes
    )


class WorldPool(LatentPool):
    """Training clips of the drawn world in one size."""

    def plan(self, chunk: int) -> Plan:  # type: ignore[override]
        """The clips of the ``chunk``-th chunk since the start of the run."""
        extent = extent_of(self.geometry.height, self.geometry.width)
        return plan_clips(self.config.chunk, seed_at(self.seed, chunk, "pool"), extent)

    def drawn(self, plan: Plan, geometry: Geometry) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Clips and coverage of a plan."""
        return draw(plan, geometry.frames, geometry.height, geometry.width, self._device)


class MixedPool:
    """A pool for each size, filled with other clips in each process."""

    def __init__(self, sizes: tuple[Share, ...], vae: AutoencoderKLHunyuanVideo, text: Text, seed: int) -> None:
        self._seed = seed
        self._shares = torch.tensor([size.share for size in sizes], dtype=torch.float64)
        self._pools = [
            WorldPool(size.pool, size.geometry, vae, text, seed_at(seed, index, f"sizes of {rank()}"))
            for index, size in enumerate(sizes)
        ]
        self.empty = self._pools[0].empty

    def batch(self, step: int, size: int) -> Batch:
        """A random batch of one size for a step."""
        for pool in self._pools:
            pool.advance(step)
        chosen = torch.multinomial(self._shares, 1, generator=generator_at(self._seed, step, "size"))
        return self._pools[int(chosen)].batch(step, size)
