"""A cache of diffusers, switched on for each run and off after its last step."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from adaspa_cli.caching.step_cache import StepCache, Unit
from adaspa_cli.errors import RunError
from adaspa_cli.hooks.clock import StepClock
from adaspa_cli.models.attachment import Attachment


class DiffusersCache(StepCache):
    """``enable_cache`` of every transformer, with a configuration that is made for each run.

    Switching it on again drops the results of a run that an exception ended: diffusers itself forgets
    them only when a pipeline's call returns.
    """

    def __init__(
        self, name: str, unit: Unit, attachment: Attachment, clock: StepClock, make_config: Callable[[int, Any], Any]
    ) -> None:
        """
        Args:
            name: as the setting ``cache`` has it.
            unit: what the cache skips.
            make_config: the configuration of a run of that many steps, for a transformer.

        Raises:
            RunError: the transformer has a cache already.
        """
        self._transformers, self._make_config = attachment.transformers, make_config
        self._enabled = False
        self._refuse_others()
        super().__init__(name, unit, attachment, clock)

    def _refuse_others(self) -> None:
        if not self._enabled and any(transformer.is_cache_enabled for transformer in self._transformers):
            raise RunError(
                "a diffusers cache is already enabled on this transformer",
                hint="call pipe.transformer.disable_cache() first",
            )

    def start(self, steps: int) -> None:
        if self._clock.first:
            raise RunError(
                f"the cache '{self.name}' cannot follow a run that leaves out the scheduler's first "
                f"{self._clock.first} timesteps, as video-to-video does",
                hint="use a strength of 1, or no cache",
            )
        self._refuse_others()
        self.release()
        self._enabled = True
        for transformer in self._transformers:
            try:
                transformer.enable_cache(self._make_config(steps, transformer))
            except ValueError as error:  # blocks of a class that diffusers has not registered
                raise RunError(
                    f"diffusers has no cache '{self.name}' for this model: {error}",
                    hint="use --cache adacache, or none",
                ) from error

    def leave(self, transformer: int) -> None:
        _switch_off(self._transformers[transformer])

    def release(self) -> None:
        if self._enabled:
            for transformer in self._transformers:
                if transformer.is_cache_enabled:  # it was left otherwise
                    _switch_off(transformer)
            self._enabled = False


def _switch_off(transformer: Any) -> None:
    """Disable a cache whose results go at once: its hooks are in cycles, which live until Python looks for such."""
    from diffusers.hooks import HookRegistry

    HookRegistry.check_if_exists_or_initialize(transformer).reset_stateful_hooks()
    transformer.disable_cache()


def attention_patterns(attachment: Attachment, transformer: Any) -> tuple[str, ...]:
    """Patterns that match the names of the blocks' attention modules in a transformer and nothing else.

    The patterns that diffusers has by default match the text refiner of HunyuanVideo too (PAB), and nothing at all in
    CogVideoX (TaylorSeer).
    """
    wanted = {id(attention) for attention in attachment.attentions}
    names = (name for name, module in transformer.named_modules() if id(module) in wanted)
    return tuple(f"^{re.escape(name)}$" for name in names)
