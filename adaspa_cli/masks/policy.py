"""What a method is: a stateless rule that says what each attention call does, and how it finds its mask."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout


class Action(Enum):
    """What one attention call does. The value is its phase in reports and on the progress bar."""

    DENSE = "dense"
    MERGED = "merged"  # dense on merged tokens
    DENSE_AND_SEARCH = "search"
    SEARCH_AND_SPARSE = "cached search"
    SPARSE = "sparse"


@dataclass(frozen=True)
class Call:
    """Where an attention call stands in a run.

    Attributes:
        layer: index over all attention layers of the transformer.
        step: denoising step, 0-based.
        branch: guidance branch, ``"cond"`` or ``"uncond"``.
        sample: index of the video within the branch.
        layout: the token sequence of this call.
    """

    layer: int
    step: int
    branch: str
    sample: int
    layout: TokenLayout


@dataclass(frozen=True)
class FoundMask:
    """A mask, and the recall [H] (float32) that it had when it was searched."""

    mask: BlockMask
    recall: Tensor


class MaskPolicy(Protocol):
    """A method. It holds settings alone; the masks and the LSE of a run are kept by the run."""

    def action(self, call: Call, last_search: int | None) -> Action:
        """Say what this call does; ``last_search`` is the step of its layer's, branch's and sample's last search."""
        ...

    def keeps_lse(self, step: int) -> bool:
        """Whether a search after ``step`` will need the LSE of the dense attention at ``step``."""
        ...

    @property
    def block_size(self) -> tuple[int, int]:
        """Tokens of a (query, key) block."""
        ...

    def search(self, call: Call, block_sums: Tensor) -> FoundMask:
        """Choose the mask of one sample from its block sums W [H, Nq, Nk]."""
        ...
