"""The step clock: counts what the scheduler does, and leaves it as it was."""

from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler

from adaspa_cli.errors import RunError
from adaspa_cli.hooks.clock import StepClock


class Pipe:
    """All that the clock knows of a pipeline."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler


@pytest.fixture(params=[FlowMatchEulerDiscreteScheduler, CogVideoXDDIMScheduler])
def pipe(request: pytest.FixtureRequest) -> Pipe:
    return Pipe(request.param())


def advance(pipe: Pipe, steps: int) -> None:
    sample = torch.zeros(1, 1)
    for timestep in pipe.scheduler.timesteps[:steps]:
        sample = pipe.scheduler.step(torch.zeros(1, 1), timestep, sample, return_dict=False)[0]


def test_a_run_is_counted_from_zero(pipe: Pipe) -> None:
    clock = StepClock(pipe)
    pipe.scheduler.set_timesteps(5)
    assert (clock.steps, clock.step) == (5, 0)
    advance(pipe, 3)
    assert clock.step == 3


def test_a_new_run_starts_again_also_after_one_that_did_not_end(pipe: Pipe) -> None:
    clock = StepClock(pipe)
    pipe.scheduler.set_timesteps(5)
    advance(pipe, 3)
    pipe.scheduler.set_timesteps(7)
    assert (clock.steps, clock.step) == (7, 0)


def test_listeners_hear_of_starts_and_of_each_step_by_its_number(pipe: Pipe) -> None:
    clock = StepClock(pipe)
    starts: list[int] = []
    ends: list[int] = []
    clock.on_start.append(starts.append)
    clock.on_step_end.append(ends.append)
    pipe.scheduler.set_timesteps(4)
    advance(pipe, 4)
    assert starts == [4]
    assert ends == [0, 1, 2, 3]


def test_results_and_signatures_of_the_scheduler_are_unchanged(pipe: Pipe) -> None:
    import inspect

    signatures = [inspect.signature(getattr(pipe.scheduler, name)) for name in ("step", "set_timesteps")]
    StepClock(pipe)
    assert [inspect.signature(getattr(pipe.scheduler, name)) for name in ("step", "set_timesteps")] == signatures
    pipe.scheduler.set_timesteps(3)
    other = type(pipe.scheduler)()
    other.set_timesteps(3)
    noise, sample = torch.ones(1, 2), torch.full((1, 2), 0.5)
    expected = other.step(noise, other.timesteps[0], sample, return_dict=False)[0]
    assert torch.equal(pipe.scheduler.step(noise, pipe.scheduler.timesteps[0], sample, return_dict=False)[0], expected)


def test_stopping_gives_the_scheduler_its_methods_back(pipe: Pipe) -> None:
    before = set(vars(pipe.scheduler))
    clock = StepClock(pipe)
    assert {"step", "set_timesteps"} <= set(vars(pipe.scheduler))
    clock.stop()
    clock.stop()
    assert set(vars(pipe.scheduler)) == before


def test_stopping_leaves_the_wrapper_of_somebody_else_alone(pipe: Pipe) -> None:
    clock = StepClock(pipe)
    ours = pipe.scheduler.step
    pipe.scheduler.step = theirs = lambda *args, **kwargs: ours(*args, **kwargs)
    clock.stop()
    assert pipe.scheduler.step is theirs


def test_an_instance_s_own_method_comes_back(pipe: Pipe) -> None:
    original = pipe.scheduler.step
    pipe.scheduler.step = mine = lambda *args, **kwargs: original(*args, **kwargs)
    clock = StepClock(pipe)
    assert pipe.scheduler.step is not mine
    clock.stop()
    assert pipe.scheduler.step is mine


def test_before_a_run_there_is_no_number_of_steps(pipe: Pipe) -> None:
    with pytest.raises(RunError, match="outside a run"):
        _ = StepClock(pipe).steps


def test_a_replaced_scheduler_is_noticed(pipe: Pipe) -> None:
    clock = StepClock(pipe)
    pipe.scheduler.set_timesteps(3)
    pipe.scheduler = type(pipe.scheduler)()
    with pytest.raises(RunError, match="scheduler was replaced"):
        _ = clock.steps


def test_the_shift_may_change_the_number_of_timesteps_but_not_the_count() -> None:
    """Timesteps may be given by hand: what counts is how many there are."""
    pipe = Pipe(FlowMatchEulerDiscreteScheduler())
    clock = StepClock(pipe)
    pipe.scheduler.set_timesteps(sigmas=[1.0, 0.5])
    assert clock.steps == 2
