"""Pools of encoded clips of several sizes; a step has clips of one of them, the same in all processes."""

import torch
from diffusers import AutoencoderKLHunyuanVideo

from scripts.train_world.checkpoint import generator_at, seed_at
from scripts.train_world.parallel import rank
from scripts.train_world.pool import Batch, LatentPool
from scripts.train_world.recipe import Share
from scripts.train_world.text import Text


class MixedPool:
    """A pool for each size, filled with other clips in each process."""

    def __init__(self, sizes: tuple[Share, ...], vae: AutoencoderKLHunyuanVideo, text: Text, seed: int) -> None:
        self._seed = seed
        self._shares = torch.tensor([size.share for size in sizes], dtype=torch.float64)
        self._pools = [
            LatentPool(size.pool, size.geometry, vae, text, seed_at(seed, index, f"sizes of {rank()}"))
            for index, size in enumerate(sizes)
        ]
        self.empty = self._pools[0].empty

    def batch(self, step: int, size: int) -> Batch:
        """A random batch of one size for a step."""
        for pool in self._pools:
            pool.advance(step)
        chosen = torch.multinomial(self._shares, 1, generator=generator_at(self._seed, step, "size"))
        return self._pools[int(chosen)].batch(step, size)
