"""Which of several processes this one is, from torchrun's environment. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adaspa_cli.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """A process among those that make videos together.

    Attributes:
        rank: its number, from 0: the first plans, writes and speaks.
        size: how many there are.
        local: its number on its machine, which is that of its GPU.
    """

    rank: int
    size: int
    local: int

    @property
    def leads(self) -> bool:
        """Whether it plans, writes files and prints."""
        return self.rank == 0


def place_of(environment: Mapping[str, str]) -> Place | None:
    """The place that torchrun gave this process; None where it did not start it, or started it alone.

    Raises:
        ConfigError: the environment makes no sense.
    """
    texts = [environment.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if None in texts or "MASTER_ADDR" not in environment:
        return None
    try:
        place = Place(*(int(text or "") for text in texts))
    except ValueError:
        raise ConfigError(f"RANK, WORLD_SIZE, LOCAL_RANK are {', '.join(map(str, texts))}: no numbers") from None
    return place if place.size > 1 else None
