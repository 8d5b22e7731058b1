"""Sizes, lengths and times of the training: what is in the card and what a person would change.

The minutes are for four GPUs, one process each; with fewer the same command trains on fewer clips.
"""

import dataclasses
import math
from dataclasses import dataclass, field

from scripts.train_world.autoencoder import VaeConfig
from scripts.train_world.loop import LoopConfig
from scripts.train_world.network import TransformerConfig
from scripts.train_world.pool import Geometry, PoolConfig
from scripts.train_world.text import TextConfig

PROCESSES = 4  # that the batches are for
AGAIN = 0.5  # of the learning rates of a transformer's stage that the model went through before
VAE = VaeConfig(latent_channels=16, channels=(16, 32, 64, 64))
# 12.9 million parameters in the transformer: of its steps at 9,216 tokens, attention is the most.
MODEL = TransformerConfig(
    dual_layers=3,
    single_layers=6,
    refiner_layers=2,
    mlp_ratio=3.0,
    latent_channels=VAE.latent_channels,
    text=TextConfig(llama_layers=5),
)


@dataclass(frozen=True)
class Share:
    """Clips of one size: how often a step has them, and how many lie ready in each process's pool."""

    geometry: Geometry
    share: float
    pool: PoolConfig


@dataclass(frozen=True)
class WorldStage:
    """A stage of the transformer's training.

    Attributes:
        sizes: of the clips; the first is that of samples.
        shift: of the noise levels that are trained on.
        sampled_with: shift of the steps by which clips are sampled, where it is another one.
        stride: cells of the full-size grid that a cell is wide, see :class:`network.StridedRope`.
        guidance: weight w of the difference that the caption makes, see ``flow``, from ``guidance_from`` of the
            schedule on.
        after: stages; it begins with the weights of the last of them that was trained.
        compile: the blocks.
        attention: a name of ``network.BACKENDS``.
        eval_minutes: how often 16 clips are sampled and judged.
    """

    name: str
    sizes: tuple[Share, ...]
    shift: float
    sampled_with: float | None = None
    stride: float = 1.0
    guidance: float = 0.0
    guidance_from: float = 0.4
    after: tuple[str, ...] = ()
    compile: bool = False
    attention: str = "flash"  # cuDNN's is faster, and plans for 0.1 s at each new length
    eval_minutes: float | None = None

    @property
    def sampling_shift(self) -> float:
        """Of the steps by which clips are sampled."""
        return self.shift if self.sampled_with is None else self.sampled_with


@dataclass(frozen=True)
class VaeStage:
    """Clips that the autoencoder sees: small ones, and full ones in the last part of the schedule.

    ``decoder_only`` trains the decoder of an autoencoder that is there: the latents stay what transformers know.
    """

    small: tuple[Geometry, ...]
    full: tuple[Geometry, ...]
    name: str = "vae"
    decoder_only: bool = False
    full_from: float = 0.7
    full_batch: float = 0.25  # of the batch of small ones
    moving_weight: float = 6.0  # of moving edges: few pixels, and the largest errors (``moving_edges_db``)
    model: VaeConfig = field(default=VAE)


def _pool(size: int, chunk: int, refill_every: int, encode_batch: int = 64) -> PoolConfig:
    """Sizes by which a clip is used six to fourteen times, and encoding is some tenth of the work. Steps without
    captions, whose blocks run as they are, keep the host busy for longer."""
    return PoolConfig(size, chunk, refill_every, encode_batch, caption_dropout=0.05)


def _full_pool(size: int, chunk: int, refill_every: int) -> PoolConfig:
    """With captions of few lengths, so that cuDNN plans attention for a few dozen sequences only."""
    return PoolConfig(size, chunk, refill_every, encode_batch=32, tokens=4)


