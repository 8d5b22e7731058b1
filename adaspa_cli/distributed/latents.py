"""The same latents everywhere after each denoising step, whatever kernels each process chose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from adaspa_cli.distributed.team import Team
from adaspa_cli.hooks.override import Override


def same_latents(scheduler: Any, team: Team) -> Override:
    """Let every process continue with the output of the first one's scheduler, until the override is restored."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            for value in result if isinstance(result, tuple) else result.values():
                if isinstance(value, Tensor):
                    team.broadcast(value)
            return result

        return step

    return Override(scheduler, "step", wrap)
