"""The peak memory of a run before it runs: weights, activations and masks; all estimates, of denoising only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.layout import INT16_BLOCKS
from adaspa_cli.config.catalogue import DENSE_STATES
from adaspa_cli.config.devices import machine_memory
from adaspa_cli.config.kept_blocks import kept_blocks
from adaspa_cli.forecast.steps import PlannedStep
from adaspa_cli.masks import MaskPolicy


@dataclass(frozen=True)
class MemoryForecast:
    """Estimated bytes on the device that denoises.

    Attributes:
        weights: there at the same time, with the offload mode of the run; None where nothing says how many there are.
        activations: of the transformer's pass.
        masks: of all layers and branches, with the LSE that a later search needs; 0 where no call reuses a mask.
        alone: of the largest part that is on the device while no transformer is, as a text encoder with offloading.
        available: bytes that the device has free now.
        device_total: bytes that it has.
    """

    weights: int | None
    activations: int
    masks: int
    alone: int
    available: int | None
    device_total: int | None

    @property
    def total(self) -> int | None:
        """Peak."""
        return None if self.weights is None else max(self.weights + self.activations + self.masks, self.alone)

    @property
    def fits(self) -> bool | None:
        """Whether that is less than what is free."""
        return None if self.total is None or self.available is None else self.total <= self.available


def activation_bytes(layout: TokenLayout, channels: int, rows: int, dtype: torch.dtype) -> int:
    """Bytes of a pass of ``rows`` videos in one call, beside weights and masks."""
    return DENSE_STATES * rows * layout.tokens * channels * dtype.itemsize


def mask_bytes(
    steps: Sequence[PlannedStep], policy: MaskPolicy, layout: TokenLayout, heads: int, layers: int, branches: int
) -> int:
    """Bytes of the masks of ``layers`` layers that later calls use, at their densest, and of the LSE of the searches.

    A mask holds 16-bit numbers of kept blocks, 32-bit ones in sequences of more than 32,768 blocks.
    """
    reused = [step for step in steps if step.plan is not None and step.plan.gives_mask]
    if not reused:
        return 0
    query_size, key_size = policy.block_size
    rows, columns = layout.blocks(query_size), len(layout.video_blocks(key_size))
    least = min(step.sparsity or 0.0 for step in reused)
    width = kept_blocks(least, columns) + len(layout.text_blocks(key_size)) if least else 1
    masks = rows * (width * (2 if layout.blocks(key_size) <= INT16_BLOCKS else 4) + 4)
    keeps = any(policy.keeps_lse(step.step) for step in reused)
    return layers * branches * heads * (masks + (layout.tokens * 4 if keeps else 0))


def device_memory(device: torch.device) -> tuple[int | None, int | None]:
    """Bytes that are free on a device, and those that it has; on a CPU of the machine. None where nothing tells."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    return machine_memory()
