"""The conditional branch's masks for the unconditional branch, which searches none (``share_cfg_masks``)."""

from __future__ import annotations

from adaspa_cli.errors import RunError
from adaspa_cli.masks import Call
from adaspa_cli.masks.plan import DENSE, SPARSE, CallPlan, MaskSource
from adaspa_cli.masks.text import fit_to_text
from adaspa_cli.sampling.mask_memory import Key, KnownMask, MaskMemory

LENDER = "cond"


class Lending:
    """What a branch borrows that has no masks of its own. The conditional branch attends before it."""

    def __init__(self, memory: MaskMemory) -> None:
        """``memory`` has the masks that are lent."""
        self._memory = memory
        self._fitted: dict[Key, KnownMask] = {}  # to the borrower's text, until the next search

    @staticmethod
    def borrows(call: Call) -> bool:
        """Whether a call is of a branch that borrows."""
        return call.branch != LENDER

    def decide(self, call: Call) -> CallPlan:
        """What a call does that borrows.

        Before there is a mask, and where the other branch has just attended densely to search one, it is dense too, so
        that such a step stays exact. An estimated mask is valid only for its step: where a cache skipped the
        call that would have estimated one, there is none.
        """
        lent = self._memory.of(call, LENDER)
        if lent is None:
            return DENSE
        if lent.step == call.step:
            return DENSE if lent.source.reads_dense_attention else SPARSE
        return DENSE if lent.source is MaskSource.ESTIMATE else SPARSE

    def borrow(self, call: Call) -> KnownMask:
        """The mask for a call, fitted to its text; one that was estimated is not needed any more.

        Raises:
            RunError: there is none, or it does not fit.
        """
        lent = self._memory.of(call, LENDER)
        if lent is None:
            raise RunError(f"layer {call.layer} must borrow a mask at step {call.step}, but there is none")
        key = (call.layer, call.branch, call.sample)
        fitted = self._fitted.get(key)
        if fitted is None or fitted.step != lent.step:
            lists = lent.in_use()
            found = fit_to_text(lists, lent.layout, call.layout)
            density = lent.density if found is lists else found.mask.density()
            fitted = KnownMask(call.layout, lent.step, lent.source, found, density)
            fitted.pack()
            self._fitted[key] = fitted
        if lent.source is MaskSource.ESTIMATE:
            self._memory.drop(call, LENDER)
            del self._fitted[key]
        return fitted

    def moved(self, key: Key) -> None:
        """The heads of a lent mask have moved: what was fitted to other texts is of others."""
        layer, _, sample = key
        for fitted in [(layer, branch, sample) for branch in {branch for _, branch, _ in self._fitted}]:
            self._fitted.pop(fitted, None)

    def forget(self) -> None:
        """Free everything."""
        self._fitted.clear()
