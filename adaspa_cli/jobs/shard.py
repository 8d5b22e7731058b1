"""A process's share of the jobs of one run, told by ``--shard``. Imports nothing heavy.

Every process lists the whole run and fixes its names before it takes its share, so the shares do not depend on when the
processes begin, and a run that was begun by four processes can be ended by one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from adaspa_cli.errors import BackendError, ConfigError

AUTO = "auto"
# Who starts the processes, and what it calls the number of a process, the count of them, and the number on its machine.
LAUNCHERS = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))
_VISIBLE = "CUDA_VISIBLE_DEVICES"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """One of several shares.

    Attributes:
        number: which one, from 1.
        of: how many there are.
        local: number of this process on its machine, from 0; None if unknown.
    """

    number: int
    of: int
    local: int | None = None

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def take(self, items: Sequence[Item]) -> list[Item]:
        """The share of a list that is the same in all processes."""
        return list(items[self.number - 1 :: self.of])


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Read ``I/N``, or ``auto``: the process's number in the environment of torchrun or else of SLURM.

    Raises:
        ConfigError: it is neither, or the environment says nothing of several processes.
    """
    if text == AUTO:
        return _of_environment(environment)
    number, of = (_whole(part) for part in (text + "/").split("/")[:2])
    if text != f"{number}/{of}" or not 1 <= number <= of:
        raise ConfigError(
            f"--shard takes I/N, I from 1 to N, or {AUTO}, got '{text}'", hint="--shard 1/4 to --shard 4/4"
        )
    return Shard(number, of)


def _of_environment(environment: Mapping[str, str]) -> Shard:
    for rank, size, local in LAUNCHERS:
        if rank in environment and size in environment:
            number, of = _whole(environment[rank]), _whole(environment[size])
            if not 0 <= number < of:
                raise ConfigError(f"--shard {AUTO}: {rank}={environment[rank]} and {size}={environment[size]}")
            return Shard(number + 1, of, _whole(environment[local]) if environment.get(local) else None)
    names = " nor ".join(f"{rank} and {size}" for rank, size, _ in LAUNCHERS)
    raise ConfigError(
        f"--shard {AUTO}: the environment has neither {names}",
        hint="start it with torchrun or srun, or say --shard I/N",
    )


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() else -1


def take_gpu(shard: Shard | None, device: str) -> None:
    """Leave the process the GPU of its number on the machine alone, where it sees several. Before CUDA is used.

    The GPU is hidden from the process, not named in its settings: a video is the same on each of them, and ``--resume``
    knows it by its settings.

    Args:
        device: ``--device``; with a GPU's number nothing is done.

    Raises:
        BackendError: the machine has fewer GPUs than processes.
    """
    if shard is None or shard.local is None or device not in ("auto", "cuda"):
        return
    import torch

    count = torch.cuda.device_count()
    if count <= 1:  # none, or the one that the launcher gave it
        return
    if shard.local >= count:
        raise BackendError(
            f"--shard {AUTO}: this is process {shard.local + 1} of its machine, which has {count} GPUs",
            hint="start one process for each GPU",
        )
    visible = os.environ.get(_VISIBLE)
    os.environ[_VISIBLE] = str(shard.local) if visible is None else visible.split(",")[shard.local].strip()
