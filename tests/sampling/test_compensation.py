"""The engine with what makes up for left-out blocks: outputs, the LSE of the step before, and the records."""

import dataclasses

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import BlockMask, dense_attention, resolve
from adaspa_cli.attention.compensated import Compensation, compensated_attention
from adaspa_cli.attention.remainder import block_means
from adaspa_cli.masks import Call
from adaspa_cli.masks.budget import select_by_score
from adaspa_cli.masks.methods.adaspa import AdaSpa
from adaspa_cli.masks.output_error import output_error
from adaspa_cli.masks.plan import CACHED_SEARCH, SEARCH, SPARSE
from adaspa_cli.models.attachment import Row
from tests.sampling.test_engine import BLOCK, HEADS, LAYOUT, Run, tensors

SCALE = 32**-0.5
EVERYTHING = Compensation(pooled=True, probes=16, ridge=3.0)
BACKEND = resolve("reference", torch.device("cpu"))


def plus(*search_steps: int, **settings: object) -> AdaSpa:
    own = {"compensation": EVERYTHING, "fresh_lse": True, "selection": "output-error", "budget": "layer"} | settings
    return AdaSpa(0.6, search_steps, (BLOCK, BLOCK), **own)  # type: ignore[arg-type]


def compensated(step: int, mask: object) -> tuple[Tensor, Tensor]:
    out, lse, _ = compensated_attention(
        *tensors(step), mask, LAYOUT, SCALE, backend=BACKEND, compensation=EVERYTHING,  # type: ignore[arg-type]
    )  # fmt: skip
    return out, lse


def test_sparse_calls_make_up_for_what_their_mask_leaves_out() -> None:
    run = Run(plus(1, fresh_lse=False))
    outputs = run.steps(4)
    (found,) = run.masks.values()
    for step in (2, 3):
        assert torch.equal(outputs[step], compensated(step, found.mask)[0])
    for step in (0, 1):
        assert torch.equal(outputs[step], dense_attention(*tensors(step), backend="reference")[0])


def test_a_search_looks_at_the_values() -> None:
    run = Run(plus(1, fresh_lse=False))
    run.steps(2)
    (found,) = run.masks.values()
    q, k, v = tensors(1)
    sums = BACKEND.search(q, k, v, (BLOCK, BLOCK), SCALE)[2][0]
    scores = output_error(sums, block_means(v, BLOCK)[0])
    expected = select_by_score(sums, scores, LAYOUT, (BLOCK, BLOCK), 0.6, "layer")
    assert torch.equal(found.mask.to_bool(), expected.mask.to_bool())


def test_a_later_search_takes_the_lse_of_the_step_before() -> None:
    run = Run(plus(1, 4))
    run.steps(5)
    (found,) = run.masks.values()
    first = Run(plus(1))
    first.steps(2)
    (earlier,) = first.masks.values()
    lse = compensated(3, earlier.mask)[1]
    q, k, v = tensors(4)
    sums = BACKEND.sums(q, k, lse, (BLOCK, BLOCK), SCALE)[0]
    expected = plus(1, 4).search(run_call(4), sums, output_error(sums, block_means(v, BLOCK)[0]))
    assert torch.equal(found.mask.to_bool(), expected.mask.to_bool())


def run_call(step: int) -> Call:
    return Call(0, step, "cond", 0, LAYOUT)


def test_a_fresh_lse_is_there_for_one_step_alone() -> None:
    run = Run(plus(0, 4))
    run.scheduler.set_timesteps(6)
    there = []
    for step in range(6):
        run.attend(seed=step)
        (memory,) = run.engine.memory.entries()
        there.append(memory.lse is not None)
        run.scheduler.step()
    assert there == [False, False, False, True, False, False]


def test_a_search_whose_lse_a_cache_skipped_is_dense() -> None:
    run = Run(plus(0, 3))
    run.scheduler.set_timesteps(5)
    for step in range(5):
        if step != 2:
            run.attend(seed=step)
        run.scheduler.step()
    assert [call.plan for call in run.engine.calls] == [
        SEARCH,
        SPARSE,
        SEARCH,
        SPARSE,
    ]


