"""Noise that a scheduler draws at its steps comes from the run's seed.

Pipelines draw the first noise from their generator, but not all of them hand it to the scheduler: HunyuanVideo's does
not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from adaspa_cli.hooks.override import Override


@contextmanager
def seeded_steps(scheduler: Any, generator: torch.Generator) -> Iterator[None]:
    """Within it every step of a scheduler draws from ``generator``, unless the pipeline gives it another one."""
    if "generator" not in inspect.signature(scheduler.step).parameters:
        yield
        return

    def seeded(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("generator") is None:
                kwargs["generator"] = generator
            return original(*args, **kwargs)

        return step

    override = Override(scheduler, "step", seeded)
    try:
        yield
    finally:
        override.restore()
