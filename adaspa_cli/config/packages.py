"""Packages that some settings of a model need and adaspa doesn't install. Doesn't import torch."""

from __future__ import annotations

import importlib.util

from adaspa_cli.config.schema import ModelConfig
from adaspa_cli.errors import BackendError


def check_packages(model: ModelConfig) -> None:
    """Raise BackendError where a package is not installed that a model's settings need."""
    needed = [("--lora", "peft", "lora")] if model.loras else []
    by_dtype = {"int8": "torchao", "nf4": "bitsandbytes"}
    if model.weights_dtype in by_dtype:
        needed.append((f"--weights-dtype {model.weights_dtype}", by_dtype[model.weights_dtype], "quant"))
    if model.is_gguf:
        needed.append(("--transformer FILE.gguf", "gguf", "quant"))
    for what, package, extra in needed:
        if importlib.util.find_spec(package) is None:
            raise BackendError(f"{what} needs the package {package}", hint=f"pip install 'adaspa[{extra}]'")
