"""``--weights-dtype``: the transformer's weights in fewer bits; it computes in the model's dtype all the same.

That is for the linear layers of the blocks, which hold nearly all weights. ``fp8`` keeps e4m3 numbers without a scale
and casts each layer's when it runs (diffusers' layerwise casting), ``int8`` has a scale for each row (torchao), ``nf4``
one for each 64 numbers (bitsandbytes).

Weights are quantised where the model is held, after LoRAs are fused, one layer after another on the run's device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from adaspa_cli.models.family import Family

_NF4_BLOCK = 64  # numbers that share a scale, all of one row: layers of other widths are left as they are


def quantise_weights(family: Family, pipe: Any, kind: str, device: torch.device) -> None:
    """Quantise the weights of a pipeline's transformers in place.

    Args:
        family: of the pipeline.
        pipe: not yet placed, or on its device.
        kind: ``fp8``, ``int8`` or ``nf4``; its package is there.
        device: where the run is.
    """
    quantise = {"fp8": _to_fp8, "int8": _to_int8, "nf4": _to_nf4}[kind]
    for transformer in family.transformers(pipe):
        for block in family.blocks(transformer):
            for parent, name, layer in list(_linears(block)):
                setattr(parent, name, quantise(layer, device))


def _linears(block: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The linear layers of a block, each with its parent and its name in there."""
    for parent in block.modules():
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear:
                yield parent, name, layer


def _to_fp8(layer: nn.Linear, _device: torch.device) -> nn.Module:
    from diffusers.hooks import apply_layerwise_casting_hook

    apply_layerwise_casting_hook(layer, torch.float8_e4m3fn, layer.weight.dtype, non_blocking=False)
    return layer


def _to_int8(layer: nn.Linear, device: torch.device) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    held = layer.weight.device
    quantize_(layer.to(device), Int8WeightOnlyConfig())
    return layer.to(held)


def _to_nf4(layer: nn.Linear, device: torch.device) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    if layer.in_features % _NF4_BLOCK:
        return layer
    held = layer.weight.device
    made = Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    made.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    made.bias = layer.bias
    moved: nn.Module = made.to(device).to(held).eval()  # moving it quantises it
    return moved
