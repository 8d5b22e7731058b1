"""The processes of a run: how they connect, and what they exchange besides tensors.

Tensors go by NCCL between GPUs and by gloo between CPUs, with a time-out. Everything else is JSON in the store by which
the processes met: what waits there, such as for the first of them to write a video, may take as long as it likes, and
can be interrupted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from adaspa_cli.distributed.failure import LostContactError
from adaspa_cli.distributed.place import Place
from adaspa_cli.distributed.team import Team
from adaspa_cli.distributed.teams import Teams
from adaspa_cli.errors import BackendError

_EVERY = 0.02  # seconds between looks into the store


@dataclass
class World:
    """This process among those of a run; without arguments it is the only one.

    Attributes:
        place: of this process.
        teams: that it belongs to.
        device: what it runs on; None where the settings alone decide.
    """

    place: Place = field(default_factory=lambda: Place(0, 1, 0))
    teams: Teams = field(default_factory=Teams)
    device: str | None = None
    _store: Any = None
    _told: int = 0

    @property
    def leads(self) -> bool:
        """Whether it plans, writes files and prints."""
        return self.place.leads

    def tell(self, message: Any) -> None:
        """Send the other processes a value that JSON can hold; called by the leader."""
        if self._store is not None:
            self._told += 1
            self._store.set(f"told/{self._told}", json.dumps(message))

    def hear(self) -> Any:
        """Wait for the next value from the leader."""
        self._told += 1
        return self._wait(f"told/{self._told}")

    def collect(self, name: str, own: Any) -> list[Any]:
        """The values of all processes, by rank, for the leader; nothing for the others. ``name`` is used once."""
        if self._store is None:
            return [own]
        if not self.leads:
            self._store.set(f"{name}/{self.place.rank}", json.dumps(own))
            return []
        others = []
        for rank in range(1, self.place.size):
            others.append(self._wait(f"{name}/{rank}"))
            self._store.delete_key(f"{name}/{rank}")
        return [own, *others]

    def first_to_fail(self) -> bool:
        """Whether no other process has said so; the first one speaks."""
        try:
            return self._store is None or self._store.add("failed", 1) == 1
        except RuntimeError:  # whoever holds the store is gone too
            return True

    def _wait(self, key: str) -> Any:
        while not self._store.check([key]):
            if self._store.check(["failed"]):
                raise LostContactError
            time.sleep(_EVERY)
        return json.loads(self._store.get(key))


@contextmanager
def join(place: Place, device: str, *, branches: int, timeout: float) -> Iterator[World]:
    """Connect to the other processes, and disconnect at the end.

    Args:
        place: of this process, which torchrun started.
        device: as the settings have it.
        branches: guidance branches that run at the same time.
        timeout: seconds after which an exchange of tensors fails.

    Raises:
        BackendError: there is no GPU for this process.
    """
    on_gpu = device != "cpu"
    if on_gpu and place.local >= torch.cuda.device_count():
        raise BackendError(
            f"{place.size} processes for one video need a GPU each, and this machine has {torch.cuda.device_count()}",
            hint="start fewer processes, or use --device cpu",
        )
    if on_gpu:
        torch.cuda.set_device(place.local)
    patience = timedelta(seconds=timeout)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=patience)
    store = dist.distributed_c10d._get_default_store()
    teams = Teams.of(place.rank, place.size, branches, patience)
    for team in teams:
        _connect(team, torch.device(f"cuda:{place.local}" if on_gpu else "cpu"))
    world = World(place, teams, f"cuda:{place.local}" if on_gpu else "cpu", store)
    yield world
    world.collect("left", None)  # the leader may hold the store, and stays until all have heard it
    # Not after an error: members may be gone, and leaving the group would wait for them.
    dist.destroy_process_group()


def _connect(team: Team, device: torch.device) -> None:
    """Exchange something in every way there is: the first time takes seconds, which would count as a step's."""
    x = torch.zeros(team.size, device=device)
    if not team.alone:
        team.gather(team.sum(x), [len(x)] * team.size)
        team.broadcast(x)
        team.all_to_all(x, [1] * team.size, torch.empty_like(x), [1] * team.size).wait()
