"""Pyramid Attention Broadcast (arXiv 2408.12588), by diffusers: attention outputs are reused at every few steps."""

from __future__ import annotations

from typing import Any

from adaspa_cli.caching.diffusers_cache import DiffusersCache, attention_patterns
from adaspa_cli.config.caches import PabConfig
from adaspa_cli.errors import RunError
from adaspa_cli.hooks.clock import StepClock
from adaspa_cli.models.attachment import Attachment


class PyramidAttentionBroadcast(DiffusersCache):
    """Attention of a block, its projections included, is computed at one of ``pab_range`` steps.

    One output a layer stays in memory: tokens x channels. diffusers keeps it without regard to guidance branches, so
    that a run with two passes a step would mix them up; such a run is refused. Joint attention over space, time and
    text counts as spatial attention, as diffusers has it.
    """

    def __init__(self, settings: PabConfig, pipe: Any, attachment: Attachment, clock: StepClock) -> None:
        from diffusers import PyramidAttentionBroadcastConfig

        lower, upper = settings.pab_timesteps
        self._timesteps: list[float] = []

        def make_config(_steps: int, transformer: Any) -> Any:
            self._timesteps = pipe.scheduler.timesteps.tolist()  # once: reading them one by one waits for the device
            return PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=settings.pab_range,
                spatial_attention_timestep_skip_range=(lower, upper),
                spatial_attention_block_identifiers=attention_patterns(attachment, transformer),
                current_timestep_callback=self._timestep,
            )

        super().__init__("pab", "attention", attachment, clock, make_config)

    def _timestep(self) -> float:
        """The timestep of the step in progress; read before each attention call."""
        step = self._clock.step
        if self.work.passes[step] > 1:
            raise RunError(
                "pab keeps one attention output per layer, but this run has two guidance branches per step",
                hint="use another cache, or guidance in one pass",
            )
        return self._timesteps[step]