def test_searches_that_follow_one_another_pass_the_lse_on() -> None:
    run = Run(plus(0, 1, 2))
    run.steps(4)
    actions = [call.plan for call in run.engine.calls]
    assert actions == [
        SEARCH,
        CACHED_SEARCH,
        CACHED_SEARCH,
        SPARSE,
    ]


def test_each_sparse_call_records_what_it_knows_of_its_error() -> None:
    run = Run(plus(1))
    run.steps(3)
    estimates = [call.estimate for call in run.engine.calls]
    assert all(x is None for estimate in estimates[:2] for x in (estimate.pooled, estimate.before, estimate.after))
    last = estimates[2]
    for figure in (last.pooled, last.before, last.after):
        assert figure is not None
        assert figure.shape == (1, HEADS)
        assert bool((figure > 0).all())


@pytest.mark.parametrize("stride", [1, 4])
def test_a_search_weighs_every_nth_row(stride: int) -> None:
    run = Run(plus(0, 1, search_rows=stride))
    run.steps(2)
    (found,) = run.masks.values()
    q, k, v = tensors(1)
    lse = dense_attention(*tensors(0), backend="reference")[1]
    sums = BACKEND.sums(q, k, lse, (BLOCK, BLOCK), SCALE, stride)[0]
    expected = plus(0, 1).search(run_call(1), sums, output_error(sums, block_means(v, BLOCK)[0]))
    assert torch.equal(found.mask.to_bool(), expected.mask.to_bool())


def test_a_ramp_makes_later_masks_sparser() -> None:
    run = Run(AdaSpa((0.2, 0.2, 0.8, 0.8), (0, 2), (BLOCK, BLOCK), budget="row"))
    run.steps(4)
    early, late = (search.density for search in run.engine.searches)
    assert bool((early > 0.6).all())
    assert bool((late < early).all())


def test_a_borrowed_mask_is_compensated_as_well() -> None:
    run = Run(plus(0, fresh_lse=False), share_cfg_masks=True)
    run.scheduler.set_timesteps(2)
    for step in range(2):
        outputs = [run.attend(row=Row(branch, 0, LAYOUT), seed=step) for branch in ("cond", "uncond")]
        run.scheduler.step()
    (found,) = run.masks.values()
    assert torch.equal(outputs[1], compensated(1, found.mask)[0])


def test_a_layer_that_strays_too_far_searches_densely_at_its_next_call() -> None:
    run = Run(plus(0, max_error=1e-6))
    outputs = run.steps(5)
    assert [call.plan for call in run.engine.calls] == [SEARCH, SPARSE, SEARCH, SPARSE, SEARCH]
    assert run.engine.densified == 2
    assert torch.equal(outputs[2], dense_attention(*tensors(2), backend="reference")[0])
    assert [search.step for search in run.engine.searches] == [0, 2, 4]


def test_a_layer_within_the_limit_goes_on() -> None:
    run = Run(plus(0, 3, max_error=9.0))
    run.steps(5)
    assert [call.plan for call in run.engine.calls] == [SEARCH, SPARSE, SPARSE, CACHED_SEARCH, SPARSE]
    assert run.engine.densified == 0


def test_the_limit_is_of_the_mean_over_heads() -> None:
    run = Run(plus(0))
    run.steps(2)
    after = run.engine.calls[1].estimate.after
    assert after is not None
    error = float(after.square().mean().sqrt())
    for factor, expected in ((0.99, SEARCH), (1.01, SPARSE)):
        limited = Run(plus(0, max_error=factor * error))
        limited.steps(3)
        assert limited.engine.calls[2].plan == expected


def test_a_kept_lse_keeps_nothing_else_in_memory() -> None:
    """The Hopper kernel returns two LSE as parts of one tensor."""

    def pooled(
        q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, _video: range, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, lse = BACKEND.sparse(q, k, v, mask, scale)
        both = torch.stack([lse, lse])
        return out, both[0], both[1]

    run = Run(plus(0, 2))
    run.engine._backend = dataclasses.replace(BACKEND, pooled=pooled)
    run.scheduler.set_timesteps(4)
    for step in range(2):  # the search at step 2 takes the LSE of step 1
        run.attend(seed=step)
        if step == 0:
            run.scheduler.step()
    (entry,) = run.engine.memory.entries()
    assert entry.lse is not None
    assert entry.lse.untyped_storage().nbytes() == entry.lse.nbytes
