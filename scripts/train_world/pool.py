"""A pool of encoded clips with captions on the training device, part of which is redrawn all the time.

Drawing and encoding a clip costs far less than a training step on it, but it is not free: each clip is used a few
times with other noise before it is replaced. What the pool holds at a step is a function of (seed, step), so resuming
needs no copy of it.

All captions of a batch have the same number of tokens. There is no padding then, hence no attention mask, and flash
attention can be used; the result is the one of the padded and masked pipeline.

Shapes: N clips in the pool, B in a batch, T template tokens, L caption tokens.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor

from scripts.tiny_world.captions import caption_of
from scripts.tiny_world.draw import draw
from scripts.tiny_world.plan import Plan, extent_of, plan_clips
from scripts.train_world.autoencoder import encode
from scripts.train_world.checkpoint import generator_at, random_at, seed_at
from scripts.train_world.text import TEMPLATE_TOKENS, Text, Tokens, tokenize

_LONGEST_CAPTION = 72  # tokens; CLIP reads 77


@dataclass(frozen=True)
class Geometry:
    """Size of a clip in pixels."""

    frames: int = 33
    height: int = 256
    width: int = 256


@dataclass(frozen=True)
class PoolConfig:
    """``size`` clips in chunks of ``chunk``; one chunk is replaced every ``refill_every`` steps, in turn.

    ``tokens``: captions are worded anew until their number of tokens is a multiple of it. That makes for fewer plans
    where attention is planned for each length of a sequence.
    """

    size: int = 16_384
    chunk: int = 256
    refill_every: int = 32
    encode_batch: int = 64
    caption_dropout: float = 0.1
    tokens: int = 1


@dataclass(frozen=True)
class Batch:
    """``latents`` [B, C, f, h, w], ``near`` bool [B, 1, f, h, w]: an object or its rim, ``llama`` [B, T + L],
    ``clip`` [B, 77], and whether there are captions at all."""

    latents: Tensor
    near: Tensor
    llama: Tensor
    clip: Tensor
    captioned: bool


class LatentPool:
    """Training clips of one geometry, as latents and token ids."""

    def __init__(
        self,
        config: PoolConfig,
        geometry: Geometry,
        vae: AutoencoderKLHunyuanVideo,
        text: Text,
        seed: int,
    ) -> None:
        if config.size % config.chunk:
            raise ValueError(f"the pool's size {config.size} is no multiple of its chunk {config.chunk}")
        self.config, self.geometry, self.seed = config, geometry, seed
        self._vae, self._text, self._device = vae, text, vae.device
        ratio, ratio_t = vae.spatial_compression_ratio, vae.temporal_compression_ratio
        grid = ((geometry.frames - 1) // ratio_t + 1, geometry.height // ratio, geometry.width // ratio)
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        size = config.size
        self._latents = torch.empty(size, vae.config.latent_channels, *grid, dtype=dtype, device=self._device)
        self._near = torch.empty(size, 1, *grid, dtype=torch.bool, device=self._device)
        empty = tokenize(text, [""])
        self.empty = (empty.llama.to(self._device), empty.clip.to(self._device))
        self._llama = torch.zeros(size, TEMPLATE_TOKENS + _LONGEST_CAPTION, dtype=torch.long, device=self._device)
        self._clip = torch.zeros(size, empty.clip.shape[1], dtype=torch.long, device=self._device)
        self._length = torch.zeros(size, dtype=torch.long)
        self._buckets: dict[int, Tensor] = {}
        self._refills = -1

    def advance(self, step: int) -> None:
        """Bring the content up to that step: everything at first, later a chunk now and then."""
        slots = self.config.size // self.config.chunk
        due = step // self.config.refill_every
        if self._refills == due:
            return
        # Chunk c lies in slot c % slots; the newest at this step is slots - 1 + due.
        newest = slots - 1 + due
        missing = slots if self._refills < 0 else min(slots, due - self._refills)
        for chunk in range(newest - missing + 1, newest + 1):
            self._load(chunk, chunk % slots)
        self._refills = due
        order = self._length.argsort(stable=True)
        lengths, counts = self._length[order].unique_consecutive(return_counts=True)
        self._buckets = dict(zip(lengths.tolist(), order.split(counts.tolist()), strict=True))

    def batch(self, step: int, size: int) -> Batch:
        """A random batch of captions of one length, or of empty captions. ``advance`` comes first."""
        generator = generator_at(self.seed, step, "batch")
        if float(torch.rand(1, generator=generator)) < self.config.caption_dropout:
            rows = torch.randint(self.config.size, (size,), generator=generator).to(self._device, non_blocking=True)
            llama, clip = (ids.expand(size, -1) for ids in self.empty)
            return Batch(self._latents[rows], self._near[rows], llama, clip, captioned=False)
        # The length of a random clip: lengths come as often as their captions do.
        length = int(self._length[torch.randint(self.config.size, (1,), generator=generator)])
        bucket = self._buckets[length]
        rows = bucket[torch.randint(len(bucket), (size,), generator=generator)].to(self._device, non_blocking=True)
        llama = self._llama[rows, : TEMPLATE_TOKENS + length]
        return Batch(self._latents[rows], self._near[rows], llama, self._clip[rows], captioned=True)

    def _load(self, chunk: int, slot: int) -> None:
        g = self.geometry
        plan = plan_clips(self.config.chunk, seed_at(self.seed, chunk, "pool"), extent_of(g.height, g.width))
        tokens = worded(self._text, plan, self.config.tokens, random_at(self.seed, chunk, "wordings"))
        first = slot * self.config.chunk
        rows = slice(first, first + self.config.chunk)
        self._llama[rows, : tokens.llama.shape[1]] = tokens.llama.to(self._device, non_blocking=True)
        self._clip[rows] = tokens.clip.to(self._device, non_blocking=True)
        self._length[rows] = tokens.length
        for start in range(0, len(plan), self.config.encode_batch):
            part = plan.rows(start, start + self.config.encode_batch)
            clips, cover = draw(part, g.frames, g.height, g.width, self._device)
            filled = slice(first + start, first + start + len(part))
            self._latents[filled] = encode(self._vae, clips)
            self._near[filled] = near_objects(cover, self._latents.shape[2:])


def worded(text: Text, plan: Plan, multiple: int, rng: random.Random) -> Tokens:
    """Token ids of a plan's captions, of other wordings where the number of tokens is no multiple of ``multiple``."""
    captions, others = list(plan.captions), list(range(len(plan)) if multiple > 1 else ())
    while others:
        lengths = tokenize(text, [captions[index] for index in others]).length.tolist()
        others = [index for index, length in zip(others, lengths, strict=True) if length % multiple]
        for index in others:
            captions[index] = caption_of(plan.scenes[index], rng)
    return tokenize(text, captions)


def near_objects(cover: Tensor, grid: Sequence[int]) -> Tensor:
    """Latent cells [B, 1, f, h, w] with something of an object in them or in a neighbour, from coverage by pixels.

    Latent frame 0 is the first frame alone, every other one an equal number of frames.
    """
    first = F.adaptive_max_pool3d(cover[:, :, :1], (1, *grid[1:]))
    rest = F.adaptive_max_pool3d(cover[:, :, 1:], (grid[0] - 1, *grid[1:]))
    cells = torch.cat([first, rest], dim=2)
    return F.max_pool3d(cells, (1, 3, 3), stride=1, padding=(0, 1, 1)) > 0
