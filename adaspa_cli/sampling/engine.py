"""The attention of a run: asks the policy what each call does, and does it.

What it remembers from call to call is in :mod:`.mask_memory`, what one branch lends to the other in :mod:`.lending`,
what it notes for the report in :mod:`.records`, and sparse attention itself in :mod:`.sparse`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from adaspa_cli.attention import Backend
from adaspa_cli.caching import TokenMerging
from adaspa_cli.distributed.deals import Deals
from adaspa_cli.distributed.heads import Heads
from adaspa_cli.distributed.team import Team
from adaspa_cli.errors import RunError
from adaspa_cli.hooks.clock import Listener, Order, StepClock
from adaspa_cli.hooks.timing import Stopwatch
from adaspa_cli.hooks.transfer import OnItsWay
from adaspa_cli.masks import Call, FoundMask, MaskPolicy
from adaspa_cli.masks.plan import CACHED_SEARCH, DENSE, MERGED, SEARCH, Attention, CallPlan, MaskSource
from adaspa_cli.models.forward import Row
from adaspa_cli.sampling.lending import LENDER, Lending
from adaspa_cli.sampling.mask_memory import Key, KnownMask, MaskMemory
from adaspa_cli.sampling.records import AttentionCall, Records, Search
from adaspa_cli.sampling.sparse import Attended, attend_sparsely


class AttentionEngine:
    """Attention of every layer of one pipeline; an :class:`~adaspa_cli.models.forward.Attend`.

    Attributes:
        memory: masks and LSE of the run in progress.
        dense_kernel: what runs dense attention, where the backend chose.
        on_call: is told what each call does, before it does it.
    """

    def __init__(
        self,
        make_policy: Callable[[int], MaskPolicy],
        backend: Backend,
        clock: StepClock,
        merging: TokenMerging | None = None,
        *,
        share_cfg_masks: bool = False,
        deals: Deals | None = None,
    ) -> None:
        """
        Args:
            make_policy: the policy of a run with that many denoising steps.
            backend: runs the operators.
            clock: of the pipeline; records of a run are kept until the next starts, masks and LSE until it ends.
            merging: merges tokens before every dense attention.
            share_cfg_masks: the unconditional branch uses the masks of the conditional one, which attends before it.
            deals: of the heads of a layer to the processes that share them; each of these must make the same calls.
        """
        self._make_policy, self._backend, self._clock = make_policy, backend, clock
        self._merging = merging
        self._policy: MaskPolicy | None = None
        self._records = Records()
        self.memory = MaskMemory()
        self._lending = Lending(self.memory) if share_cfg_masks else None
        self._deals = Deals(Team()) if deals is None else deals
        self.dense_kernel: dict[str, Any] | None = None
        self.on_call: Callable[[CallPlan], None] = lambda _plan: None
        clock.listen(Listener(Order.ENGINE, start=self.start, step_end=self._leave_stage, end=self.forget_masks))

    def start(self, steps: int) -> None:
        """Begin a run: forget the records of the one before, and masks if this one begins a second time."""
        self._policy = self._make_policy(steps)
        self.forget_masks()
        self._records = Records()
        self._deals.start()
        if self._merging is not None:
            self._merging.start()

    def _leave_stage(self, step: int) -> None:
        """Forget the masks of a transformer that makes no more steps of the run."""
        if self._policy is not None and step + 1 in self._policy.stages:
            self.forget_masks()

    def forget_masks(self) -> None:
        """Free the memory of masks and LSE; the records stay."""
        self.memory.forget()
        if self._lending is not None:
            self._lending.forget()

    def heads(self, layer: int, row: Row, total: int) -> Heads:
        """Those of this process in the coming call, of ``total``; they may change. Every process calls it.

        The masks of the run move with their heads.
        """
        key = self._key(layer, row)
        turned = self._deals.turn(key, total)
        if turned is not None:
            self.memory.move(key, *turned)
            if self._lending is not None:
                self._lending.moved(key)
        return self._deals.of(key)

    def _key(self, layer: int, row: Row) -> Key:
        """Of what has a mask of its own: a branch that borrows has the heads of the lender."""
        return layer, row.branch if self._lending is None else LENDER, row.sample

    def plan(self, steps: int) -> list[CallPlan]:
        """What the attention calls of each step of a run of ``steps`` denoising steps do, if a cache skips none."""
        return [self._merged(plan) for plan in self._make_policy(steps).plan(range(steps))]

    @property
    def policy(self) -> MaskPolicy | None:
        """Of the run in progress, or of the last one."""
        return self._policy

    @property
    def records(self) -> Records:
        """Of the run in progress, or of the last one."""
        return self._records

    @records.setter
    def records(self, records: Records) -> None:
        self._records = records

    @property
    def calls(self) -> list[AttentionCall]:
        """What was done, of the run in progress or of the last one."""
        return self._records.calls

    @property
    def densified(self) -> int:
        """Calls that were dense because of the error of the call before."""
        return self._records.densified

    @property
    def searches(self) -> list[Search]:
        """The masks that were found or loaded, of the run in progress or of the last one."""
        return self._records.searches

    def masks(self) -> dict[Key, FoundMask]:
        """The masks that later calls use, by layer, branch and sample: none if every call finds a new one."""
        return self.memory.masks()

    def __deepcopy__(self, _memo: dict[int, Any]) -> AttentionEngine:
        """Processors on a copy of the transformer do not take the masks with them; the clock refuses their calls."""
        return self

    def __call__(self, layer: int, row: Row, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: q, k, v [1, H, L, D] of one row to output [1, H, L, D]; H as :meth:`heads` last had it.

        Raises:
            RunError: outside a run, or the token layout changed during it.
        """
        _ = self._clock.steps  # raises outside a run
        policy = self._policy
        if policy is None:
            raise RunError("attention was called before a run was started")
        heads = self._deals.of(self._key(layer, row))
        call = Call(layer, self._clock.step, row.branch, row.sample, row.layout, heads)
        plan = self._decide(policy, call)
        self.on_call(plan)
        if self.dense_kernel is None and plan.attention is Attention.DENSE:
            # Before the clock starts: the first time, the backend measures its kernels.
            self.dense_kernel = self._backend.describe_dense(q, k)
        with Stopwatch(q.device) as watch:
            done = self._attend(policy, plan, call, q, k, v)
        self.calls.append(AttentionCall(layer, call.step, plan, done.density, watch.span, done.estimate, heads))
        return done.out

    def _decide(self, policy: MaskPolicy, call: Call) -> CallPlan:
        if self._lending is not None and self._lending.borrows(call):
            return self._lending.decide(call)
        known = self.memory.own(call)
        plan = self._merged(policy.decide(call, known.step if known else None))
        if known is None or plan.attention is not Attention.SPARSE:
            return plan
        if policy.max_error is not None and known.strayed(policy.max_error):
            self._records.densified += 1
            return SEARCH
        if plan == CACHED_SEARCH and policy.fresh_lse and known.lse is None:
            return SEARCH  # a cache skipped the step before, whose LSE it needs
        return plan

    def _merged(self, plan: CallPlan) -> CallPlan:
        return MERGED if plan == DENSE and self._merging is not None else plan

    def _attend(self, policy: MaskPolicy, plan: CallPlan, call: Call, q: Tensor, k: Tensor, v: Tensor) -> Attended:
        scale = 1 / math.sqrt(q.shape[-1])
        if plan.attention is Attention.MERGED and self._merging is not None:
            return Attended(*self._merging.attend(q, k, v, scale, call.layout))
        if plan.mask.reads_dense_attention:
            out, lse, sums = self._backend.search(q, k, v, policy.block_size, scale, policy.search_rows)
            self._keep(policy, plan, call, policy.choose(call, sums, v), lse)
            return Attended(out)
        if plan.attention is not Attention.SPARSE:
            return Attended(self._backend.dense(q, k, v, scale)[0])
        known = self._mask(policy, plan, call, q, k, v)
        done = attend_sparsely(
            q,
            k,
            v,
            known.in_use(),
            known.density,
            call.layout,
            backend=self._backend,
            compensation=policy.compensation,
        )
        if known is self.memory.of(call):
            if policy.fresh_lse:
                kept = done.lse if policy.keeps_lse(call.step) else None
                # A kernel may return a part of a tensor that holds the LSE of the kept blocks besides.
                known.lse = None if kept is None else kept.clone()
            if policy.max_error is not None and done.estimate.after is not None:
                known.error = OnItsWay.of(call.heads.gather(done.estimate.after[0]))
        return done

    def _mask(self, policy: MaskPolicy, plan: CallPlan, call: Call, q: Tensor, k: Tensor, v: Tensor) -> KnownMask:
        """The mask that a sparse call uses, from where its plan says."""
        scale = 1 / math.sqrt(q.shape[-1])
        if plan.mask is MaskSource.ESTIMATE:
            found = policy.estimate(call, q, k, v, scale)
            return self._keep(policy, plan, call, found, None, for_later=self._lending is not None)
        if plan.mask is MaskSource.LOAD:
            return self._keep(policy, plan, call, policy.load(call, q.device), None)
        if self._lending is not None and self._lending.borrows(call):
            return self._lending.borrow(call)
        known = self.memory.own(call)
        if known is None:
            raise RunError(f"layer {call.layer} must attend sparsely at step {call.step}, but has no mask")
        if plan.mask is not MaskSource.CACHED_SEARCH:
            return known
        if known.lse is None:
            raise RunError(f"layer {call.layer} must search at step {call.step}, but its LSE was not kept")
        sums = self._backend.sums(q, k, known.lse, policy.block_size, scale, policy.search_rows)
        return self._keep(policy, plan, call, policy.choose(call, sums, v), known.lse)

    def _keep(
        self,
        policy: MaskPolicy,
        plan: CallPlan,
        call: Call,
        found: FoundMask,
        lse: Tensor | None,
        *,
        for_later: bool = True,
    ) -> KnownMask:
        """Note a mask, and keep it for later calls; the LSE only while a later search needs it."""
        kept_lse = lse if policy.keeps_lse(call.step) else None
        known = KnownMask(call.layout, call.step, plan.mask, found, found.mask.density(), kept_lse)
        self._records.search(call, found, known.density)
        self._deals.note((call.layer, call.branch, call.sample), known.density)
        if for_later:
            self.memory.keep(call, known)
        return known
