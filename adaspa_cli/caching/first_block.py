"""First Block Cache, by diffusers: where the first block changes little, the others add what they added before."""

from __future__ import annotations

from typing import Any

from adaspa_cli.caching.diffusers_cache import DiffusersCache
from adaspa_cli.config.caches import FirstBlockConfig
from adaspa_cli.hooks.clock import StepClock
from adaspa_cli.models.attachment import Attachment


def first_block_cache(settings: FirstBlockConfig, attachment: Attachment, clock: StepClock) -> DiffusersCache:
    """At each step the first block is computed; the rest is skipped if its residual moved by less than the threshold.

    The move is the mean absolute difference to the residual of the last full step, over that residual's mean
    (ParaAttention, "dynamic caching"). Two residuals of the video's and the text's size stay in memory.
    """
    from diffusers import FirstBlockCacheConfig

    def make_config(_steps: int, _transformer: Any) -> Any:
        return FirstBlockCacheConfig(threshold=settings.first_block_threshold)

    return DiffusersCache("first-block", "block", attachment, clock, make_config)
