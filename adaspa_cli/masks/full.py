"""Full attention: the baseline that every other method is measured against."""

from dataclasses import dataclass

from adaspa_cli.masks.policy import Action, Call, MaskPolicy


@dataclass(frozen=True)
class Full(MaskPolicy):
    """Dense attention at every step, by the best dense path of the machine."""

    block_size: tuple[int, int] = (64, 64)

    def action(self, call: Call, last_search: int | None) -> Action:  # noqa: ARG002
        return Action.DENSE
