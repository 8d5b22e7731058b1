"""What a run remembers of each layer, branch and sample from step to step: its mask, and an LSE for a later search."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout
from adaspa_cli.attention.mask_size import packs
from adaspa_cli.distributed.heads import Heads
from adaspa_cli.errors import RunError
from adaspa_cli.hooks.transfer import OnItsWay
from adaspa_cli.masks import Call, FoundMask
from adaspa_cli.masks.plan import MaskSource

Key = tuple[int, str, int]  # layer, branch, sample


@dataclass
class KnownMask:
    """A mask in use.

    Attributes:
        layout: the tokens that it is made for.
        step: at which it was found.
        source: how.
        density: [H].
        lse: [1, H, L] for the next search, while one is to come.
        error: of the last sparse call with it, of all heads of the layer, where that is limited.
        bits: of the mask, int32 words [H, Nq, S], where they take so much less memory that its lists are not kept.
        width: K of those lists.
    """

    layout: TokenLayout
    step: int
    source: MaskSource
    found: FoundMask
    density: Tensor
    lse: Tensor | None = None
    error: OnItsWay | None = None
    bits: Tensor | None = None
    width: int = 0

    def pack(self) -> None:
        """Keep a large mask as bits, where they take so much less memory (:mod:`adaspa_cli.attention.mask_size`)."""
        mask = self.found.mask
        if not packs(mask.counts.numel(), mask.indices.shape[-1], mask.key_blocks):
            return
        self.bits, self.width = mask.to_bits(), mask.indices.shape[-1]
        empty = BlockMask(mask.counts, mask.indices.new_zeros(*mask.counts.shape, 0), mask.key_blocks, mask.block_size)
        self.found = dataclasses.replace(self.found, mask=empty)

    def in_use(self) -> FoundMask:
        """The mask with its lists, made of bits if they are what is kept; without waiting for the device."""
        if self.bits is None:
            return self.found
        mask = self.found.mask
        lists = BlockMask.from_bits(self.bits, mask.key_blocks, mask.block_size, width=self.width)
        return dataclasses.replace(self.found, mask=lists)

    def moved(self, before: Heads, now: Heads) -> KnownMask:
        """The mask of the heads that this process has in another deal; every process calls it.

        Bits are what moves: less than lists, and alike whatever each process keeps.
        """
        mask = self.found.mask
        bits = before.move(mask.to_bits() if self.bits is None else self.bits, now)
        width = mask.indices.shape[-1] if self.bits is None else self.width  # the same for all heads of a layer
        recall, order = self.found.recall, self.found.order
        found = FoundMask(
            BlockMask.from_bits(bits, mask.key_blocks, mask.block_size, width=width),
            None if recall is None else before.move(recall, now),
            None if order is None else dataclasses.replace(order, moved=before.move(order.moved, now)),
            self.found.loaded,
        )
        lse = None if self.lse is None else before.move(self.lse[0], now)[None]
        moved = KnownMask(self.layout, self.step, self.source, found, found.mask.density(), lse, self.error)
        moved.pack()
        return moved

    def strayed(self, limit: float) -> bool:
        """Whether the root mean square of the heads' errors at the last sparse call is above a limit."""
        return self.error is not None and float(self.error.there().square().mean().sqrt()) > limit


class MaskMemory:
    """The masks of a run, by layer, branch and sample."""

    def __init__(self) -> None:
        self._known: dict[Key, KnownMask] = {}

    def of(self, call: Call, branch: str | None = None) -> KnownMask | None:
        """The mask of a call's layer and sample, and of its branch if no other is named."""
        return self._known.get((call.layer, branch or call.branch, call.sample))

    def own(self, call: Call) -> KnownMask | None:
        """The call's own mask.

        Raises:
            RunError: it is for other tokens.
        """
        known = self.of(call)
        if known is not None and known.layout != call.layout:
            raise RunError(f"the token layout changed during the run, from {known.layout} to {call.layout}")
        return known

    def keep(self, call: Call, known: KnownMask) -> None:
        """Remember the mask of a call, and no longer the one before."""
        known.pack()
        self._known[call.layer, call.branch, call.sample] = known

    def move(self, key: Key, before: Heads, now: Heads) -> None:
        """Give every process the mask of the heads that it has from now on; every process calls it."""
        if key in self._known:
            self._known[key] = self._known[key].moved(before, now)

    def drop(self, call: Call, branch: str) -> None:
        """Forget the mask of a call's layer and sample in a branch."""
        del self._known[call.layer, branch, call.sample]

    def masks(self) -> dict[Key, FoundMask]:
        """All masks."""
        return {key: known.in_use() for key, known in self._known.items()}

    def entries(self) -> list[KnownMask]:
        """All that is remembered, in the order in which it was found first."""
        return list(self._known.values())

    def forget(self) -> None:
        """Free everything."""
        self._known.clear()
