"""Where a family's blocks have the linear layers that may multiply in FP8. Doesn't import torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Gelu:
    """A GELU in its tanh form between two linear layers, which the quantiser of the second one may compute.

    Attributes:
        path: of its module, which may have the first layer inside of it.
        before: path of the layer that it comes after.
        after: path of the layer that takes its output as the last of its input's channels.
    """

    path: str
    before: str
    after: str


@dataclass(frozen=True)
class Linears:
    """Linear layers of a block, by their paths in it; a block may lack some of them.

    Attributes:
        sharing: layers that are called one after another with the same tensor.
        single: the others, without those of ``gelus``.
        gelus: pairs of layers with a GELU in between.
    """

    sharing: tuple[tuple[str, ...], ...] = ()
    single: tuple[str, ...] = ()
    gelus: tuple[Gelu, ...] = ()

    def paths(self) -> Iterator[str]:
        """All layers."""
        for group in self.sharing:
            yield from group
        yield from self.single
        for gelu in self.gelus:
            yield from (gelu.before, gelu.after)
