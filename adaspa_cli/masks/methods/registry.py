"""From a method's settings to its policy: the one list of policies."""

from collections.abc import Callable, Mapping
from typing import Any

from adaspa_cli.config.methods import (
    AdaSpaConfig,
    AlgorithmConfig,
    DiffusersConfig,
    FrameRegionConfig,
    FullConfig,
    MInferenceConfig,
    SolAttnConfig,
    SparseVideoGenConfig,
)
from adaspa_cli.masks.methods.adaspa import AdaSpa
from adaspa_cli.masks.methods.frame_region import FrameRegion
from adaspa_cli.masks.methods.full import Full
from adaspa_cli.masks.methods.minference import MInference
from adaspa_cli.masks.methods.sol_attn import SolAttn
from adaspa_cli.masks.methods.sparse_videogen import SparseVideoGen
from adaspa_cli.masks.policy import MaskPolicy

POLICIES: Mapping[type[AlgorithmConfig], Callable[[Any, int], MaskPolicy]] = {
    AdaSpaConfig: AdaSpa.of,
    FullConfig: Full.of,
    DiffusersConfig: Full.of,
    SparseVideoGenConfig: SparseVideoGen.of,
    MInferenceConfig: MInference.of,
    FrameRegionConfig: FrameRegion.of,
    SolAttnConfig: SolAttn.of,
}


def make_policy(config: AlgorithmConfig, steps: int) -> MaskPolicy:
    """Return the policy of a run with ``steps`` denoising steps.

    Raises:
        ConfigError: a search step lies beyond the last step.
    """
    return POLICIES[type(config)](config, steps)
