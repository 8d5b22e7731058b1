"""The engine of a run: does what the policy says, remembers masks and LSE no longer than needed, and keeps records."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, TokenLayout, block_sparse_attention, dense_attention, resolve
from adaspa_cli.errors import RunError
from adaspa_cli.hooks.clock import Listener, Order, StepClock
from adaspa_cli.masks import Call, CallPlan, FoundMask, HeadOrder, MaskPolicy
from adaspa_cli.masks.methods.adaspa import AdaSpa
from adaspa_cli.masks.methods.full import Full
from adaspa_cli.masks.methods.sparse_videogen import SparseVideoGen
from adaspa_cli.masks.plan import CACHED_SEARCH, CHECK, DENSE, ESTIMATE, LOAD, SEARCH, SPARSE
from adaspa_cli.masks.text import fit_to_text
from adaspa_cli.models.forward import Row
from adaspa_cli.sampling.engine import AttentionEngine

LAYOUT = TokenLayout(frames=6, height=4, width=4, text_tokens=10, text_position="last")
ROW = Row("cond", 0, LAYOUT)
HEADS, BLOCK = 4, 16


class Scheduler:
    """Steps and nothing else."""

    def set_timesteps(self, steps: int) -> None:
        self.timesteps = range(steps)

    def step(self) -> None:
        pass


class Run:
    """An engine under a scheduler that the test drives."""

    def __init__(self, policy: MaskPolicy, **settings: Any) -> None:
        self.scheduler = Scheduler()
        clock = StepClock(self)
        backend = resolve("reference", torch.device("cpu"))
        self.engine = AttentionEngine(lambda _steps: policy, backend, clock, **settings)
        # As the last run left them at its end.
        self.masks: dict[Any, FoundMask] = {}
        self.memory: list[Any] = []
        clock.listen(Listener(Order.READERS, end=self._read))

    def _read(self) -> None:
        self.masks, self.memory = self.engine.masks(), self.engine.memory.entries()

    def attend(self, *, layer: int = 0, row: Row = ROW, seed: int = 0) -> Tensor:
        return self.engine(layer, row, *tensors(seed, row.layout))

    def steps(self, count: int, **call: Any) -> list[Tensor]:
        self.scheduler.set_timesteps(count)
        outputs = []
        for step in range(count):
            outputs.append(self.attend(seed=step, **call))
            self.scheduler.step()
        return outputs


def tensors(seed: int = 0, layout: TokenLayout = LAYOUT) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, HEADS, layout.tokens, 32, generator=random) for _ in range(3))
    return 3 * q, k, v


def adaspa(*search_steps: int, **settings: Any) -> AdaSpa:
    return AdaSpa(0.6, search_steps, (BLOCK, BLOCK), **settings)


def test_actions_are_recorded_in_order() -> None:
    run = Run(adaspa(1, 3))
    run.steps(5)
    assert [call.plan for call in run.engine.calls] == [
        DENSE,
        SEARCH,
        SPARSE,
        CACHED_SEARCH,
        SPARSE,
    ]
    assert [call.step for call in run.engine.calls] == [0, 1, 2, 3, 4]


def test_each_attention_call_is_announced_once() -> None:
    run = Run(adaspa(1, 3))
    heard: list[CallPlan] = []
    run.engine.on_call = heard.append
    run.steps(5)
    assert heard == [call.plan for call in run.engine.calls]


def test_dense_steps_are_exact_also_while_searching() -> None:
    outputs = Run(adaspa(1, 3)).steps(2)
    for step, out in enumerate(outputs):
        assert torch.equal(out, dense_attention(*tensors(step), backend="reference")[0])


def test_sparse_steps_use_the_mask_that_was_found() -> None:
    run = Run(adaspa(1))
    outputs = run.steps(4)
    (found,) = run.masks.values()
    assert not found.mask.to_bool().all()
    for step in (2, 3):
        assert torch.equal(outputs[step], block_sparse_attention(*tensors(step), found.mask, backend="reference"))


def test_a_cached_search_uses_its_new_mask_at_once() -> None:
    run = Run(adaspa(1, 3))
    outputs = run.steps(4)
    (found,) = run.masks.values()
    assert torch.equal(outputs[3], block_sparse_attention(*tensors(3), found.mask, backend="reference"))


def test_the_records_of_a_search_are_those_of_its_mask() -> None:
    run = Run(adaspa(1))
    run.steps(3)
    (search,), (found,) = run.engine.searches, run.masks.values()
    assert (search.layer, search.branch, search.sample, search.step) == (0, "cond", 0, 1)
    assert torch.equal(search.density, found.mask.to_bool().float().mean((-1, -2)))
    assert torch.equal(search.recall, found.recall)
    assert ((search.recall > 0) & (search.recall <= 1 + 1e-6)).all()


def test_density_is_recorded_where_attention_is_sparse() -> None:
    run = Run(adaspa(1, 3))
    run.steps(5)
    densities = [call.density for call in run.engine.calls]
    assert densities[0] is None
    assert densities[1] is None
    first, second = (search.density for search in run.engine.searches)
    for density, expected in zip(densities[2:], (first, second, second), strict=True):
        assert density is not None
        assert torch.equal(density, expected)


def test_the_lse_is_dropped_when_no_later_search_needs_it() -> None:
    run = Run(adaspa(1, 3))
    run.steps(2)
    assert [entry.lse is not None for entry in run.memory] == [True]
    run.steps(4)
    assert [entry.lse is not None for entry in run.memory] == [False]
    for policy in (adaspa(1), adaspa(1, 3, lse_cache=False)):
        run = Run(policy)
        run.steps(2)
        assert [entry.lse is not None for entry in run.memory] == [False]


def test_a_cached_search_uses_the_lse_of_the_first_search() -> None:
    """Three searches, of other q and k each: all cached ones divide by the same LSE."""
    run = Run(adaspa(0, 1, 2))
    run.steps(2)
    first = dense_attention(*tensors(0), backend="reference")[1]
    assert torch.equal(run.memory[0].lse, first)


def test_masks_take_little_memory() -> None:
    """Index lists as long as the head with the most blocks needs, in two bytes, and no block sums behind them."""
    layout = TokenLayout(frames=40, height=4, width=4, text_tokens=16, text_position="last")  # 41 blocks of 16
    run = Run(AdaSpa(0.8, (0,), (BLOCK, BLOCK), budget="row"))
    run.steps(1, row=Row("cond", 0, layout))
    (found,) = run.masks.values()
    assert found.mask.indices.dtype == torch.int16
    assert found.mask.indices.shape == (HEADS, 41, 8 + 1)
    assert found.mask.nbytes == HEADS * 41 * (4 + 2 * 9)
    for tensor in (found.mask.counts, found.mask.indices, found.recall):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_layers_branches_and_samples_have_masks_of_their_own() -> None:
    run = Run(adaspa(0))
    run.scheduler.set_timesteps(2)
    places = [(layer, branch, sample) for layer in range(2) for branch in ("cond", "uncond") for sample in range(2)]
    for seed, (layer, branch, sample) in enumerate(places):
        run.attend(layer=layer, row=Row(branch, sample, LAYOUT), seed=seed)
    masks = run.engine.masks()
    assert list(masks) == places
    dense = [found.mask.to_bool() for found in masks.values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(dense) for b in dense[:i])


def test_a_new_run_forgets_everything() -> None:
    run = Run(adaspa(1))
    run.steps(3)
    assert run.engine.masks() == {}
    run.scheduler.set_timesteps(3)
    assert run.engine.calls == []
    assert run.engine.searches == []
    run.attend()
    assert [call.plan for call in run.engine.calls] == [DENSE]


def test_full_attention_keeps_nothing() -> None:
    run = Run(Full())
    run.steps(3)
    assert run.masks == {}
    assert run.engine.searches == []
    assert [call.density for call in run.engine.calls] == [None] * 3


def test_a_token_layout_that_changes_within_a_run_is_an_error() -> None:
    run = Run(adaspa(0))
    run.scheduler.set_timesteps(2)
    run.attend()
    with pytest.raises(RunError, match="token layout changed"):
        run.attend(row=Row("cond", 0, TokenLayout(5, 4, 4, 10, "last")))


def test_attention_outside_a_run_is_an_error() -> None:
    with pytest.raises(RunError, match="outside a run"):
        Run(adaspa(0)).attend()


def test_time_is_taken_of_every_call() -> None:
    run = Run(adaspa(1))
    run.steps(3)
    assert all(call.span.seconds() > 0 for call in run.engine.calls)


@dataclass(frozen=True)
class Reordering(MaskPolicy):
    """A method of nobody: the first head attends in reverse order, each to the blocks that a number decides."""

    block_size: tuple[int, int] = (BLOCK, BLOCK)

    def decide(self, call: Call, last_search: int | None) -> CallPlan:
        assert last_search is None, "estimates are of one call: there is nothing to remember"
        return ESTIMATE if call.step else DENSE

    def estimate(self, call: Call, q: Tensor, k: Tensor, v: Tensor, scale: float) -> FoundMask:
        assert q.shape == k.shape == v.shape == (1, HEADS, call.layout.tokens, 32)
        assert scale == pytest.approx(32**-0.5)
        blocks = call.layout.blocks(BLOCK)
        kept = torch.rand(HEADS, blocks, blocks, generator=torch.Generator().manual_seed(call.step)) < 0.5
        back = torch.arange(call.layout.tokens).flip(0)
        order = HeadOrder(torch.arange(HEADS) == 0, back, back)
        return FoundMask(BlockMask.from_bool(kept, self.block_size), None, order)


def test_an_estimated_mask_is_used_in_its_order_and_the_output_comes_back_in_the_model_s() -> None:
    policy = Reordering()
    out = Run(policy).steps(2)[1]
    q, k, v = tensors(1)
    mask = policy.estimate(Call(0, 1, "cond", 0, LAYOUT), q, k, v, 32**-0.5).mask.to_bool()
    kept = mask.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)[:, : LAYOUT.tokens, : LAYOUT.tokens]
    kept[0] = kept[0].flip(0, 1)  # both tokens of a pair in the model's order
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=kept)
    # Float32, another order of the sums; a row that keeps nothing is zero.
    torch.testing.assert_close(out, expected.nan_to_num(0), rtol=1e-5, atol=1e-5)


def test_an_estimated_mask_is_recorded_and_not_kept() -> None:
    run = Run(Reordering())
    run.steps(3)
    assert run.masks == {}
    assert [(search.step, search.recall) for search in run.engine.searches] == [(1, None), (2, None)]
    for call, search in zip(run.engine.calls[1:], run.engine.searches, strict=True):
        assert call.plan == ESTIMATE
        assert call.density is not None
        assert torch.equal(call.density, search.density)


def test_a_way_of_finding_masks_that_a_method_lacks_is_named() -> None:
    with pytest.raises(NotImplementedError, match="Full does not search"):
        Full().search(Call(0, 0, "cond", 0, LAYOUT), torch.ones(HEADS, 1, 1))
    with pytest.raises(NotImplementedError, match="AdaSpa does not estimate"):
        adaspa(0).estimate(Call(0, 0, "cond", 0, LAYOUT), *tensors(), 1.0)


@dataclass(frozen=True)
class Loading(MaskPolicy):
    """Dense, then a mask that was made before: at once, or after a look at the attention."""

    mask: BlockMask
    checks: bool

    @property
    def block_size(self) -> tuple[int, int]:
        return BLOCK, BLOCK

    def decide(self, call: Call, last_search: int | None) -> CallPlan:
        if call.step == 0 or last_search is not None:
            return DENSE if call.step == 0 else SPARSE
        return CHECK if self.checks else LOAD

    def load(self, call: Call, device: torch.device) -> FoundMask:  # noqa: ARG002
        return FoundMask(self.mask.to(device), torch.full((HEADS,), 0.5), loaded=True)

    def search(self, call: Call, block_sums: Tensor, scores: Tensor | None = None) -> FoundMask:  # noqa: ARG002
        assert block_sums.shape == (HEADS, 7, 7)
        return self.load(call, block_sums.device)


@pytest.mark.parametrize("checks", [False, True])
def test_loaded_masks_are_used_at_once_or_after_a_dense_check(checks: bool) -> None:
    random = torch.rand(HEADS, 7, 7, generator=torch.Generator().manual_seed(0))
    mask = BlockMask.from_bool(random < 0.5, (BLOCK, BLOCK))
    run = Run(Loading(mask, checks))
    outputs = run.steps(3)
    dense = [dense_attention(*tensors(step), backend="reference")[0] for step in range(3)]
    sparse = [block_sparse_attention(*tensors(step), mask, backend="reference") for step in range(3)]
    expected = [dense[0], dense[1] if checks else sparse[1], sparse[2]]
    assert all(torch.equal(out, right) for out, right in zip(outputs, expected, strict=True))
    (search,) = run.engine.searches
    assert (search.step, search.loaded) == (1, True)
    assert torch.equal(search.density, mask.density())
    densities = [call.density is not None for call in run.engine.calls]
    assert densities == [False, not checks, True]
    assert [entry.lse for entry in run.memory] == [None]


# --- masks that the branches of guidance share

OTHER = Row("uncond", 0, dataclasses.replace(LAYOUT, text_tokens=40))


def both_branches(run: Run, count: int, first: int = 0) -> list[tuple[CallPlan, CallPlan, Tensor]]:
    """Per step what the conditional and the other branch did, and the latter's output; ``first`` counts the seeds."""
    run.scheduler.set_timesteps(count)
    done = []
    for step in range(count):
        run.attend(seed=first + step)
        out = run.attend(row=OTHER, seed=first + 100 + step)
        done.append((*(call.plan for call in run.engine.calls[-2:]), out))
        run.scheduler.step()
    return done


