"""The work of a model's linear layers, counted on its architecture: no weight is made, and none is read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from accelerate import init_empty_weights
from torch import nn

from adaspa_cli.config.architecture import Architecture
from adaspa_cli.models.family import Family

# Linear layers that don't multiply each token of the video: modulation takes one vector, and text is short.
_NOT_TOKENS = ("norm", "add_", "context", "attn2.to_k", "attn2.to_v")


def weights_per_token(family: Family, architecture: Architecture) -> tuple[int, ...]:
    """Of each transformer the parameters of linear layers in its blocks that multiply every token."""
    kind, counts = family.classes().transformer, []
    for config in architecture.transformers.values():
        with init_empty_weights():
            blocks = family.blocks(kind.from_config(dict(config)))
        counts.append(sum(_per_token(block) for block in blocks))
    return tuple(counts)


def _per_token(block: nn.Module) -> int:
    return sum(
        module.weight.numel()
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in _NOT_TOKENS)
    )


def first_steps(family: Family, architecture: Architecture, flow_shift: float | None, steps: int) -> tuple[int, ...]:
    """The first step of each transformer after the first, by the scheduler that the run will have."""
    if len(architecture.transformers) < 2:
        return ()
    import diffusers

    settings = dict(architecture.parts["scheduler"])
    if flow_shift is not None:
        settings |= {key: flow_shift for key in ("shift", "flow_shift") if key in settings}
    scheduler = getattr(diffusers, settings["_class_name"]).from_config(settings)
    pipe: Any = SimpleNamespace(
        scheduler=scheduler,
        config=SimpleNamespace(boundary_ratio=architecture.arguments.get("boundary_ratio")),
        **dict.fromkeys(architecture.transformers, True),
    )
    return family.stages(pipe, steps)
