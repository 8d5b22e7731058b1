"""Full attention: the baseline that every other method is measured against."""

from dataclasses import dataclass

from torch import Tensor

from adaspa_cli.masks.policy import Action, Call, FoundMask


@dataclass(frozen=True)
class Full:
    """Dense attention at every step, by the best dense path of the machine."""

    block_size: tuple[int, int] = (64, 64)

    def action(self, call: Call, last_search: int | None) -> Action:  # noqa: ARG002
        return Action.DENSE

    def keeps_lse(self, step: int) -> bool:  # noqa: ARG002
        return False

    def search(self, call: Call, block_sums: Tensor) -> FoundMask:
        raise NotImplementedError("full attention searches no mask")
