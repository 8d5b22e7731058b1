"""Real processes that make one video together, by gloo: forks of the test, so that all modules are loaded."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch.distributed as dist

from adaspa_cli.distributed.teams import Teams
from tests.processes import at_once


def together(size: int, folder: Path, case: Callable[[Teams], None], branches: int = 1) -> None:
    """Run a case in ``size`` processes; fails if it fails in one of them, whose traceback is on stderr."""
    store = folder / "store"
    store.unlink(missing_ok=True)
    assert at_once(*(partial(_member, rank, size, store, case, branches) for rank in range(size))) == [0] * size


def _member(rank: int, size: int, store: Path, case: Callable[[Teams], None], branches: int) -> None:
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(store), size), rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    case(Teams.of(rank, size, branches))
    dist.destroy_process_group()
