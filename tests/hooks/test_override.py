"""Overrides nest, come off in any order, and leave an instance as it was."""

import copy
import functools
import gc
import inspect
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

import adaspa_cli
from adaspa_cli.errors import RunError
from adaspa_cli.hooks.override import Override
from tests.pipelines import cogvideox, hunyuan_video, latents


class Counter:
    def __init__(self, start: int = 0) -> None:
        self.start = start

    def count(self, by: int = 1) -> str:
        return str(self.start + by)


def tagged(tag: str) -> Callable[[Callable[..., str]], Callable[..., str]]:
    def wrap(original: Callable[..., str]) -> Callable[..., str]:
        return lambda *args, **kwargs: f"{tag}({original(*args, **kwargs)})"

    return wrap


@pytest.mark.parametrize("order", list(itertools.permutations("abc")))
@pytest.mark.parametrize("own", [False, True])
def test_overrides_come_off_in_any_order(order: tuple[str, ...], own: bool) -> None:
    counter = Counter()
    if own:
        counter.count = mine = lambda by=1: f"mine {by}"  # type: ignore[method-assign]
    before, plain = dict(vars(counter)), counter.count(2)
    overrides = {tag: Override(counter, "count", tagged(tag)) for tag in "abc"}
    assert counter.count(2) == f"c(b(a({plain})))"
    left = list("abc")
    for tag in order:
        overrides[tag].restore()
        overrides[tag].restore()
        left.remove(tag)
        expected = plain
        for inner in left:
            expected = f"{inner}({expected})"
        assert counter.count(2) == expected
    assert vars(counter) == before
    assert not own or counter.count is mine


def test_another_wrapper_lets_calls_through_and_keeps_nothing_of_ours() -> None:
    class Owner:
        pass

    class Tagged:
        def __init__(self, owner: Owner) -> None:
            self.owner = owner

        def __call__(self, original: Callable[..., str]) -> Callable[..., str]:
            return lambda by: f"{self.owner and 'ours'} {original(by)}"

    counter, owner = Counter(), Owner()
    override = Override(counter, "count", Tagged(owner))
    ours = counter.count

    @functools.wraps(ours)
    def theirs(*args: Any) -> str:
        return f"theirs({ours(*args)})"

    counter.count = theirs  # type: ignore[method-assign]
    later = Override(counter, "count", tagged("later"))
    assert counter.count(2) == "later(theirs(ours 2))"
    override.restore()
    dead = weakref.ref(owner)
    del owner, override
    gc.collect()
    assert dead() is None
    assert counter.count(2) == "later(theirs(2))"
    later.restore()
    assert counter.count is theirs
    counter.count = ours  # type: ignore[method-assign]  # they are gone too: what stays is healed by the next override
    Override(counter, "count", tagged("a")).restore()
    assert "count" not in vars(counter)


def test_a_wrapper_looks_like_the_method() -> None:
    counter = Counter()
    signature = inspect.signature(counter.count)
    Override(counter, "count", tagged("a"))
    assert inspect.signature(counter.count) == signature
    assert counter.count.__name__ == "count"


def test_a_deep_copy_is_as_without_us() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    override = Override(scheduler, "set_timesteps", lambda original: lambda _steps: original(2))
    copied = copy.deepcopy(scheduler)
    copied.set_timesteps(7)
    assert len(copied.timesteps) == 7
    assert len(scheduler.timesteps) == 1000
    override.restore()
    assert "set_timesteps" not in vars(scheduler)
    counter = Counter(5)
    counter.count = lambda: "mine"  # type: ignore[method-assign]
    Override(counter, "count", tagged("a"))
    assert copy.deepcopy(counter).count() == "mine"
    assert copy.deepcopy(counter.count)() == "mine"


