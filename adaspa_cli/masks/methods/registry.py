"""From a method's settings to its policy, which they name."""

import pkgutil
from typing import Any

from adaspa_cli.config.methods import AlgorithmConfig, SearchingConfig
from adaspa_cli.masks.policy import MaskPolicy


def make_policy(config: AlgorithmConfig, steps: int, stages: tuple[int, ...] = ()) -> MaskPolicy:
    """Return the policy of a run with ``steps`` denoising steps; ``stages`` as :attr:`MaskPolicy.stages`.

    Raises:
        ConfigError: a search step is beyond the last step.
    """
    kind: Any = pkgutil.resolve_name(config.policy)
    searches = isinstance(config, SearchingConfig)
    policy: MaskPolicy = kind.of(config, steps, stages) if searches else kind.of(config, steps)
    return policy
