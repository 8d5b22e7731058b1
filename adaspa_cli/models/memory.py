"""The peak memory of denoising by the settings: weights, activations and masks; estimates. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.mask_size import kept_bytes
from adaspa_cli.config.architecture import Architecture, architecture_of
from adaspa_cli.config.catalogue import BYTES
from adaspa_cli.config.kept_blocks import longest_row
from adaspa_cli.config.load import resolve
from adaspa_cli.config.methods import SearchingConfig
from adaspa_cli.config.methods.adaspa import AdaSpaConfig
from adaspa_cli.config.names import FP8_OFFLOADS, OFFLOADS
from adaspa_cli.config.presets import DEFAULT_METHOD
from adaspa_cli.config.schema import GenerateConfig
from adaspa_cli.config.weights import device_bytes, held_weights, largest_alone, main_bytes, part_bytes

EXCHANGED = 6  # tensors of the size of the hidden states: q, k and v, sent and received


@dataclass(frozen=True)
class Memory:
    """Estimated bytes on the device that denoises; on each of them, where several make a video.

    Attributes:
        weights: there at the same time, with the offload mode of the run; None where nothing says how many there are.
        activations: of the transformer's pass.
        masks: of all layers and branches, with the LSE that a later search needs; 0 where no call reuses a mask.
        alone: of what is on the device before or after: the largest part beside the transformers, as a text encoder
            with offloading.
        everything: of all weights, as offloading keeps them in main memory; None where nothing says how many there are.
    """

    weights: int | None
    activations: int
    masks: int
    alone: int
    everything: int | None

    @property
    def total(self) -> int | None:
        """Peak."""
        return None if self.weights is None else max(self.weights + self.activations + self.masks, self.alone)


def estimate_memory(
    config: GenerateConfig, architecture: Architecture, prompt: str = "", itemsize: int = BYTES
) -> Memory:
    """The peak of a run, whatever the machine.

    Args:
        config: of the run.
        architecture: of its model.
        prompt: its number of words gives the number of text tokens.
        itemsize: bytes of a number of the model's dtype.

    Raises:
        ConfigError: an exact search step is beyond the last step.
    """
    facts, sampling = architecture.facts, config.sampling
    offload, linear = config.model.offload, config.method.linear
    layout = token_layout(config, architecture, prompt)
    parts = part_bytes(config.model, architecture, itemsize, decodes=config.decodes)
    held = device_bytes(parts or {}, linear, architecture, itemsize)
    apart = config.parallel.cfg_parallel
    branches = 2 if facts.guided(sampling) and not apart else 1
    rows = branches if facts.joins_branches else 1
    states = facts.compiled_states if config.model.compile else facts.pass_states
    share = max(1, config.parallel.gpus // (2 if apart else 1))  # GPUs that share the tokens of a pass
    if share > 1:
        states = (states + EXCHANGED) / share
    return Memory(
        weights=None if parts is None else held_weights(held, offload, architecture),
        activations=round(states * rows * layout.tokens * architecture.channels * itemsize),
        masks=_mask_bytes(config, architecture, layout, 1 if config.method.share_cfg_masks else branches) // share,
        alone=largest_alone(held, offload, architecture, itemsize),
        everything=None if parts is None else main_bytes(parts, linear, architecture),
    )


def token_layout(config: GenerateConfig, architecture: Architecture, prompt: str) -> TokenLayout:
    """The token sequence of a video; the number of text tokens is about that of a prompt with so many words."""
    facts, order = architecture.facts, config.method.order
    grid = architecture.video_grid(config.sampling)
    return TokenLayout(*grid, facts.joint_text(prompt), "first" if facts.joins_branches else "last", order)


def _mask_bytes(config: GenerateConfig, architecture: Architecture, layout: TokenLayout, branches: int) -> int:
    """Bytes of the masks that later calls use, of the search step whose masks are the largest, and of the LSE of the
    searches. Where two transformers share a run, the masks of the first are freed before the second has its own."""
    method, steps = config.method.algorithm, config.sampling.steps
    if not isinstance(method, SearchingConfig) or architecture.heads is None:
        return 0
    searches = method.mask_steps(steps)
    rows = architecture.heads * layout.blocks(method.block_size)
    video, text = (len(of(method.block_size)) for of in (layout.video_blocks, layout.text_blocks))
    budget = method.spreading if isinstance(method, AdaSpaConfig) else "row"
    used = {sparsity for step, sparsity in enumerate(method.sparsities(steps)) if step in searches}
    widths = [longest_row(sparsity, video, budget) + text if sparsity else 1 for sparsity in used]
    masks = max(kept_bytes(rows, width, video + text) for width in widths)
    searches_again = method.lse_cache and len(searches) > 1 and config.method.mask_file.masks is None
    lse = 4 * layout.tokens * architecture.heads if searches_again else 0
    return architecture.layers // len(architecture.transformers) * branches * (masks + lse)


def memory_by_offload(model: str, linear: str = "model") -> dict[str, Memory]:
    """The peak of a model preset's own video with the default method, for each ``--offload`` that goes with ``linear``.

    Raises:
        ModelError: there is no such preset.
    """
    flags = {"model": model} if linear == "model" else {"model": model, "linear": linear, "dtype": "bfloat16"}
    config = resolve(flags, default_method=DEFAULT_METHOD, download=False).config
    architecture = architecture_of(config.model)
    found = {}
    for offload in OFFLOADS if linear == "model" else FP8_OFFLOADS:
        own = dataclasses.replace(config, model=dataclasses.replace(config.model, offload=offload))
        found[offload] = estimate_memory(own, architecture)
    return found
