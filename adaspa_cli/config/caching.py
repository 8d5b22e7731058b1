"""What a run can be told about caches between steps and about merged tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adaspa_cli.config.names import CACHES, MERGES
from adaspa_cli.errors import ConfigError, nearest


@dataclass(frozen=True)
class CacheSettings:
    """Work that is skipped between steps, and tokens that are merged.

    Attributes:
        cache: what reuses the results of earlier steps; ``none`` computes every step.
        pab_range: attention is computed once in so many steps, as long as the timestep lies in ``pab_timesteps``.
        pab_timesteps: lower and upper end (both excluded) of the scheduler's timesteps, 1000 (noise) to 0 (video).
        first_block_threshold: relative change of the first block's residual below which the other blocks are skipped.
        magcache_ratios: magnitude of the residual of all blocks at each step over that at the step before. They
            belong to a checkpoint and its schedule; a run of another number of steps takes the nearest of them.
        magcache_calibrate: skip nothing and measure ``magcache_ratios``; the report holds them.
        magcache_threshold: estimated error up to which steps are skipped.
        magcache_max_skips: steps that may be skipped one after the other.
        magcache_retention: share of the first steps that are never skipped.
        taylorseer_interval: attention is computed once in so many steps and extrapolated in between.
        taylorseer_warmup: first steps that are always computed.
        taylorseer_order: order of the Taylor series.
        adacache_thresholds: ascending distances that divide the entries of ``adacache_reuses``.
        adacache_reuses: steps for which a block's residual is reused, by distance; one entry more than thresholds.
        adacache_motion: scale the distance by the motion between the residual's frames.
        adacache_motion_reference: motion that leaves the distance as it is.
        merge: what merges tokens before attention.
        tome_ratio: share of the video tokens that are merged into others.
        tome_grid: every so many frames, rows and columns stands a token that others may be merged into.
    """

    cache: str = "none"
    pab_range: int = 2
    pab_timesteps: tuple[int, ...] = (100, 800)
    first_block_threshold: float = 0.05
    magcache_ratios: tuple[float, ...] = ()
    magcache_calibrate: bool = False
    magcache_threshold: float = 0.06
    magcache_max_skips: int = 3
    magcache_retention: float = 0.2
    taylorseer_interval: int = 5
    taylorseer_warmup: int = 3
    taylorseer_order: int = 1
    adacache_thresholds: tuple[float, ...] = (0.08, 0.16, 0.24, 0.32, 0.4)
    adacache_reuses: tuple[int, ...] = (5, 4, 3, 2, 1, 0)
    adacache_motion: bool = True
    adacache_motion_reference: float = 0.385
    merge: str = "none"
    tome_ratio: float = 0.5
    tome_grid: tuple[int, ...] = (1, 2, 2)

    def __post_init__(self) -> None:
        if self.cache == "tomesd":
            raise ConfigError("tomesd merges tokens and is no cache", hint="use --method tomesd")
        for key, allowed in (("cache", CACHES), ("merge", MERGES)):
            value = getattr(self, key)
            if value not in allowed:
                known = f"one of {', '.join(allowed)}"
                raise ConfigError(f"{key} '{value}' is unknown{nearest(value, allowed)}", hint=known)
        for key, least in _LEAST.items():
            value = getattr(self, key)
            if not least <= value < math.inf:
                raise ConfigError(f"{key} must be a number from {least} on, got {value}")
        if len(self.pab_timesteps) != 2 or self.pab_timesteps[0] > self.pab_timesteps[1]:
            raise ConfigError(f"pab_timesteps must be a lower and an upper end, got {list(self.pab_timesteps)}")
        self._check_magcache()
        self._check_adacache()
        self._check_tome()

    def _check_magcache(self) -> None:
        if any(not 0 < ratio < math.inf for ratio in self.magcache_ratios):
            raise ConfigError(f"magcache_ratios must be numbers above 0, got {list(self.magcache_ratios)}")
        if self.cache == "magcache" and not self.magcache_ratios and not self.magcache_calibrate:
            raise ConfigError(
                "magcache needs the magnitude ratios of this model, and magcache_ratios holds none",
                hint="measure them with --method magcache-calibration, and put the report's cache.ratios into a YAML "
                "file under magcache_ratios",
            )

    def _check_adacache(self) -> None:
        thresholds, reuses = list(self.adacache_thresholds), list(self.adacache_reuses)
        if thresholds != sorted(set(thresholds)) or any(not 0 < value < math.inf for value in thresholds):
            raise ConfigError(f"adacache_thresholds must be ascending and above 0, got {thresholds}")
        if len(reuses) != len(thresholds) + 1 or min(reuses) < 0:
            raise ConfigError(
                f"adacache_reuses must be {len(thresholds) + 1} numbers of steps from 0 on, one more than "
                f"adacache_thresholds, got {reuses}"
            )
        if not 0 < self.adacache_motion_reference < math.inf:
            raise ConfigError(f"adacache_motion_reference must be above 0, got {self.adacache_motion_reference}")

    def _check_tome(self) -> None:
        if len(self.tome_grid) != 3 or min(self.tome_grid) < 1:
            raise ConfigError(f"tome_grid must be three strides from 1 on, got {list(self.tome_grid)}")
        largest = 1 - 1 / math.prod(self.tome_grid)
        if not 0 <= self.tome_ratio <= largest:
            raise ConfigError(
                f"tome_ratio must lie in [0, {largest:g}], the share of tokens off the grid {list(self.tome_grid)}, "
                f"got {self.tome_ratio}"
            )


_LEAST = {
    "pab_range": 1,
    "first_block_threshold": 0,
    "magcache_threshold": 0,
    "magcache_max_skips": 0,
    "magcache_retention": 0,
    "taylorseer_interval": 1,
    "taylorseer_warmup": 1,
    "taylorseer_order": 0,
}
