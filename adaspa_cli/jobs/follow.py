"""The processes that make videos together with the leader, which plans and writes them."""

from __future__ import annotations

import dataclasses

from adaspa_cli.config import Resolved
from adaspa_cli.config.schema import ModelConfig
from adaspa_cli.distributed.world import World
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.sampling.memory import memory_errors
from adaspa_cli.sampling.run import session


class Silent:
    """An :class:`~adaspa_cli.sampling.run.Observer` that reports nothing."""

    def loading(self, model: str) -> None: ...
    def note(self, line: str) -> None: ...
    def started(self, videos: int, steps: int, backend: str | None) -> None: ...
    def video(self, number: int, prompt: str, seed: int) -> None: ...
    def phase(self, phase: str) -> None: ...
    def step_done(self, step: int) -> None: ...
    def decoding(self) -> None: ...


def placed(model: ModelConfig, world: World) -> ModelConfig:
    """The model on the device of this process."""
    return model if world.device is None else dataclasses.replace(model, device=world.device)


def follow(resolved: Resolved, world: World) -> None:
    """Make what the leader makes, until it has no more.

    Raises:
        AdaspaError: as the leader's.
    """
    if not world.hear():
        return  # all videos are there
    config = resolved.config
    with memory_errors(config, together=True):
        pipe = load_pipeline(placed(config.model, world), decode=config.decodes, linear=config.method.linear)
        with session(pipe, resolved, Silent(), world) as at_work:
            at_work.follow()
