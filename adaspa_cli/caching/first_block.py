"""First Block Cache of diffusers: where the first block's residual changes little, that of the others is reused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from adaspa_cli.caching.adacache import relative_distance
from adaspa_cli.caching.diffusers_cache import DiffusersCache
from adaspa_cli.config.caches import FirstBlockConfig
from adaspa_cli.hooks.clock import StepClock
from adaspa_cli.hooks.override import Override
from adaspa_cli.models.attachment import Attachment

_HEAD = "fbc_leader_block_hook"  # diffusers' name of the hook on the first block


class FirstBlockCache(DiffusersCache):
    """Computes the first block at each step, and skips the others if its residual changed by less than the threshold.

    The change is the mean absolute difference to the residual of the last full step, divided by that residual's mean
    (ParaAttention, "dynamic caching"). Two residuals of the video's and the text's size stay in memory.

    Where processes share the tokens, the means are over the tokens of all processes, so that all skip or none does.
    """

    def __init__(self, settings: FirstBlockConfig, attachment: Attachment, clock: StepClock) -> None:
        from diffusers import FirstBlockCacheConfig

        def make_config(_steps: int, _transformer: Any) -> Any:
            return FirstBlockCacheConfig(threshold=settings.first_block_threshold)

        self._threshold, self._attachment = settings.first_block_threshold, attachment
        super().__init__("first-block", "block", attachment, clock, make_config)

    def start(self, steps: int) -> None:
        super().start(steps)
        if not self._attachment.is_split:
            return
        for block in self._attachment.blocks:
            hook = block._diffusers_hook.get_hook(_HEAD)
            if hook is not None:  # no restore is needed: the hook is removed with the cache
                Override(hook, "_should_compute_remaining_blocks", self._decide_together(hook))

    def _decide_together(self, hook: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(_original: Callable[..., Any]) -> Callable[..., Any]:
            def should_compute(residual: Tensor) -> bool:
                before = hook.state_manager.get_state().head_block_residual
                if before is None:
                    return True
                return float(relative_distance(residual, before, self._attachment.over_tokens)) > self._threshold

            return should_compute

        return wrap
