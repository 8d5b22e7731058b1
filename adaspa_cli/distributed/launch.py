"""``--gpus N`` without torchrun: its elastic launcher starts N processes of the same command, and ends them together.

Importing it takes nothing; launching imports torch.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from adaspa_cli.errors import BackendError, RunError

_PATIENCE = "10"  # seconds until a process that does not end is killed; torch 2.11 and 2.12 keep to 30


def launch(processes: int, arguments: Sequence[str], device: str) -> int:
    """Run ``adaspa`` with these arguments in so many processes; returns the exit code.

    Args:
        device: as the settings have it.

    Raises:
        BackendError: there are fewer GPUs.
        RunError: a process was killed.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if device != "cpu" and torch.cuda.device_count() < processes:
        raise BackendError(
            f"--gpus {processes}: this machine has {torch.cuda.device_count()} CUDA devices",
            hint="use fewer, or --device cpu",
        )
    logging.disable(logging.ERROR)  # what torchrun says in many lines, we say in one
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _PATIENCE)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        local_addr="localhost",  # a machine need not find itself by its name
    )
    try:
        elastic_launch(config, sys.executable)("-m", "adaspa_cli", *arguments)
    except SignalException as error:
        return 130 if error.sigval == signal.SIGINT else 1
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            hint = "if the machine ran out of memory: fewer --frames, or a smaller --height and --width"
            if failure.exitcode == -signal.SIGABRT:  # NCCL ends a process so
                hint = "if an exchange timed out: --set collective_timeout=SECONDS"
            raise RunError(f"process {failure.local_rank + 1} of {processes} was killed ({name})", hint=hint) from None
        return int(failure.exitcode)
    return 0