def test_a_shallow_copy_is_as_without_us() -> None:
    scheduler, counter = FlowMatchEulerDiscreteScheduler(), Counter(5)
    before = set(vars(scheduler))
    overrides = [
        Override(scheduler, name, lambda original: lambda _: original(2)) for name in ("set_timesteps", "step")
    ]
    copied = copy.copy(scheduler)
    assert set(vars(copied)) == before
    copied.set_timesteps(7)
    assert len(copied.timesteps) == 7
    assert len(scheduler.timesteps) == 1000
    for override in overrides:
        override.restore()
    assert set(vars(scheduler)) == before
    counter.count = lambda: "mine"  # type: ignore[method-assign]
    Override(counter, "count", tagged("a"))
    assert copy.copy(counter).count() == "mine"


def test_a_shallow_copy_of_an_attached_pipeline_s_parts() -> None:
    pipe = cogvideox()
    with adaspa_cli.apply(pipe):
        copied = copy.copy(pipe.transformer)
        assert copied.cache_context.__self__ is copied
        with pytest.raises(RunError, match="is a copy of one that adaspa was applied to"):
            copied(timestep=pipe.scheduler.timesteps[:1])
    assert "__getstate__" not in vars(pipe.transformer)


def test_a_compiled_module_s_method_is_replaced_where_it_is() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def name(self) -> str:
            return "net"

    net = Net()
    compiled: Any = torch.compile(net, backend="eager")
    before = set(vars(net)), set(vars(compiled))
    first, second = Override(compiled, "name", tagged("a")), Override(net, "name", tagged("b"))
    third = Override(compiled, "name", tagged("c"))
    assert compiled.name() == net.name() == "c(b(a(net)))"
    for override in (first, second, third):
        override.restore()
    assert (set(vars(net)), set(vars(compiled))) == before
    assert compiled.name() == "net"


def test_hooks_of_accelerate_and_overrides_stand_each_other() -> None:
    class Twice(ModelHook):  # type: ignore[misc]
        def post_forward(self, _module: nn.Module, output: torch.Tensor) -> torch.Tensor:
            return 2 * output

    net, x = nn.Identity(), torch.ones(1)
    override = Override(net, "forward", lambda original: lambda x: original(x) + 1)
    add_hook_to_module(net, Twice())
    later = Override(net, "forward", lambda original: lambda x: original(x) + 10)
    assert net(x) == 14
    override.restore()
    assert net(x) == 12
    later.restore()
    assert net(x) == 2
    remove_hook_from_module(net)
    assert net(x) == 1


@pytest.mark.parametrize("make", [hunyuan_video, cogvideox])
def test_handles_on_one_scheduler_come_off_in_the_order_applied(make: Callable[[], Any]) -> None:
    one, two = make(), make()
    two.scheduler = one.scheduler
    before = set(vars(one.scheduler))
    first, second = adaspa_cli.apply(one), adaspa_cli.apply(two)
    first.remove()
    second.remove()
    assert set(vars(one.scheduler)) == before
    latents(one, num_inference_steps=1)


def test_a_compiled_transformer_keeps_nothing_of_a_removed_handle() -> None:
    pipe = hunyuan_video()
    net = pipe.transformer
    pipe.transformer = torch.compile(net, backend="eager")
    before = set(vars(net)), set(vars(pipe.transformer))
    engines = []
    for _ in range(3):
        handle = adaspa_cli.apply(pipe, "adaspa", cache="first-block")
        engines.append(weakref.ref(handle.engine))
        handle.remove()
        del handle
    assert (set(vars(net)), set(vars(pipe.transformer))) == before
    gc.collect()
    assert [engine() for engine in engines] == [None] * 3


def test_a_copy_of_an_attached_scheduler_is_its_own() -> None:
    pipe = cogvideox()
    with adaspa_cli.apply(pipe):
        copied: CogVideoXDDIMScheduler = copy.deepcopy(pipe.scheduler)
        copied.set_timesteps(3)
        assert len(copied.timesteps) == 3
        assert len(pipe.scheduler.timesteps) == 1000
