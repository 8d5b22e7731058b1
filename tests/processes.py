"""Real processes that share a folder, as forks of the test: they have all modules loaded."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch

_FORK = multiprocessing.get_context("fork")


def at_once(*targets: Callable[[], Any]) -> list[int]:
    """Run all at one time; returns their exit codes, negative for a signal."""
    processes = [_FORK.Process(target=_with_own_threads, args=(target,)) for target in targets]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return [process.exitcode if process.exitcode is not None else 999 for process in processes]


def _with_own_threads(target: Callable[[], Any]) -> None:
    """PyTorch replaces its pool of threads at the first use in a fork, and two threads at a time trip over that."""
    torch.set_num_threads(1)
    target()
