"""From settings to the cache and the merging of a run."""

from __future__ import annotations

from typing import Any

from adaspa_cli.caching.step_cache import Clock, StepCache
from adaspa_cli.caching.tomesd import TokenMerging
from adaspa_cli.config.caching import CacheSettings
from adaspa_cli.models.attachment import Attachment


def make_cache(settings: CacheSettings, pipe: Any, attachment: Attachment, clock: Clock) -> StepCache | None:
    """Put the cache that the settings name on a transformer; None if they name none.

    Raises:
        RunError: the transformer has a cache of diffusers already.
    """
    if settings.cache == "none":
        return None
    if settings.cache == "pab":
        from adaspa_cli.caching.pab import PyramidAttentionBroadcast

        return PyramidAttentionBroadcast(settings, pipe, attachment, clock)
    if settings.cache == "adacache":
        from adaspa_cli.caching.adacache import AdaCache

        return AdaCache(settings, attachment, clock)
    if settings.cache == "first-block":
        from adaspa_cli.caching.first_block import first_block_cache

        return first_block_cache(settings, attachment, clock)
    if settings.cache == "taylorseer":
        from adaspa_cli.caching.taylorseer import taylorseer

        return taylorseer(settings, attachment, clock)
    from adaspa_cli.caching.magcache import Calibration, magcache

    return Calibration(attachment, clock) if settings.magcache_calibrate else magcache(settings, attachment, clock)


def make_merging(settings: CacheSettings) -> TokenMerging | None:
    """The token merging that the settings name; None if they name none."""
    return TokenMerging(settings.tome_ratio, settings.tome_grid) if settings.merge == "tomesd" else None
