"""The attention of a run: asks the policy what each call does, does it, and keeps the masks and the LSE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from adaspa_cli.attention import Backend, TokenLayout
from adaspa_cli.attention.compensated import Estimate, compensated_attention
from adaspa_cli.attention.remainder import block_means
from adaspa_cli.caching import TokenMerging
from adaspa_cli.errors import RunError
from adaspa_cli.hooks.clock import Listener, Order, StepClock
from adaspa_cli.hooks.timing import Span, Stopwatch
from adaspa_cli.masks import Action, Call, FoundMask, MaskPolicy
from adaspa_cli.masks.text import fit_to_text
from adaspa_cli.models.forward import Row

Key = tuple[int, str, int]  # layer, branch, sample

_NOT_MEASURED = Estimate()
_SEARCHED_DENSELY = (Action.DENSE_AND_SEARCH, Action.DENSE_AND_CHECK)


@dataclass
class _Memory:
    """What one layer, branch and sample carries from step to step."""

    layout: TokenLayout
    last_search: int
    found_by: Action
    found: FoundMask
    density: Tensor  # [H]
    lse: Tensor | None


@dataclass(frozen=True)
class _Attended:
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
    estimate: Estimate = _NOT_MEASURED


@dataclass(frozen=True)
class _Borrowed:
    """The mask of another branch as the borrower uses it, until the next search."""

    search: int  # the step that found it
    found: FoundMask
    density: Tensor  # [H]


@dataclass(frozen=True)
class Search:
    """One mask that was found or loaded, for the report; density and recall [H] stay on the device until then."""

    layer: int
    branch: str
    sample: int
    step: int
    density: Tensor
    recall: Tensor | None
    loaded: bool


@dataclass(frozen=True)
class AttentionCall:
    """One attention call, for the report."""

    layer: int
    step: int
    action: Action
    density: Tensor | None  # [H]; None for dense attention
    span: Span
    estimate: Estimate = _NOT_MEASURED  # of its own error, [1, H] each


class AttentionEngine:
    """Attention of every layer of one pipeline; an :class:`~adaspa_cli.models.attachment.Attend`."""

    def __init__(
        self,
        make_policy: Callable[[int], MaskPolicy],
        backend: Backend,
        clock: StepClock,
        merging: TokenMerging | None = None,
        *,
        share_cfg_masks: bool = False,
    ) -> None:
        """
        Args:
            make_policy: the policy of a run with that many denoising steps.
            backend: runs the operators.
            clock: of the pipeline; records of a run are kept until the next starts, masks and LSE until it ends.
            merging: merges tokens before every dense attention.
            share_cfg_masks: the unconditional branch uses the masks of the conditional one, which attends before it.
        """
        self._make_policy, self._backend, self._clock = make_policy, backend, clock
        self._merging = merging
        self._share_cfg_masks = share_cfg_masks
        self._memory: dict[Key, _Memory] = {}
        self._borrowed: dict[Key, _Borrowed] = {}
        self._policy: MaskPolicy | None = None
        self.calls: list[AttentionCall] = []
        self.searches: list[Search] = []
        self.dense_kernel: dict[str, Any] | None = None  # what runs dense attention, where the backend chose
        self.on_action: Callable[[Action], None] = lambda _action: None
        clock.listen(Listener(Order.ENGINE, start=self.start, end=self.forget_masks))

    def start(self, steps: int) -> None:
        """Begin a run: forget the records of the one before, and masks if this one begins a second time."""
        self._policy = self._make_policy(steps)
        self.forget_masks()
        self.calls, self.searches = [], []
        if self._merging is not None:
            self._merging.start()

    def plan(self, steps: int) -> list[Action]:
        """What the attention calls of each step of a run of ``steps`` denoising steps do, if a cache skips none."""
        return [self._merged(action) for action in self._make_policy(steps).plan(steps)]

    def _merged(self, action: Action) -> Action:
        return Action.MERGED if action is Action.DENSE and self._merging is not None else action

    def forget_masks(self) -> None:
        """Give the memory of masks and LSE back; the records stay."""
        self._memory.clear()
        self._borrowed.clear()

    def __deepcopy__(self, _memo: dict[int, Any]) -> AttentionEngine:
        """Processors on a copy of the transformer do not take the masks with them; the clock refuses their calls."""
        return self

    @property
    def policy(self) -> MaskPolicy | None:
        """Of the run in progress, or of the last one."""
        return self._policy

    def masks(self) -> dict[Key, FoundMask]:
        """The masks that later calls use, by layer, branch and sample: none of a method that finds them anew."""
        return {key: memory.found for key, memory in self._memory.items()}

    def __call__(self, layer: int, row: Row, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: q, k, v [1, H, L, D] of one row to output [1, H, L, D]."""
        _ = self._clock.steps  # raises outside a run
        if self._policy is None:
            raise RunError("attention was called before a run was started")
        call = Call(layer, self._clock.step, row.branch, row.sample, row.layout)
        if self._share_cfg_masks and row.branch != "cond":
            memory = self._memory.get((layer, "cond", row.sample))
            action = _action_of_a_borrower(call, memory)
        else:
            memory = self._memory.get((layer, row.branch, row.sample))
            if memory is not None and memory.layout != row.layout:
                raise RunError(f"the token layout changed during the run, from {memory.layout} to {row.layout}")
            action = self._merged(self._policy.action(call, memory.last_search if memory else None))
        if action is Action.SEARCH_AND_SPARSE and self._policy.fresh_lse and memory is not None and memory.lse is None:
            action = Action.DENSE_AND_SEARCH  # a cache skipped the step before, whose LSE it needs
        self.on_action(action)
        if self.dense_kernel is None and action in (Action.DENSE, *_SEARCHED_DENSELY):
            # Before the clock starts: the first time, the backend measures its kernels.
            self.dense_kernel = self._backend.describe_dense(q, k)
        with Stopwatch(q.device) as watch:
            done = self._attend(self._policy, action, call, memory, q, k, v)
        self.calls.append(AttentionCall(layer, call.step, action, done.density, watch.span, done.estimate))
        return done.out

    def _attend(
        self, policy: MaskPolicy, action: Action, call: Call, memory: _Memory | None, q: Tensor, k: Tensor, v: Tensor
    ) -> _Attended:
        """Run one action."""
        scale = 1 / math.sqrt(q.shape[-1])
        if action is Action.DENSE:
            return _Attended(self._backend.dense(q, k, v, scale)[0])
        if action is Action.MERGED and self._merging is not None:
            return _Attended(*self._merging.attend(q, k, v, scale, call.layout))
        if action in _SEARCHED_DENSELY:
            out, lse, sums = self._backend.search(q, k, v, policy.block_size, scale, policy.search_rows)
            self._remember(policy, call, action, _search(policy, call, sums, v), lse)
            return _Attended(out)
        if action is Action.ESTIMATE_AND_SPARSE:
            found = policy.estimate(call, q, k, v, scale)
            if self._share_cfg_masks:
                density = self._remember(policy, call, action, found, None).density
            else:
                density = self._record(call, found)
            return self._sparse(policy, call, found, density, q, k, v)
        if action is Action.LOAD_AND_SPARSE:
            memory = self._remember(policy, call, action, policy.load(call, q.device), None)
        if memory is None:
            raise RunError(f"layer {call.layer} is to attend sparsely at step {call.step}, but has no mask")
        if action is Action.SEARCH_AND_SPARSE:
            if memory.lse is None:
                raise RunError(f"layer {call.layer} is to search at step {call.step}, but its LSE was not kept")
            sums = self._backend.sums(q, k, memory.lse, policy.block_size, scale, policy.search_rows)
            memory = self._remember(policy, call, action, _search(policy, call, sums, v), memory.lse)
        if self._share_cfg_masks and call.branch != "cond":
            return self._borrow(policy, call, memory, q, k, v)
        done = self._sparse(policy, call, memory.found, memory.density, q, k, v)
        if policy.fresh_lse:
            memory.lse = done.lse if policy.keeps_lse(call.step) else None
        return done

    def _borrow(self, policy: MaskPolicy, call: Call, memory: _Memory, q: Tensor, k: Tensor, v: Tensor) -> _Attended:
        """Attend sparsely with the mask of the other branch; one that was estimated is not needed any more."""
        key = (call.layer, call.branch, call.sample)
        borrowed = self._borrowed.get(key)
        if borrowed is None or borrowed.search != memory.last_search:
            found = fit_to_text(memory.found, memory.layout, call.layout)
            density = memory.density if found is memory.found else found.mask.density()
            borrowed = self._borrowed[key] = _Borrowed(memory.last_search, found, density)
        if memory.found_by is Action.ESTIMATE_AND_SPARSE:
            del self._memory[call.layer, "cond", call.sample], self._borrowed[key]
        return self._sparse(policy, call, borrowed.found, borrowed.density, q, k, v)

    def _sparse(
        self, policy: MaskPolicy, call: Call, found: FoundMask, density: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> _Attended:
        """Attend sparsely in the order of tokens that the mask is made for, and make up for what it leaves out."""
        scale = 1 / math.sqrt(q.shape[-1])
        if found.order is not None:
            q, k, v = (found.order.apply(x) for x in (q, k, v))
            return _Attended(found.order.undo(self._backend.sparse(q, k, v, found.mask, scale)[0]), density)
        out, lse, estimate = compensated_attention(
            q, k, v, found.mask, call.layout, scale, backend=self._backend, compensation=policy.compensation
        )
        return _Attended(out, density, lse, estimate)

    def _remember(
        self, policy: MaskPolicy, call: Call, action: Action, found: FoundMask, lse: Tensor | None
    ) -> _Memory:
        """Keep a mask for later calls, and the LSE only while a later search needs it."""
        kept_lse = lse if policy.keeps_lse(call.step) else None
        memory = _Memory(call.layout, call.step, action, found, self._record(call, found), kept_lse)
        self._memory[call.layer, call.branch, call.sample] = memory
        return memory

    def _record(self, call: Call, found: FoundMask) -> Tensor:
        """Note a mask for the report; returns its density [H]."""
        density = found.mask.density()
        place = (call.layer, call.branch, call.sample, call.step)
        self.searches.append(Search(*place, density, found.recall, found.loaded))
        return density


def _search(policy: MaskPolicy, call: Call, sums: Tensor, v: Tensor) -> FoundMask:
    """The mask from block sums [1, H, Nq, Nk] and v [1, H, L, D]."""
    values = block_means(v, policy.block_size[1])[0] if policy.wants_values else None
    return policy.search(call, sums[0], values)


def _action_of_a_borrower(call: Call, lent: _Memory | None) -> Action:
    """What the branch does that uses the other one's masks: it searches nothing.

    Before there is a mask, and where the other branch has just attended densely to search one, it is dense too, so
    that such a step stays exact. A mask that was estimated is of its own step alone: where a cache skipped the call
    that would have estimated one, there is none.
    """
    if lent is None:
        return Action.DENSE
    if lent.last_search == call.step:
        return Action.DENSE if lent.found_by in _SEARCHED_DENSELY else Action.SPARSE
    return Action.DENSE if lent.found_by is Action.ESTIMATE_AND_SPARSE else Action.SPARSE
