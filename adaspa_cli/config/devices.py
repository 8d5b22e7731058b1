"""The device of a run, and what cannot run on it, as far as that is known without torch."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

from adaspa_cli.config.schema import MethodConfig, ModelConfig
from adaspa_cli.errors import BackendError

_ELSEWHERE = "--plan --device cuda estimates memory for a GPU that is not here"


def check_device(model: ModelConfig, method: MethodConfig, *, planned: bool = False) -> None:
    """Refuse what needs a GPU on a machine that can have none, and what a GPU does not run.

    Says nothing where only torch can tell: who loads the model then checks.

    Args:
        model: of the run.
        method: of the run.
        planned: whether the run is only planned, perhaps for the GPU of another machine.

    Raises:
        BackendError: with what runs there.
    """
    if model.device.startswith("cuda") and not planned and not may_have_gpu():
        raise no_device(model.device, 0)
    kind = known_kind(model.device)
    if kind is None:
        return
    check_offload(model.offload, kind)
    if method.linear == "fp8" and kind == "cpu":
        raise BackendError(
            "linear 'fp8' needs a GPU, and this machine has none", hint=f"use --linear model; {_ELSEWHERE}"
        )
    if method.attention_backend == "cpu" and kind == "cuda":
        raise wrong_backend("cpu", model.device)
    if method.attention_backend == "triton" and kind == "cpu" and not os.environ.get("TRITON_INTERPRET"):
        reason = "on a CPU its kernels run only with TRITON_INTERPRET=1 set before the start"
        raise wrong_backend("triton", "cpu", reason)


def known_kind(device: str) -> str | None:
    """``cpu`` or ``cuda``, for a setting of the device; None where only torch can tell."""
    if device != "auto":
        return device.partition(":")[0]
    return None if may_have_gpu() else "cpu"


def may_have_gpu() -> bool:
    """Whether torch might find a GPU: for that there must be a driver."""
    if sys.platform != "linux" or Path("/dev/kfd").exists():
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def check_offload(offload: str, kind: str) -> None:
    """Refuse to hold weights elsewhere than on the GPU where there is none; raises BackendError."""
    if offload != "none" and kind != "cuda":
        raise BackendError(
            f"--offload {offload} needs a GPU, and the run is on {kind}",
            hint=f"drop --offload; {_ELSEWHERE}",
        )


def no_device(device: str, count: int) -> BackendError:
    """The requested GPU is not among the ``count`` GPUs of the machine."""
    return BackendError(f"--device {device}: this machine has {count} CUDA devices", hint="use --device auto")


def wrong_backend(name: str, device: str, reason: str | None = None) -> BackendError:
    """The requested attention backend cannot run on a device."""
    why = "" if reason is None else f": {reason}"
    elsewhere = name == "triton" and device != "cpu"
    hint = "use --device cpu, or --attention-backend reference to check results"
    return BackendError(
        f"attention backend '{name}' cannot run on {device}{why}",
        hint=hint if elsewhere else "use --attention-backend auto",
    )


def cpu_name() -> str:
    """The processor's name, for people."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "unknown")


def machine_memory() -> tuple[int | None, int | None]:
    """Bytes of the machine's memory that are free, and all of them; None where nothing tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        known = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    except (OSError, ValueError):
        return None, None
    return known.get("MemAvailable"), known.get("MemTotal")
