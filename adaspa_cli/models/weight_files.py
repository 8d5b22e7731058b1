"""Which files of a checkpoint hold its weights: the plain ones, or a variant such as ``fp16``."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from adaspa_cli.errors import ModelError

# PART/model.safetensors, model-00001-of-00002.safetensors, and with a variant model.fp16.safetensors,
# model.fp16-00001-of-00002.safetensors and model-00001-of-00002.fp16.safetensors
_WEIGHTS = re.compile(
    r"(?P<part>[^/]+)/(?:diffusion_pytorch_model|pytorch_model|model)(?:-\d{5}-of-\d{5})?"
    r"(?:\.(?P<variant>[\w-]+?))?(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)"
)
_OF_DTYPE = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def variant_of(files: Iterable[str], dtype: torch.dtype, model: str) -> str | None:
    """The variant to load; None where every part has plain weights, or none at all.

    Args:
        files: paths of the checkpoint's files below its folder, with ``/``.
        dtype: what the model will run in; of several variants its own is loaded.
        model: what the message calls the checkpoint.

    Raises:
        ModelError: there are several variants, and none of them is that of the dtype.
    """
    variants: dict[str, set[str | None]] = {}
    for file in files:
        if found := _WEIGHTS.fullmatch(file):
            variants.setdefault(found["part"], set()).add(found["variant"])
    missing = [{name for name in names if name is not None} for names in variants.values() if None not in names]
    if not missing:
        return None
    common = set.intersection(*missing)
    if len(common) == 1:
        return common.pop()
    if _OF_DTYPE[dtype] in common:
        return _OF_DTYPE[dtype]
    held = ", ".join(sorted(set.union(*missing)))
    usable = [name for name, variant in (("float16", "fp16"), ("bfloat16", "bf16")) if variant in common]
    hint = f"use --dtype {usable[0]}" if usable else "keep the files of one variant"
    raise ModelError(f"{model} has only the weight variants {held}, no plain weights", hint=hint)
