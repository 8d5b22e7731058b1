"""The step clock: counts what the scheduler does, and leaves it as it was."""

import copy
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from adaspa_cli.errors import RunError
from adaspa_cli.hooks.clock import Listener, Order, StepClock


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
    clock.listen(Listener(Order.OBSERVERS, starts.append, ends.append))
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


def test_a_run_ends_with_its_last_step(pipe: Pipe) -> None:
    clock = StepClock(pipe)
    ends: list[int] = []
    clock.listen(Listener(Order.OBSERVERS, end=lambda: ends.append(clock.step)))
    pipe.scheduler.set_timesteps(3)
    advance(pipe, 2)
    assert (clock.steps, ends) == (3, [])
    advance(pipe, 1)
    assert ends == [3]
    with pytest.raises(RunError, match="outside a run"):
        _ = clock.steps


def test_a_run_that_did_not_come_to_its_end_ends_before_the_next(pipe: Pipe) -> None:
    clock = StepClock(pipe)
    heard: list[str] = []
    clock.listen(Listener(Order.OBSERVERS, start=lambda _steps: heard.append("start"), end=lambda: heard.append("end")))
    pipe.scheduler.set_timesteps(3)
    pipe.scheduler.set_timesteps(3)
    clock.stop()
    clock.stop()
    assert heard == ["start", "end", "start", "end"]


def test_listeners_hear_in_their_order_whoever_came_first(pipe: Pipe) -> None:
    clock = StepClock(pipe)
    heard: list[tuple[str, Order]] = []
    listeners = [
        Listener(
            order,
            lambda _steps, order=order: heard.append(("start", order)),
            lambda _step, order=order: heard.append(("step", order)),
            lambda order=order: heard.append(("end", order)),
        )
        for order in reversed(Order)
    ]
    for listener in listeners:
        clock.listen(listener)
    pipe.scheduler.set_timesteps(1)
    advance(pipe, 1)
    assert heard == [(event, order) for event in ("start", "step", "end") for order in Order]
    heard.clear()
    clock.ignore(listeners[0])
    clock.ignore(listeners[0])
    pipe.scheduler.set_timesteps(1)
    assert [order for _, order in heard] == list(Order)[:-1]


def test_a_scheduler_of_second_order_ends_with_its_last_timestep() -> None:
    pipe = Pipe(FlowMatchHeunDiscreteScheduler())
    clock = StepClock(pipe)
    pipe.scheduler.set_timesteps(3)
    assert clock.steps == 5
    advance(pipe, 4)
    assert clock.steps == 5
    advance(pipe, 1)
    with pytest.raises(RunError, match="outside a run"):
        _ = clock.steps


class Net(torch.nn.Module):
    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        return timestep


def watched(pipe: Any) -> tuple[StepClock, Net]:
    pipe.transformer = Net()
    clock = StepClock(pipe)
    clock.watch(pipe.transformer)
    return clock, pipe.transformer


@pytest.mark.parametrize("convert", [lambda t: t, lambda t: t.expand(2), lambda t: t.expand(2).to(torch.bfloat16)])
def test_a_run_of_the_last_timesteps_is_counted_from_its_first_call(pipe: Pipe, convert: Any) -> None:
    clock, net = watched(pipe)
    starts: list[int] = []
    clock.listen(Listener(Order.OBSERVERS, start=starts.append))
    pipe.scheduler.set_timesteps(5)
    for timestep in pipe.scheduler.timesteps[2:]:
        for _branch in range(2):
            net(timestep=convert(timestep))
        assert (clock.steps, clock.first) == (3, 2)
        pipe.scheduler.step(torch.zeros(1, 1), timestep, torch.zeros(1, 1))
    assert starts == [5, 3]
    with pytest.raises(RunError, match="outside a run"):
        net(timestep=pipe.scheduler.timesteps[-1])


def test_a_call_at_another_timestep_is_refused(pipe: Pipe) -> None:
    """A run that an exception ended, or that is in progress, does not serve others."""
    _, net = watched(pipe)
    pipe.scheduler.set_timesteps(5)
    for timestep in pipe.scheduler.timesteps[:2]:
        net(timestep=timestep)
        pipe.scheduler.step(torch.zeros(1, 1), timestep, torch.zeros(1, 1))
    with pytest.raises(RunError, match=r"outside step 2 \(of 0 to 4\)"):
        net(timestep=pipe.scheduler.timesteps[0].clone())
    pipe.scheduler.set_timesteps(5)
    with pytest.raises(RunError, match="none of the scheduler's"):
        net(timestep=torch.tensor(1234.5))


def test_a_copy_of_a_watched_transformer_is_refused(pipe: Pipe) -> None:
    clock, net = watched(pipe)
    pipe.scheduler.set_timesteps(5)
    copied = copy.deepcopy(net)
    with pytest.raises(RunError, match="is a copy of one that adaspa was applied to"):
        copied(timestep=pipe.scheduler.timesteps[0])
    clock.stop()
    net(timestep=torch.zeros(1))
    assert not net._forward_pre_hooks


def test_a_replaced_transformer_is_told_at_the_next_run(pipe: Pipe) -> None:
    _, net = watched(pipe)
    before = pipe.scheduler.timesteps
    pipe.transformer = torch.compile(net, backend="eager")  # type: ignore[attr-defined]
    with pytest.raises(RunError, match="the transformer was replaced after adaspa was applied"):
        pipe.scheduler.set_timesteps(3)
    assert pipe.scheduler.timesteps is before
