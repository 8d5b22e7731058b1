"""Configuration: all settings, the presets, and which source of a value wins."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaspa_cli.config.load import Resolved, resolve
    from adaspa_cli.config.schema import GenerateConfig, MethodConfig, ModelConfig, OutputConfig, SamplingConfig

__all__ = [
    "GenerateConfig",
    "MethodConfig",
    "ModelConfig",
    "OutputConfig",
    "Resolved",
    "SamplingConfig",
    "resolve",
]


def __getattr__(name: str) -> Any:
    """Import the dataclasses and YAML only when they are needed: `adaspa --help` shows only names."""
    if name not in __all__:
        raise AttributeError(f"module 'adaspa_cli.config' has no attribute '{name}'")
    from adaspa_cli.config import load, schema

    return getattr(load if name in ("Resolved", "resolve") else schema, name)
