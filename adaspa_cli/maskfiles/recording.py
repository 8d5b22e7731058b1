"""A method whose block sums somebody else wants to see as well."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from adaspa_cli.attention.compensated import Compensation
from adaspa_cli.masks.policy import Action, Call, FoundMask, MaskPolicy


@dataclass(frozen=True)
class Recording(MaskPolicy):
    """Does what ``method`` does, and shows the block sums W [H, Nq, Nk] of each search before its mask is chosen."""

    method: MaskPolicy
    on_search: Callable[[Call, Tensor], None]

    @property
    def block_size(self) -> tuple[int, int]:
        return self.method.block_size

    def action(self, call: Call, last_search: int | None) -> Action:
        return self.method.action(call, last_search)

    def keeps_lse(self, step: int) -> bool:
        return self.method.keeps_lse(step)

    @property
    def compensation(self) -> Compensation:
        return self.method.compensation

    @property
    def search_rows(self) -> int:
        return self.method.search_rows

    @property
    def wants_values(self) -> bool:
        return self.method.wants_values

    @property
    def fresh_lse(self) -> bool:
        return self.method.fresh_lse

    def search(self, call: Call, block_sums: Tensor, values: Tensor | None = None) -> FoundMask:
        self.on_search(call, block_sums)
        return self.method.search(call, block_sums, values)
