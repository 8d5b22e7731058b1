"""The machine and the versions that a figure belongs to."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform

import torch

from adaspa_cli.config.devices import cpu_name
from adaspa_cli.report.schema import Machine
from adaspa_cli.version import __version__

_LIBRARIES = ("torch", "triton", "diffusers", "transformers", "accelerate")


def versions(*more: str) -> dict[str, str]:
    """Versions of adaspa, Python, the libraries that decide speed and numbers, and of ``more``; of those installed."""
    found = {"adaspa": __version__, "python": platform.python_version()}
    for name in (*_LIBRARIES, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def machine(device: torch.device) -> Machine:
    """The processor, and the GPU where one is used."""
    described = Machine(
        device=str(device),
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        system=f"{platform.system()} {platform.machine()}",
    )
    if device.type != "cuda":
        return described
    gpu = torch.cuda.get_device_properties(device)
    return dataclasses.replace(
        described, gpu=gpu.name, gpu_memory_bytes=gpu.total_memory, compute_capability=f"{gpu.major}.{gpu.minor}"
    )
