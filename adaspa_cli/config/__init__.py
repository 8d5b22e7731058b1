"""Configuration: what can be set, where presets lie, and what wins over what."""

from adaspa_cli.config.load import Resolved, preset_names, resolve
from adaspa_cli.config.schema import GenerateConfig, MethodConfig, ModelConfig, OutputConfig, SamplingConfig

__all__ = [
    "GenerateConfig",
    "MethodConfig",
    "ModelConfig",
    "OutputConfig",
    "Resolved",
    "SamplingConfig",
    "preset_names",
    "resolve",
]