@pytest.mark.parametrize("lse_cache", [True, False])
def test_the_unconditional_branch_searches_nothing_and_uses_the_other_s_masks(lse_cache: bool) -> None:
    run = Run(adaspa(1, 3, lse_cache=lse_cache), share_cfg_masks=True)
    done = both_branches(run, 5)
    again = (CACHED_SEARCH, SPARSE) if lse_cache else (SEARCH, DENSE)
    assert [actions for *actions, _ in done] == [
        [DENSE, DENSE],
        [SEARCH, DENSE],
        [SPARSE, SPARSE],
        list(again),
        [SPARSE, SPARSE],
    ]
    assert torch.equal(done[1][2], dense_attention(*tensors(101, OTHER.layout), backend="reference")[0])
    assert [(search.branch, search.step) for search in run.engine.searches] == [("cond", 1), ("cond", 3)]
    (found,) = run.masks.values()
    mask = fit_to_text(found, LAYOUT, OTHER.layout).mask
    expected = block_sparse_attention(*tensors(104, OTHER.layout), mask, backend="reference")
    assert torch.equal(done[4][2], expected)
    density = run.engine.calls[-1].density
    assert density is not None
    assert torch.equal(density, mask.density())


def test_a_mask_that_is_searched_again_is_shared_at_once() -> None:
    run = Run(adaspa(0, 2), share_cfg_masks=True)
    out = both_branches(run, 3)[2][2]
    (found,) = run.masks.values()
    mask = fit_to_text(found, LAYOUT, OTHER.layout).mask
    assert torch.equal(out, block_sparse_attention(*tensors(102, OTHER.layout), mask, backend="reference"))


