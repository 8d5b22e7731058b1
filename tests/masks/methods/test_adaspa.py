"""What AdaSpa does at each step: dense warm-up, a search at t1, sparse steps, cheaper searches later."""

import pytest

from adaspa_cli.attention import TokenLayout
from adaspa_cli.config.methods import AdaSpaConfig, FullConfig
from adaspa_cli.errors import ConfigError
from adaspa_cli.masks import Call, CallPlan
from adaspa_cli.masks.methods.adaspa import AdaSpa
from adaspa_cli.masks.methods.full import Full
from adaspa_cli.masks.methods.registry import make_policy
from adaspa_cli.masks.plan import CACHED_SEARCH, DENSE, SEARCH, SPARSE

LAYOUT = TokenLayout(1, 8, 8, 4, "last")


def actions(policy: AdaSpa | Full, executed: list[int]) -> dict[int, CallPlan]:
    """What the calls of one layer do, where it is executed at these steps alone."""
    last_search, done = None, {}
    for step in executed:
        done[step] = policy.decide(Call(0, step, "cond", 0, LAYOUT), last_search)
        if done[step] in (SEARCH, CACHED_SEARCH):
            last_search = step
    return done


def test_the_paper_s_schedule() -> None:
    done = actions(AdaSpa(0.8, (10, 30)), list(range(50)))
    assert [done[step] for step in range(10)] == [DENSE] * 10
    assert done[10] == SEARCH
    assert [done[step] for step in range(11, 30)] == [SPARSE] * 19
    assert done[30] == CACHED_SEARCH
    assert [done[step] for step in range(31, 50)] == [SPARSE] * 19


def test_without_the_lse_cache_every_search_takes_two_passes() -> None:
    done = actions(AdaSpa(0.8, (10, 30), lse_cache=False), list(range(50)))
    searches = [step for step, action in done.items() if action == SEARCH]
    assert searches == [10, 30]
    assert CACHED_SEARCH not in done.values()


def test_a_search_at_step_zero_leaves_no_warm_up() -> None:
    done = actions(AdaSpa(0.85, (0,)), list(range(6)))
    assert list(done.values()) == [SEARCH] + [SPARSE] * 5


def test_a_skipped_call_delays_the_search_to_the_next_executed_one() -> None:
    executed = [step for step in range(50) if step not in (10, 11, 30)]
    done = actions(AdaSpa(0.8, (10, 30)), executed)
    searches = {step: action for step, action in done.items() if "search" in action.phase}
    assert searches == {12: SEARCH, 31: CACHED_SEARCH}


def test_search_steps_that_were_all_skipped_are_made_up_for_by_one_search() -> None:
    done = actions(AdaSpa(0.8, (10, 30)), [*range(10), *range(35, 50)])
    assert done[35] == SEARCH
    assert {done[step] for step in range(36, 50)} == {SPARSE}


def test_the_lse_is_kept_only_while_a_cached_search_is_to_come() -> None:
    policy = AdaSpa(0.8, (10, 20, 30))
    assert [policy.keeps_lse(step) for step in (10, 12, 20, 29, 30, 31)] == [True, True, True, True, False, False]
    assert not AdaSpa(0.8, (0,)).keeps_lse(0)
    assert not AdaSpa(0.8, (10, 30), lse_cache=False).keeps_lse(10)


def test_full_attention_is_dense_at_every_step() -> None:
    assert set(actions(Full(), list(range(50))).values()) == {DENSE}
    assert not Full().keeps_lse(0)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (50, (10, 30)),
        (100, (10, 30)),
        (31, (10, 30)),  # the last step is 30: nothing needs to be scaled
        (30, (6, 18)),
        (25, (5, 15)),
        (12, (2, 7)),
        (10, (2, 6)),
        (2, (0, 1)),
        (1, (0,)),
    ],
)
def test_fewer_steps_than_the_last_search_scale_the_schedule(steps: int, expected: tuple[int, ...]) -> None:
    assert AdaSpaConfig(search_steps=(10, 30), search_steps_for=50).schedule(steps) == expected


@pytest.mark.parametrize(("steps", "expected"), [(12, (2, 7)), (24, (2, 7)), (8, (2, 7)), (6, (1, 3)), (2, (0, 1))])
def test_the_schedule_of_the_bundled_model(steps: int, expected: tuple[int, ...]) -> None:
    assert AdaSpaConfig(search_steps=(2, 7), search_steps_for=12).schedule(steps) == expected


@pytest.mark.parametrize("steps", range(1, 40))
def test_a_scaled_schedule_ascends_and_ends_within_the_run(steps: int) -> None:
    planned = AdaSpaConfig(search_steps=(10, 20, 39), search_steps_for=50).schedule(steps)
    assert list(planned) == sorted(set(planned))
    assert planned[0] >= 0
    assert planned[-1] < steps


def test_an_exact_search_step_beyond_the_last_step_is_refused() -> None:
    method = AdaSpaConfig(search_steps=(2, 12), search_steps_for=None)
    assert method.schedule(13) == (2, 12)
    with pytest.raises(ConfigError, match="search step 12 is beyond the last step, which is 11"):
        method.schedule(12)
    with pytest.raises(ConfigError, match="search step 12"):
        make_policy(method, 12)


@pytest.mark.parametrize("meant_for", [0, -5])
def test_a_schedule_for_no_steps_is_refused(meant_for: int) -> None:
    with pytest.raises(ConfigError, match="search_steps_for"):
        AdaSpaConfig(search_steps=(10, 30), search_steps_for=meant_for).schedule(12)


def test_settings_become_a_policy() -> None:
    algorithm = AdaSpaConfig(sparsity=0.7, block_size=32, search_steps=(1,), head_adaptive=False, lse_cache=False)
    assert make_policy(algorithm, 12) == AdaSpa(0.7, (1,), (32, 32), budget="row", lse_cache=False)
    assert make_policy(AdaSpaConfig(), 12) == AdaSpa(0.8, (2, 7))
    assert make_policy(FullConfig(), 12) == Full()
