"""What each denoising step of a run will do, as far as its settings say.

A cache that decides by what it computes (AdaCache, First Block Cache, PAB by the scheduler's timesteps) cannot be
foretold; MagCache and TaylorSeer follow a fixed schedule, which is diffusers'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from adaspa_cli.attention import TokenLayout
from adaspa_cli.config.caches import Cache, MagCacheConfig, NoCache, TaylorSeerConfig
from adaspa_cli.config.kept_blocks import kept_blocks
from adaspa_cli.masks import MaskPolicy
from adaspa_cli.masks.plan import DENSE, MERGED, Attention, CallPlan


@dataclass(frozen=True)
class PlannedStep:
    """A denoising step.

    Attributes:
        step: 0-based.
        plan: what its attention calls do; None if a cache leaves them out.
        sparsity: γ; None without masks.
        kept: expected share of the blocks that its masks keep, text included; 1 without masks.
        stage: number of the transformer that makes it.
        whole: whether a skipped step leaves out the blocks, and not only their attention.
    """

    step: int
    plan: CallPlan | None
    sparsity: float | None
    kept: float
    stage: int = 0
    whole: bool = False

    @property
    def phase(self) -> str:
        """As reports call it."""
        return "skipped" if self.plan is None else self.plan.phase

    @property
    def density(self) -> float:
        """Expected share of the blocks that attention computes; 0 for a skipped step."""
        if self.plan is None:
            return 0.0
        return self.kept if self.plan.attention is Attention.SPARSE else 1.0


def plan_steps(
    policy: MaskPolicy,
    sparsities: Sequence[float | None],
    layout: TokenLayout,
    *,
    cache: Cache | None = None,
    merges: bool = False,
) -> list[PlannedStep]:
    """The steps of a run.

    Args:
        policy: of the run.
        sparsities: γ at each step.
        layout: of the token sequence.
        cache: the run's.
        merges: whether dense attention merges tokens.
    """
    steps = len(sparsities)
    skipped = foretold_skips(cache or NoCache(), steps)
    done = [step for step in range(steps) if step not in skipped]
    plans = dict(zip(done, policy.plan(done), strict=True))
    planned = []
    for step, sparsity in enumerate(sparsities):
        plan = plans.get(step)
        plan = MERGED if merges and plan == DENSE else plan
        planned.append(
            PlannedStep(
                step,
                plan,
                sparsity,
                1.0 if sparsity is None else expected_density(sparsity, layout, policy.block_size),
                stage=sum(first <= step for first in policy.stages),
                whole=isinstance(cache, MagCacheConfig),
            )
        )
    return planned


def expected_density(sparsity: float, layout: TokenLayout, block_size: tuple[int, int]) -> float:
    """Share of the blocks that are kept: of each row of video its share, and every block with text."""
    rows, columns = (len(layout.video_blocks(size)) for size in block_size)
    blocks = layout.blocks(block_size[0]) * layout.blocks(block_size[1])
    left_out = rows * (columns - kept_blocks(sparsity, columns)) if sparsity else 0
    return 1 - left_out / blocks


def foretold_skips(cache: Cache, steps: int) -> frozenset[int]:
    """The steps that a cache of a fixed schedule will leave out, as diffusers 0.42 does; none of another cache."""
    if isinstance(cache, TaylorSeerConfig):
        warmup, interval = cache.taylorseer_warmup, cache.taylorseer_interval
        return frozenset(step for step in range(warmup, steps) if (step - warmup - 1) % interval)
    if isinstance(cache, MagCacheConfig) and not cache.magcache_calibrate:
        return _magcache_skips(cache, steps)
    return frozenset()


def _magcache_skips(cache: MagCacheConfig, steps: int) -> frozenset[int]:
    ratios = _nearest(cache.magcache_ratios, steps)
    first = int(cache.magcache_retention * steps + 0.5)
    skipped: set[int] = set()
    ratio, error, count = 1.0, 0.0, 0
    for step in range(first, steps):
        ratio, count = ratio * ratios[step], count + 1
        error += abs(1 - ratio)
        if step and error <= cache.magcache_threshold and count <= cache.magcache_max_skips:
            skipped.add(step)
        else:
            ratio, error, count = 1.0, 0.0, 0
    return frozenset(skipped)


def _nearest(ratios: Sequence[float], steps: int) -> list[float]:
    """The ratios of a run of another number of steps: the nearest of those that are given."""
    if steps == 1:
        return [ratios[-1]]
    scale = (len(ratios) - 1) / (steps - 1)
    return [ratios[round(step * scale)] for step in range(steps)]


def foretold(cache: Cache) -> bool:
    """Whether it is known which steps a cache leaves out."""
    return isinstance(cache, NoCache | TaylorSeerConfig | MagCacheConfig)


def phases(steps: Sequence[PlannedStep]) -> dict[str, int]:
    """Number of steps of each phase, in the order in which they come first."""
    return dict(Counter(step.phase for step in steps))
