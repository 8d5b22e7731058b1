"""From settings to the cache and the merging of a run."""

from __future__ import annotations

from typing import Any

from adaspa_cli.caching.step_cache import StepCache
from adaspa_cli.caching.tomesd import TokenMerging
from adaspa_cli.config.caches import (
    AdaCacheConfig,
    Cache,
    FirstBlockConfig,
    MagCacheConfig,
    NoCache,
    PabConfig,
    TaylorSeerConfig,
)
from adaspa_cli.config.merging import Merging, TomeSdConfig
from adaspa_cli.errors import RunError
from adaspa_cli.hooks.clock import StepClock
from adaspa_cli.models.attachment import Attachment


def make_cache(settings: Cache, pipe: Any, attachment: Attachment, clock: StepClock) -> StepCache | None:
    """Put a cache on a pipeline's transformers; None for ``none``.

    Raises:
        RunError: a transformer has a cache of diffusers already, or the cache is made for a single one.
    """
    match settings:
        case PabConfig():
            from adaspa_cli.caching.pab import PyramidAttentionBroadcast

            return PyramidAttentionBroadcast(settings, pipe, attachment, clock)
        case AdaCacheConfig():
            from adaspa_cli.caching.adacache import AdaCache

            return AdaCache(settings, attachment, clock)
        case FirstBlockConfig():
            from adaspa_cli.caching.first_block import FirstBlockCache

            return FirstBlockCache(settings, attachment, clock)
        case TaylorSeerConfig():
            from adaspa_cli.caching.taylorseer import taylorseer

            return taylorseer(settings, attachment, clock)
        case MagCacheConfig():
            if len(attachment.transformers) > 1:
                raise RunError(
                    "magcache's ratios describe one transformer over all steps, but this model has two",
                    hint="use another cache",
                )
            from adaspa_cli.caching.magcache import Calibration, magcache

            calibrates = settings.magcache_calibrate
            return Calibration(attachment, clock) if calibrates else magcache(settings, attachment, clock)
        case NoCache():
            return None


def make_merging(settings: Merging) -> TokenMerging | None:
    """The merging of tokens; None for ``none``."""
    return TokenMerging(settings.tome_ratio, settings.tome_grid) if isinstance(settings, TomeSdConfig) else None
