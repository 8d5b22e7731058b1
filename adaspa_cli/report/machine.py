"""The machine and the versions that a figure belongs to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adaspa_cli.version import __version__

_LIBRARIES = ("torch", "triton", "diffusers", "transformers", "accelerate")


def versions() -> dict[str, str]:
    """Versions of adaspa, Python and the libraries that decide speed and numbers."""
    found = {"adaspa": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """The processor, and the GPU where one is used."""
    described: dict[str, Any] = {
        "device": str(device),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described["gpu"] = properties.name
        described["gpu_memory_bytes"] = properties.total_memory
        described["compute_capability"] = f"{properties.major}.{properties.minor}"
    return described


def machine_line(described: Mapping[str, Any]) -> str:
    """What :func:`machine` found, in words."""
    what = described.get("gpu") or f"{described['cpu']}, threads: {described['threads']}"
    return f"{what} ({described['system']})"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "unknown")
