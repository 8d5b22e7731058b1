"""Sparse attention of one call: from its mask to its output.

Shapes: H heads, L tokens, D head dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from adaspa_cli.attention import Backend, TokenLayout
from adaspa_cli.attention.compensated import Compensation, Estimate, compensated_attention
from adaspa_cli.masks import FoundMask
from adaspa_cli.sampling.records import NOT_MEASURED


@dataclass(frozen=True)
class Attended:
    """What one call gives.

    Attributes:
        out: [1, H, L, D].
        density: [H]; None for dense attention.
        lse: [1, H, L], of a sparse call; with a remainder nearly that of all keys.
        estimate: of its error, where the call knows it.
    """

    out: Tensor
    density: Tensor | None = None
    lse: Tensor | None = None
    estimate: Estimate = NOT_MEASURED


def attend_sparsely(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    found: FoundMask,
    density: Tensor,
    layout: TokenLayout,
    *,
    backend: Backend,
    compensation: Compensation,
) -> Attended:
    """Attend in the order of tokens that a mask is made for, and compensate for left-out blocks.

    Args:
        q, k, v: [1, H, L, D].
        found: the mask; one with its own order has no compensation.
        density: [H], of the mask.
        layout: of the call.
        backend: runs the operators.
        compensation: what makes up for the blocks that the mask leaves out.
    """
    scale = 1 / math.sqrt(q.shape[-1])
    if found.order is not None:
        q, k, v = (found.order.apply(x) for x in (q, k, v))
        return Attended(found.order.undo(backend.sparse(q, k, v, found.mask, scale)[0]), density)
    out, lse, estimate = compensated_attention(
        q, k, v, found.mask, layout, scale, backend=backend, compensation=compensation
    )
    return Attended(out, density, lse, estimate)
