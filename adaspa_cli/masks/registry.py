"""From a method's settings to its policy."""

from adaspa_cli.config.schema import MethodConfig
from adaspa_cli.masks.adaspa import AdaSpa
from adaspa_cli.masks.frame_region import FrameRegion
from adaspa_cli.masks.full import Full
from adaspa_cli.masks.minference import MInference
from adaspa_cli.masks.policy import MaskPolicy
from adaspa_cli.masks.sparse_videogen import SparseVideoGen


def make_policy(config: MethodConfig, steps: int) -> MaskPolicy:
    """Return the policy of a run with ``steps`` denoising steps.

    Raises:
        ConfigError: a search step lies beyond the last step.
    """
    if config.algorithm == "full":
        return Full()
    schedule = config.schedule(steps)
    if config.algorithm == "sparse-videogen":
        return SparseVideoGen(config.sparsity, schedule[0], (config.block_size, config.block_size))
    if config.algorithm == "minference":
        return MInference(config.sparsity, schedule[0], config.block_size)
    if config.algorithm == "frame-region":
        return FrameRegion(config.sparsity, schedule, config.block_size, lse_cache=config.lse_cache)
    return AdaSpa(
        sparsity=config.sparsity,
        search_steps=schedule,
        block_size=(config.block_size, config.block_size),
        head_adaptive=config.head_adaptive,
        lse_cache=config.lse_cache,
    )
