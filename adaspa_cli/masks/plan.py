"""What one attention call does, and separately where its mask comes from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Attention(Enum):
    """How a call attends."""

    DENSE = "dense"
    MERGED = "merged"  # densely, on merged tokens
    SPARSE = "sparse"


class MaskSource(Enum):
    """Where the mask of a call comes from, for itself where it attends sparsely, and for later calls."""

    NONE = "none"
    SEARCH = "search"  # in the block sums of the call's own dense attention
    CACHED_SEARCH = "cached search"  # in block sums from an LSE that is known
    KEPT = "kept"  # from an earlier call
    ESTIMATE = "estimate"  # from q, k and v, for this call only
    CHECK = "mask check"  # from a file, its recall measured in the call's own dense attention
    LOAD = "loaded masks"  # from a file

    @property
    def reads_dense_attention(self) -> bool:
        """Whether the mask is found, or measured, in the weights of dense attention."""
        return self in (MaskSource.SEARCH, MaskSource.CHECK)


@dataclass(frozen=True)
class CallPlan:
    """What one attention call does.

    Raises:
        ValueError: sparse attention without a mask, or a mask that the attention neither uses nor finds.
    """

    attention: Attention
    mask: MaskSource = MaskSource.NONE

    def __post_init__(self) -> None:
        if self.mask.reads_dense_attention:
            fits = self.attention is Attention.DENSE
        else:
            fits = (self.attention is Attention.SPARSE) == (self.mask is not MaskSource.NONE)
        if not fits:
            raise ValueError(f"{self.attention.value} attention cannot have a mask by '{self.mask.value}'")

    @property
    def phase(self) -> str:
        """What reports and the progress bar call it: by the source of the mask where one is found."""
        plain = self.mask in (MaskSource.NONE, MaskSource.KEPT)
        return self.attention.value if plain else self.mask.value

    @property
    def gives_mask(self) -> bool:
        """Whether later calls reuse the mask that the call finds or loads."""
        return self.mask not in (MaskSource.NONE, MaskSource.KEPT, MaskSource.ESTIMATE)


DENSE = CallPlan(Attention.DENSE)
MERGED = CallPlan(Attention.MERGED)
SEARCH = CallPlan(Attention.DENSE, MaskSource.SEARCH)
CACHED_SEARCH = CallPlan(Attention.SPARSE, MaskSource.CACHED_SEARCH)
SPARSE = CallPlan(Attention.SPARSE, MaskSource.KEPT)
ESTIMATE = CallPlan(Attention.SPARSE, MaskSource.ESTIMATE)
CHECK = CallPlan(Attention.DENSE, MaskSource.CHECK)
LOAD = CallPlan(Attention.SPARSE, MaskSource.LOAD)

PLANS = (DENSE, MERGED, SEARCH, CACHED_SEARCH, SPARSE, ESTIMATE, CHECK, LOAD)
"""Those that the methods make, in the order in which reports name them."""
