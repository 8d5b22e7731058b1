"""TaylorSeer (arXiv 2503.06923), by diffusers: attention outputs of skipped steps are extrapolated."""

from __future__ import annotations

from typing import Any

from adaspa_cli.caching.diffusers_cache import DiffusersCache, attention_patterns
from adaspa_cli.config.caches import TaylorSeerConfig
from adaspa_cli.hooks.clock import StepClock
from adaspa_cli.models.attachment import Attachment


def taylorseer(settings: TaylorSeerConfig, attachment: Attachment, clock: StepClock) -> DiffusersCache:
    """A Taylor series of order ``taylorseer_order`` through the steps that were computed gives the ones between.

    ``order + 1`` outputs a layer stay in memory, in the transformer's dtype. Guidance branches have their own.
    """
    from diffusers import TaylorSeerCacheConfig

    def make_config(_steps: int, transformer: Any) -> Any:
        return TaylorSeerCacheConfig(
            cache_interval=settings.taylorseer_interval,
            disable_cache_before_step=settings.taylorseer_warmup,
            max_order=settings.taylorseer_order,
            taylor_factors_dtype=transformer.dtype,
            cache_identifiers=list(attention_patterns(attachment, transformer)),
        )

    return DiffusersCache("taylorseer", "attention", attachment, clock, make_config)