VAE_STAGE = VaeStage(
    small=(Geometry(33, 128, 128), Geometry(17, 160, 160)),
    full=(Geometry(33, 256, 256), Geometry(17, 192, 320)),
)
DECODER_STAGE = dataclasses.replace(VAE_STAGE, name="decoder", decoder_only=True, full_from=0.4, moving_weight=12.0)
STAGES = {
    "small": WorldStage(
        "small",
        (
            Share(Geometry(33, 128, 128), 0.35, _pool(1536, 128, 48)),
            Share(Geometry(17, 128, 128), 0.3, _pool(1536, 128, 56)),
            Share(Geometry(17, 160, 128), 0.1, _pool(512, 64, 128)),
            Share(Geometry(25, 96, 160), 0.1, _pool(512, 64, 128)),
            Share(Geometry(49, 96, 96), 0.15, _pool(768, 64, 96)),
        ),
        shift=3.0,
        stride=2.0,
        after=("text",),
    ),
    "middle": WorldStage(
        "middle",
        (
            Share(Geometry(17, 192, 192), 0.6, _pool(1536, 128, 48)),
            Share(Geometry(17, 192, 256), 0.15, _pool(512, 64, 96)),
            Share(Geometry(17, 256, 192), 0.15, _pool(512, 64, 96)),
            Share(Geometry(33, 192, 192), 0.1, _pool(384, 32, 64)),
        ),
        shift=3.5,
        after=("text", "small"),
    ),
    "full": WorldStage(
        "full",
        (
            Share(Geometry(33, 256, 256), 0.35, _full_pool(1024, 64, 72)),
            Share(Geometry(17, 256, 256), 0.35, _full_pool(768, 64, 72)),
            Share(Geometry(17, 320, 256), 0.075, _full_pool(384, 32, 160)),
            Share(Geometry(25, 192, 320), 0.075, _full_pool(384, 32, 160)),
            Share(Geometry(49, 192, 192), 0.075, _full_pool(384, 32, 160)),
            Share(Geometry(33, 192, 256), 0.075, _full_pool(384, 32, 160)),
        ),
        shift=6.0,  # objects get their places at high noise
        sampled_with=4.0,
        guidance=0.6,
        guidance_from=0.5,
        after=("text", "small", "middle"),
        attention="cudnn",
    ),
}
LOOPS = {
    "text": LoopConfig(steps=3000, batch=128, learning_rate=1.5e-3, warmup=100, ema=0.999),
    "vae": LoopConfig(
        steps=3000, batch=64, learning_rate=1.2e-3, warmup=60, weight_decay=0.0, ema=0.998, later_cost=1.1
    ),
    "decoder": LoopConfig(
        steps=1500, batch=64, learning_rate=6e-4, warmup=60, weight_decay=0.0, ema=0.998, later_cost=1.1
    ),
    "small": LoopConfig(
        steps=6000, batch=256, learning_rate=1e-3, matrix_learning_rate=5e-3, warmup=200, ema=0.999, later_cost=1.05
    ),
    "middle": LoopConfig(
        steps=4000, batch=192, learning_rate=8e-4, matrix_learning_rate=4e-3, warmup=100, ema=0.999, later_cost=1.05
    ),
    "full": LoopConfig(
        steps=2500, batch=64, learning_rate=6e-4, matrix_learning_rate=2.5e-3, warmup=100, ema=0.998, later_cost=0.95
    ),
}
ORDER = ("vae", "decoder", "text", *STAGES)
USUAL = tuple(name for name in ORDER if name != "decoder")
MINUTES = {"vae": 8.0, "decoder": 4.0, "text": 1.0, "small": 5.0, "middle": 5.0, "full": 12.0}
EVALUATION_MINUTES = 2.0  # kept free at the end of a run with a deadline, for four GPUs


def batch_of(name: str, processes: int) -> int:
    """Clips in a step: a GPU takes as many of a transformer's stage whatever the number of GPUs, since with fewer it
    would wait for its host."""
    batch = LOOPS[name].batch
    return max(1, batch // PROCESSES) * processes if name in STAGES else batch


def rate_share(name: str, batch: int) -> float:
    """Of the recipe's learning rates, for another batch: the square root of its share, as gradients that are scaled to
    one size want it (arXiv 2205.10287), so that fewer GPUs don't train with more noise."""
    return math.sqrt(batch / LOOPS[name].batch) if name in STAGES else 1.0
