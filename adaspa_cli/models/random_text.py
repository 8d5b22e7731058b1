"""The replacement of the text encoders in a pipeline with random weights: noise that depends only on the prompt."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from adaspa_cli.config.families import text_tokens as text_tokens


def text_noise(text: str, *shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Random embeddings of a shape; the same for the same text."""
    random = torch.Generator("cpu").manual_seed(zlib.crc32(text.encode()))
    return torch.randn(shape, generator=random, dtype=torch.float32, device="cpu").to(device, dtype)
