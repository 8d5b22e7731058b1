"""What is foretold of a run's steps, and that a real run does it."""

import math
from typing import Any

import pytest

from adaspa_cli.attention import TokenLayout
from adaspa_cli.config import resolve
from adaspa_cli.config.caches import TaylorSeerConfig
from adaspa_cli.config.load import method_config
from adaspa_cli.forecast.steps import PlannedStep, expected_density, foretold_skips, phases, plan_steps
from adaspa_cli.masks.methods.registry import make_policy
from adaspa_cli.sampling.handle import apply
from tests.pipelines import hunyuan_video, latents

LAYOUT = TokenLayout(4, 16, 16, 10, "last")  # 16 blocks of video and one of text


def planned(steps: int, **flags: Any) -> list[PlannedStep]:
    method = resolve({"steps": steps, **flags}).config.method
    policy = make_policy(method.algorithm, steps)
    return plan_steps(policy, method.algorithm.sparsities(steps), LAYOUT, cache=method.cache)


def test_phases_are_those_of_the_schedule() -> None:
    steps = planned(50, method="adaspa", search_steps=(10, 30))
    assert phases(steps) == {"dense": 10, "search": 1, "sparse": 38, "cached search": 1}
    assert [step.step for step in steps if "search" in step.phase] == [10, 30]


def test_a_ramp_has_a_sparsity_and_a_density_for_each_step() -> None:
    steps = planned(4, method="adaspa", sparsity={0: 0.5, 2: 0.75})
    assert [step.sparsity for step in steps] == [0.5, 0.5, 0.75, 0.75]
    assert [step.density for step in steps] == [1.0, 1 - 128 / 289, 1 - 192 / 289, 1 - 192 / 289]


def test_expected_density_counts_text_as_kept() -> None:
    assert expected_density(0.0, LAYOUT, (64, 64)) == 1.0
    assert expected_density(0.75, LAYOUT, (64, 64)) == 1 - 16 * 12 / 17**2
    assert expected_density(0.75, TokenLayout(4, 16, 16, 0, "last"), (64, 64)) == 0.25


def test_dense_methods_have_no_sparsity() -> None:
    assert {(step.phase, step.sparsity, step.density) for step in planned(3, method="full")} == {("dense", None, 1.0)}


def test_taylorseer_computes_the_warm_up_and_one_step_in_each_interval() -> None:
    cache = TaylorSeerConfig(taylorseer_warmup=3, taylorseer_interval=3)
    assert sorted(foretold_skips(cache, 10)) == [3, 5, 6, 8, 9]
    assert not foretold_skips(TaylorSeerConfig(taylorseer_interval=1), 10)


RATIOS = (1.0, 1.05, 0.98, 1.02, 1.03, 1.02, 1.01, 1.03, 1.01, 0.99)


@pytest.mark.parametrize(
    "settings",
    [
        {"cache": "magcache", "magcache_ratios": RATIOS, "magcache_threshold": 0.08, "magcache_max_skips": 2},
        {"cache": "magcache", "magcache_ratios": RATIOS[:7], "magcache_retention": 0.3},
        {"cache": "taylorseer", "taylorseer_warmup": 2, "taylorseer_interval": 3},
        {"search_steps": (2, 6)},
        {"sparsity": 0.75, "search_steps": (0, 3), "cache": "taylorseer", "taylorseer_interval": 2},
    ],
)
def test_a_run_does_what_was_foretold(settings: dict[str, Any]) -> None:
    pipe, own = hunyuan_video(), {"search_steps": (1,), "block_size": 16} | settings
    config = method_config("adaspa", own)
    with apply(pipe, "adaspa", **own) as handle:
        latents(pipe, num_inference_steps=10)
    done = {call.step: call.plan.phase for call in handle.engine.calls if call.layer == 0}
    policy = make_policy(config.algorithm, 10)
    steps = plan_steps(policy, config.algorithm.sparsities(10), LAYOUT, cache=config.cache)
    assert [step.phase for step in steps] == [done.get(step, "skipped") for step in range(10)]


def test_a_search_waits_for_a_computed_step() -> None:
    steps = planned(8, method="adaspa", search_steps=(4,), cache="taylorseer", taylorseer_warmup=2)
    assert [step.phase for step in steps if step.plan is not None] == ["dense", "dense", "dense"]
    assert math.isclose(sum(step.density for step in steps), 3.0)
