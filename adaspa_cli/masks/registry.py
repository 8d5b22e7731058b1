"""From a method's settings to its policy."""

from adaspa_cli.config.schema import MethodConfig
from adaspa_cli.masks.adaspa import AdaSpa
from adaspa_cli.masks.full import Full
from adaspa_cli.masks.policy import MaskPolicy


def make_policy(config: MethodConfig, steps: int) -> MaskPolicy:
    """Return the policy of a run with ``steps`` denoising steps.

    Raises:
        ConfigError: a search step lies beyond the last step.
    """
    if config.algorithm == "full":
        return Full()
    return AdaSpa(
        sparsity=config.sparsity,
        search_steps=config.schedule(steps),
        block_size=(config.block_size, config.block_size),
        head_adaptive=config.head_adaptive,
        lse_cache=config.lse_cache,
    )
