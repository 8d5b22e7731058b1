"""The peak memory of a run beside what its device has."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adaspa_cli.config.devices import machine_memory
from adaspa_cli.models.memory import Memory


@dataclass(frozen=True)
class MemoryForecast(Memory):
    """Estimated bytes on the device that denoises.

    Attributes:
        available: bytes that the device has free now.
        device_total: bytes that it has.
    """

    available: int | None
    device_total: int | None

    @property
    def fits(self) -> bool | None:
        """Whether the peak is less than what is free."""
        return None if self.total is None or self.available is None else self.total <= self.available


def device_memory(device: torch.device) -> tuple[int | None, int | None]:
    """Bytes that are free on a device, and those that it has; on a CPU of the machine. None where nothing tells."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    return machine_memory()
