"""Full attention: the baseline that every other method is measured against; also what diffusers does by itself."""

from dataclasses import dataclass

from adaspa_cli.masks.policy import Action, Call, MaskPolicy


@dataclass(frozen=True)
class Full(MaskPolicy):
    """Dense attention at every step."""

    block_size: tuple[int, int] = (64, 64)

    def action(self, call: Call, last_search: int | None) -> Action:  # noqa: ARG002
        return Action.DENSE
