"""How the estimated time follows from rates that are given; no clock is read."""

import dataclasses
from typing import Any

import pytest
import torch

from adaspa_cli.attention import TokenLayout, resolve
from adaspa_cli.config.methods import AdaSpaConfig
from adaspa_cli.forecast.calibration import Rates, Sample, calibrate, reduced
from adaspa_cli.forecast.duration import ModelWork, step_times
from adaspa_cli.forecast.steps import plan_steps
from adaspa_cli.masks.methods.registry import make_policy

LAYOUT = TokenLayout(4, 16, 16, 0, "last")
WORK = ModelWork(LAYOUT, heads=2, head_dim=16, layers=(3,), rows=LAYOUT.tokens, linear_flops=(1000.0,))
RATES = Rates(flop=1.0, channel=0.0, dense=1.0, sparse=2.0, search=0.5, pooled=0.125, repair=1.0)


def times(work: ModelWork = WORK, rates: Rates = RATES, sparsity: float = 0.75) -> list[Any]:
    config = AdaSpaConfig(sparsity=sparsity, search_steps=(1, 3), search_steps_for=None)
    steps = plan_steps(make_policy(config, 4), config.sparsities(4), LAYOUT)
    return step_times(steps, work, rates)


def test_each_phase_has_its_price() -> None:
    pairs, tokens = 1024**2 * 2, 1024 * 2
    dense, search, sparse, cached = (time.attention / 3 for time in times())
    assert dense == pairs
    assert search == pairs * 1.5
    assert sparse == pairs * (0.25 * 2.0 + 0.125) + tokens
    assert cached == pairs * (0.5 + 0.25 * 2.0 + 0.125) + tokens
    assert {time.seconds - time.attention for time in times()} == {1000.0}


def test_time_scales_with_passes_layers_and_length() -> None:
    once = sum(time.seconds for time in times())
    assert sum(time.seconds for time in times(dataclasses.replace(WORK, branches=2))) == 2 * once
    deeper = dataclasses.replace(WORK, layers=(6,), linear_flops=(2000.0,))
    assert sum(time.seconds for time in times(deeper)) == 2 * once
    longer = dataclasses.replace(WORK, layout=dataclasses.replace(LAYOUT, frames=8))
    assert times(longer)[0].attention == 4 * times()[0].attention


def test_a_borrowing_branch_searches_nothing() -> None:
    both = times(dataclasses.replace(WORK, branches=2, shares_masks=True))
    own = times()
    assert both[0].attention == 2 * own[0].attention
    assert both[1].attention == own[1].attention + own[2].attention
    assert both[3].attention == own[3].attention + own[2].attention


def test_attention_work_is_four_operations_a_pair_and_channel() -> None:
    config = AdaSpaConfig(sparsity=0.75, search_steps=(1,), search_steps_for=None)
    steps = plan_steps(make_policy(config, 4), config.sparsities(4), LAYOUT)
    assert WORK.attention_flops(steps) == 4 * 1024**2 * 2 * 16 * 3 * (1 + 1 + 0.25 + 0.25)


def test_a_sequence_is_reduced_to_the_same_kind() -> None:
    layout = TokenLayout(33, 45, 80, 300, "first")
    small = reduced(layout, 4096)
    assert 2000 < small.tokens <= 4096
    assert small.text_position == "first"
    assert small.text_tokens > 0
    assert reduced(LAYOUT, 4096) is LAYOUT


@pytest.mark.parametrize(
    "settings", [{}, {"remainder": "pooled", "repair": "probes", "probes": 8, "selection": "output-error"}]
)
def test_a_calibration_measures_what_the_method_does(settings: dict[str, Any]) -> None:
    config = AdaSpaConfig(sparsity=0.5, search_steps=(0,), search_steps_for=None, block_size=16, **settings)
    device, layout = torch.device("cpu"), TokenLayout(2, 8, 8, 5, "last")
    policy = make_policy(config, 4)
    sample = Sample(device, torch.float32, resolve("cpu", device), layout, 2, 16, policy, 1, searches=True)
    rates = calibrate(sample)
    assert min(rates.flop, rates.channel, rates.dense, rates.sparse, rates.search) > 0
    assert rates.estimate == 0
    assert rates.tokens == layout.tokens
    assert rates.seconds > 0
    if not settings:
        assert rates.pooled == rates.repair == 0
