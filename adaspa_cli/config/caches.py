"""Caches between steps: one dataclass each, and the union of them.

A cache reuses results of earlier denoising steps. Adding one: its dataclass here, in :data:`Cache`, and its module in
``adaspa_cli/caching``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, get_args

from adaspa_cli.config.fields import MOST_SCALE, MOST_STEPS, above_zero, check_fields, from_on, rule, setting, shown
from adaspa_cli.errors import ConfigError


@dataclass(frozen=True)
class CacheConfig:
    """Properties that the settings of every cache have.

    Attributes:
        name: its value of ``cache``.
        inside_blocks: whether it skips attention inside of blocks, and not whole blocks.
        single_branch: whether it takes one guidance branch a step only.
        single_transformer: whether it takes models with one transformer only.
    """

    name: ClassVar[str]
    inside_blocks: ClassVar[bool] = False
    single_branch: ClassVar[bool] = False
    single_transformer: ClassVar[bool] = False

    @property
    def calibrates(self) -> bool:
        """Whether it only measures what a later run needs, and skips nothing."""
        return False

    @property
    def needs_raster(self) -> bool:
        """Whether it looks at the tokens of one frame and the next, and so needs them frame by frame."""
        return False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def idle(self) -> Mapping[str, str]:
        """Keys without effect, given the others, each with what takes it from them."""
        return {}

    def check_chosen(self) -> None:
        """Raise ConfigError if this cache is chosen, and lacks what it needs."""


@dataclass(frozen=True)
class NoCache(CacheConfig):
    """Every step is computed."""

    name: ClassVar[str] = "none"


@rule(f"two ascending numbers, -1 to {MOST_STEPS:,}")
def _check_timesteps(key: str, value: tuple[int, ...]) -> None:
    if len(value) != 2 or value[0] > value[1]:
        raise ConfigError(f"{key} must be a lower and an upper bound, got {shown(value)}")
    for end in value:
        from_on(-1, MOST_STEPS)(key, end)


@dataclass(frozen=True)
class PabConfig(CacheConfig):
    """Pyramid Attention Broadcast (arXiv 2408.12588).

    Attributes:
        pab_range: compute attention at one in N denoising steps, while the timestep is in ``pab_timesteps``.
        pab_timesteps: lower and upper bound (both excluded) of the scheduler's timesteps, from 1000 (noise) to 0
            (video).
    """

    name: ClassVar[str] = "pab"
    inside_blocks: ClassVar[bool] = True
    single_branch: ClassVar[bool] = True

    pab_range: int = setting(2, from_on(1, MOST_STEPS))
    pab_timesteps: tuple[int, ...] = setting((100, 800), _check_timesteps)


@rule(f"ascending, above 0, up to {MOST_SCALE:,.10g}")
def _check_thresholds(key: str, value: tuple[float, ...]) -> None:
    if list(value) != sorted(set(value)) or any(not 0 < threshold < math.inf for threshold in value):
        raise ConfigError(f"{key} must be ascending and above 0, got {shown(value)}")
    above_zero(MOST_SCALE)(key, max(value, default=MOST_SCALE))


@dataclass(frozen=True)
class AdaCacheConfig(CacheConfig):
    """AdaCache (arXiv 2411.02397).

    Attributes:
        adacache_thresholds: ascending distances that divide the entries of ``adacache_reuses``.
        adacache_reuses: number of denoising steps for which a block's residual is reused, by distance; one entry more
            than ``adacache_thresholds``.
        adacache_motion: scale the distance by the motion between the residual's latent frames.
        adacache_motion_reference: motion at which the distance is unchanged.
    """

    name: ClassVar[str] = "adacache"

    adacache_thresholds: tuple[float, ...] = setting((0.08, 0.16, 0.24, 0.32, 0.4), _check_thresholds)
    adacache_reuses: tuple[int, ...] = (5, 4, 3, 2, 1, 0)
    adacache_motion: bool = True
    adacache_motion_reference: float = setting(0.385, above_zero(MOST_SCALE))

    def __post_init__(self) -> None:
        check_fields(self)
        wanted, reuses = len(self.adacache_thresholds) + 1, self.adacache_reuses
        if len(reuses) != wanted or min(reuses) < 0:
            raise ConfigError(
                f"adacache_reuses must be {wanted} numbers of steps from 0 on, one more than adacache_thresholds, "
                f"got {shown(reuses)}"
            )
        from_on(0, MOST_STEPS)("adacache_reuses", max(reuses))

    @property
    def needs_raster(self) -> bool:
        return self.adacache_motion

    @property
    def idle(self) -> Mapping[str, str]:
        return {} if self.adacache_motion else {"adacache_motion_reference": "without adacache_motion"}


@dataclass(frozen=True)
class FirstBlockConfig(CacheConfig):
    """First Block Cache (ParaAttention).

    Attributes:
        first_block_threshold: relative change of the first block's residual below which the other blocks are skipped.
    """

    name: ClassVar[str] = "first-block"

    first_block_threshold: float = setting(0.05, from_on(0, MOST_SCALE))


@rule(f"above 0, up to {MOST_SCALE:,.10g} each")
def _check_ratios(key: str, value: tuple[float, ...]) -> None:
    if any(not 0 < ratio < math.inf for ratio in value):
        raise ConfigError(f"{key} must be numbers above 0, got {shown(value)}")
    above_zero(MOST_SCALE)(key, max(value, default=MOST_SCALE))


@dataclass(frozen=True)
class MagCacheConfig(CacheConfig):
    """MagCache (arXiv 2506.09045).

    Attributes:
        magcache_ratios: residual magnitude of all blocks at each step, relative to the step before. The ratios belong
            to a checkpoint and its schedule; a run with another number of steps uses the nearest ones.
        magcache_calibrate: skip nothing; measure ``magcache_ratios`` and write them to the report.
        magcache_threshold: estimated relative error up to which steps are skipped.
        magcache_max_skips: most consecutive steps that may be skipped.
        magcache_retention: share of the steps, 0 to 1, at the start of the run that are never skipped.
    """

    name: ClassVar[str] = "magcache"
    single_transformer: ClassVar[bool] = True

    magcache_ratios: tuple[float, ...] = setting((), _check_ratios)
    magcache_calibrate: bool = False
    magcache_threshold: float = setting(0.06, from_on(0, MOST_SCALE))
    magcache_max_skips: int = setting(3, from_on(0, MOST_STEPS))
    magcache_retention: float = setting(0.2, from_on(0, 1))

    @property
    def calibrates(self) -> bool:
        return self.magcache_calibrate

    @property
    def idle(self) -> Mapping[str, str]:
        keys = ("magcache_ratios", "magcache_threshold", "magcache_max_skips", "magcache_retention")
        return dict.fromkeys(keys, "with magcache_calibrate") if self.magcache_calibrate else {}

    def check_chosen(self) -> None:
        if not self.magcache_ratios and not self.magcache_calibrate:
            raise ConfigError(
                "magcache needs the magnitude ratios of this model, and magcache_ratios is empty",
                hint="measure them with --method magcache-calibration, and put the report's cache.ratios into a YAML "
                "file under magcache_ratios",
            )


@dataclass(frozen=True)
class TaylorSeerConfig(CacheConfig):
    """TaylorSeer (arXiv 2503.06923).

    Attributes:
        taylorseer_interval: compute attention at one in N denoising steps, and extrapolate it at the others.
        taylorseer_warmup: number of steps at the start that are always computed.
        taylorseer_order: order of the Taylor series.
    """

    name: ClassVar[str] = "taylorseer"
    inside_blocks: ClassVar[bool] = True

    taylorseer_interval: int = setting(5, from_on(1, MOST_STEPS))
    taylorseer_warmup: int = setting(3, from_on(1, MOST_STEPS))
    taylorseer_order: int = setting(1, from_on(0, 16))


Cache = NoCache | PabConfig | AdaCacheConfig | FirstBlockConfig | MagCacheConfig | TaylorSeerConfig
CACHES: tuple[str, ...] = tuple(cache.name for cache in get_args(Cache))
