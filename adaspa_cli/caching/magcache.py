"""MagCache (arXiv 2506.09045), by diffusers: steps are skipped where the residual's magnitude is known to stay.

How the magnitude goes from step to step is measured once per checkpoint and schedule, by :class:`Calibration`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaspa_cli.caching.diffusers_cache import DiffusersCache
from adaspa_cli.caching.step_cache import StepCache
from adaspa_cli.config.caches import MagCacheConfig
from adaspa_cli.hooks.clock import StepClock
from adaspa_cli.models.attachment import Attachment


def magcache(settings: MagCacheConfig, attachment: Attachment, clock: StepClock) -> DiffusersCache:
    """A step skips all blocks and adds their last residual, until the error predicted by the ratios is too large.

    The residual of the video tokens stays in memory, one for each guidance branch.
    """
    from diffusers import MagCacheConfig

    def make_config(steps: int, _transformer: Any) -> Any:
        return MagCacheConfig(
            threshold=settings.magcache_threshold,
            max_skip_steps=settings.magcache_max_skips,
            retention_ratio=settings.magcache_retention,
            num_inference_steps=steps,
            mag_ratios=list(settings.magcache_ratios),
        )

    return DiffusersCache("magcache", "block", attachment, clock, make_config)


class Calibration(StepCache):
    """Skips nothing and measures MagCache's ratios: mean over the video tokens of |r_t| / |r_(t-1)|, Euclidean norms
    of the residual r of all blocks (MagCache, magnitude ratio). The first step's is 1.

    diffusers can measure them too, but prints them to the standard output. Of guidance in two passes the first,
    conditional one counts.
    """

    def __init__(self, attachment: Attachment, clock: StepClock) -> None:
        super().__init__("magcache", "block", attachment, clock)
        self._family, self._over_tokens = attachment.family, attachment.over_tokens
        self._input: Tensor | None = None
        self._norms: Tensor | None = None  # [B, N] of the step before
        self._ratios: list[Tensor] = []
        self._hooks = [
            attachment.blocks[0].register_forward_pre_hook(self._before, with_kwargs=True),
            attachment.blocks[-1].register_forward_hook(self._after),
        ]

    def start(self, steps: int) -> None:  # noqa: ARG002
        self.release()
        self._ratios = []

    def release(self) -> None:
        self._input = self._norms = None

    def _before(self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.work.passes[self._clock.step] == 1:
            self._input = self._family.block_input(args, kwargs)[0]

    def _after(self, _block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if self._input is None:
            return
        video = self._family.block_output(output)[0]
        norms = torch.linalg.vector_norm(video - self._input, dim=-1, dtype=torch.float32)
        before, self._norms, self._input = self._norms, norms, None
        ratios = torch.ones_like(norms) if before is None else norms / before.clamp_min(1e-8)
        total, count = self._over_tokens(torch.stack([ratios.sum(), torch.ones_like(ratios).sum()]))
        self._ratios.append(total / count)

    def details(self) -> dict[str, Any]:
        return {"calibration": True, "ratios": [round(float(ratio), 5) for ratio in self._ratios]}

    def remove(self) -> None:
        super().remove()
        for hook in self._hooks:
            hook.remove()
