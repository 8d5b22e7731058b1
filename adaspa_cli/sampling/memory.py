"""Memory of a run: its peak, and the error if there is too little."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adaspa_cli.config.schema import GenerateConfig
from adaspa_cli.errors import OutOfMemoryError


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new peak on a GPU; a process's peak cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peak memory in bytes: of the whole process, and of this video on the GPU."""
    peak = {"process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        peak["gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    return peak


@contextmanager
def memory_errors(config: GenerateConfig, *, together: bool = False) -> Iterator[None]:
    """Turn an out-of-memory error into one line with the knob that helps.

    Args:
        config: of the run.
        together: whether several processes make the video, which goes without offloading.
    """
    smaller = "--vae-tiling, fewer --frames or a smaller --height and --width"
    try:
        yield
    except torch.OutOfMemoryError as error:
        group = "--offload group, " if config.method.linear == "model" else "--offload group without --linear fp8, "
        next_offload = {"none": "--offload model, ", "model": group, "group": ""}[config.model.offload]
        more = "more --gpus, one with --offload model, " if together else next_offload
        raise OutOfMemoryError("the GPU ran out of memory", hint=f"{more}{smaller}") from error
    except (MemoryError, RuntimeError) as error:
        # On a CPU torch raises a plain RuntimeError.
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError("the machine ran out of memory", hint=smaller) from error
