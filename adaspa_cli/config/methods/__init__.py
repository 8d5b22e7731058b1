"""Methods: one module with the settings of each, and :data:`Algorithm`, the one list of them.

Adding a method: its settings in a module here and in the list, its policy, which the settings name, in
``adaspa_cli/masks/methods``, and a preset in ``configs/methods``.
"""

from typing import get_args

from adaspa_cli.config.methods.adaspa import AdaSpaConfig
from adaspa_cli.config.methods.base import (
    AlgorithmConfig,
    DenseConfig,
    EstimatingConfig,
    SearchingConfig,
    SparseConfig,
)
from adaspa_cli.config.methods.diffusers import DiffusersConfig
from adaspa_cli.config.methods.frame_region import FrameRegionConfig
from adaspa_cli.config.methods.full import FullConfig
from adaspa_cli.config.methods.minference import MInferenceConfig
from adaspa_cli.config.methods.sol_attn import SolAttnConfig
from adaspa_cli.config.methods.sparse_videogen import SparseVideoGenConfig

Algorithm = (
    AdaSpaConfig
    | FullConfig
    | DiffusersConfig
    | SparseVideoGenConfig
    | MInferenceConfig
    | FrameRegionConfig
    | SolAttnConfig
)


def names_of(kind: type[AlgorithmConfig] = AlgorithmConfig) -> tuple[str, ...]:
    """Names of all methods of one kind."""
    return tuple(config.name for config in get_args(Algorithm) if issubclass(config, kind))


DENSE = names_of(DenseConfig)

__all__ = [
    "DENSE",
    "AdaSpaConfig",
    "Algorithm",
    "AlgorithmConfig",
    "DenseConfig",
    "DiffusersConfig",
    "EstimatingConfig",
    "FrameRegionConfig",
    "FullConfig",
    "MInferenceConfig",
    "SearchingConfig",
    "SolAttnConfig",
    "SparseConfig",
    "SparseVideoGenConfig",
    "names_of",
]
