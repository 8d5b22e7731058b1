"""The peak memory of a run before it runs: weights, activations and masks; all estimates, of denoising only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.layout import INT16_BLOCKS
from adaspa_cli.config import GenerateConfig
from adaspa_cli.config.architecture import BUNDLED, Architecture
from adaspa_cli.config.catalogue import DENSE_STATES, catalogue
from adaspa_cli.config.devices import machine_memory
from adaspa_cli.config.kept_blocks import kept_blocks
from adaspa_cli.forecast.steps import PlannedStep
from adaspa_cli.masks import MaskPolicy

_WEIGHTS = (".safetensors", ".bin")
_KEPT_BYTES = {"fp8": 1.0, "int8": 1.0, "nf4": 0.56}  # of a weight; nf4 with its scales


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


def part_bytes(config: GenerateConfig, architecture: Architecture, dtype: torch.dtype) -> dict[str, int] | None:
    """Bytes of the weights of each part of the pipeline as the run has them; None where nothing tells.

    A preset's card says how many parameters there are; of another local checkpoint the size of its files counts.
    """
    model = config.model
    billions = _card_of(model.weights)
    if billions is not None:
        found = {part: round(number * 1e9) * dtype.itemsize for part, number in billions.items()}
    else:
        folder = BUNDLED if model.is_bundled else Path(model.weights).expanduser()
        if not folder.is_dir():
            return None
        sizes = {path.name: _file_bytes(path) for path in folder.iterdir() if path.is_dir()}
        found = {part: size for part, size in sizes.items() if size}
    if model.transformer is not None:
        file = Path(model.transformer).expanduser()
        if file.is_file():
            found["transformer"] = file.stat().st_size
    if model.random_weights:
        found = _built(found, config, architecture)
    kept = _KEPT_BYTES.get(model.weights_dtype)
    if kept is not None:
        names = architecture.facts.transformers
        found |= {name: round(size / dtype.itemsize * kept) for name, size in found.items() if name in names}
    return found


def _card_of(weights: str) -> Mapping[str, float] | None:
    """Billions of parameters by part, of the preset that names these weights."""
    cards = (entry.card for entry in catalogue() if entry.checkpoint.lower() == weights.lower())
    return next((card.billions for card in cards if card is not None), None)


def _file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in _WEIGHTS)


def _built(parts: dict[str, int], config: GenerateConfig, architecture: Architecture) -> dict[str, int]:
    """Of those what a run with random weights builds: no text encoders, a VAE where it is needed, some layers."""
    facts, present = architecture.facts, architecture.transformers
    needs_vae = config.decodes or facts.images or facts.asks_vae
    wanted = {*present, *(["vae"] if needs_vae else [])}
    whole = {name: entry.layers for entry in catalogue() for name in [entry.checkpoint.lower()]}
    share = 1.0
    if config.model.layers is not None:
        share = architecture.layers / whole.get(config.model.weights.lower(), architecture.layers)
    return {part: round(size * share) if part in present else size for part, size in parts.items() if part in wanted}


def held_weights(parts: Mapping[str, int], offload: str, architecture: Architecture) -> int:
    """Bytes of weights that are on the device at once while the transformer runs."""
    if offload == "none":
        return sum(parts.values())
    transformers = [parts.get(name, 0) for name in architecture.transformers]
    if offload == "model":
        return max(transformers, default=0)
    layers = max(1, architecture.layers // max(1, len(transformers)))
    return 2 * max(transformers, default=0) // layers  # about a block at work, and the next one on its way


def largest_alone(parts: Mapping[str, int], offload: str, architecture: Architecture) -> int:
    """Bytes of the largest other part, where whole parts take turns on the device."""
    others = [size for part, size in parts.items() if part not in architecture.transformers]
    return max(others, default=0) if offload == "model" else 0


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