def test_each_run_lends_masks_of_its_own() -> None:
    """Also where the step that found them is the same."""
    run = Run(adaspa(0, 3), share_cfg_masks=True)
    for first in (0, 50):
        out = both_branches(run, 2, first)[1][2]
        (found,) = run.masks.values()
        mask = fit_to_text(found, LAYOUT, OTHER.layout).mask
        assert torch.equal(out, block_sparse_attention(*tensors(101 + first, OTHER.layout), mask, backend="reference"))


def test_an_estimated_mask_is_shared_and_given_back() -> None:
    run = Run(SparseVideoGen(0.5, 1, BLOCK), share_cfg_masks=True)
    done = both_branches(run, 3)
    assert [actions for *actions, _ in done[1:]] == [[ESTIMATE, SPARSE]] * 2
    assert run.masks == {}
    assert [search.branch for search in run.engine.searches] == ["cond", "cond"]


def test_an_estimated_mask_is_not_used_at_a_later_step() -> None:
    run = Run(SparseVideoGen(0.5, 0, BLOCK), share_cfg_masks=True)
    run.scheduler.set_timesteps(2)
    run.attend()  # a cache skips the other branch here, and this one at the next step
    run.scheduler.step()
    run.attend(row=OTHER)
    assert [call.plan for call in run.engine.calls] == [ESTIMATE, DENSE]


def test_without_the_conditional_branch_s_mask_the_other_is_dense() -> None:
    run = Run(adaspa(0), share_cfg_masks=True)
    run.scheduler.set_timesteps(1)
    run.attend(row=OTHER)
    assert [call.plan for call in run.engine.calls] == [DENSE]
