"""Every cache on every model: it skips what it should, changes nothing where it may skip nothing, and comes off again.

What was really computed is counted by the records of the attention engine, which know nothing of caches.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from adaspa_cli import apply
from adaspa_cli.errors import RunError
from adaspa_cli.masks import plan
from adaspa_cli.masks.plan import CACHED_SEARCH, DENSE, SEARCH
from tests.pipelines import cogvideox, hunyuan_video, latents

STEPS = 8
TOLERANCES = {"rtol": 1e-4, "atol": 1e-4}  # the same float32 sums in another order, as in tests/models
SPARSE = {
    "method": "adaspa",
    "sparsity": 0.6,
    "block_size": 16,
    "search_steps": (2, 5),
    "attention_backend": "reference",
}
EVERY_TIMESTEP = {"pab_timesteps": (-1, 2000)}

# Settings with which each cache skips at these sizes, and with which it may skip nothing.
SKIPPING: dict[str, dict[str, Any]] = {
    "pab": EVERY_TIMESTEP | {"pab_range": 3},
    "adacache": {"adacache_reuses": (2, 2, 2, 2, 2, 2)},
    "first-block": {"first_block_threshold": 10.0},
    "magcache": {"magcache_ratios": (1.0,)},
    "taylorseer": {"taylorseer_interval": 3, "taylorseer_warmup": 2},
}
NOT_SKIPPING: dict[str, dict[str, Any]] = {
    "pab": EVERY_TIMESTEP | {"pab_range": 1},
    "adacache": {"adacache_reuses": (0, 0, 0, 0, 0, 0)},
    "first-block": {"first_block_threshold": 0.0},
    "magcache": {"magcache_ratios": (1.0,), "magcache_max_skips": 0},
    "taylorseer": {"taylorseer_interval": 1},
}
# Computed steps of the first layer and of the others. AdaCache: two to compare, two reused, the last two computed.
# MagCache: a fifth of the steps is kept, then 3 skipped, 1 computed. TaylorSeer: 2 steps, then each third from 3 on.
COMPUTED: dict[str, tuple[list[int], list[int]]] = {
    "pab": ([0, 3, 6], [0, 3, 6]),
    "adacache": ([0, 1, 4, 6, 7], [0, 1, 4, 6, 7]),
    "first-block": (list(range(STEPS)), [0]),
    "magcache": ([0, 1, 5], [0, 1, 5]),
    "taylorseer": ([0, 1, 3, 6], [0, 1, 3, 6]),
}
CACHES = sorted(SKIPPING)
MODELS: dict[str, Callable[[], Any]] = {
    "hunyuan": hunyuan_video,
    "cogvideox": lambda: cogvideox("1.0"),
    "cogvideox 1.5": lambda: cogvideox("1.5"),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def pipe(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def hunyuan() -> Any:
    return hunyuan_video()


def make(pipe: Any, **settings: Any) -> torch.Tensor:
    return latents(pipe, **({"num_inference_steps": STEPS, "height": 32, "width": 48} | settings))


def fail_at(step: int) -> Callable[..., Any]:
    def callback(_pipe: Any, index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == step:
            raise ZeroDivisionError("in the middle")
        return values

    return callback


@pytest.mark.parametrize("cache", CACHES)
def test_what_may_not_be_skipped_is_computed_and_the_video_stays(pipe: Any, cache: str) -> None:
    plain = make(pipe)
    with apply(pipe, "full", cache=cache, **NOT_SKIPPING[cache]) as handle:
        made = make(pipe)
    assert handle.cache is not None
    assert handle.cache.report()["skipped"] == 0
    torch.testing.assert_close(made, plain, **TOLERANCES)


@pytest.mark.parametrize("cache", CACHES)
def test_steps_are_skipped_as_the_settings_say(pipe: Any, cache: str) -> None:
    plain = make(pipe)
    with apply(pipe, "full", cache=cache, **SKIPPING[cache]) as handle:
        made = make(pipe)
    assert torch.isfinite(made).all()
    assert not torch.allclose(made, plain, **TOLERANCES)
    by_layer = [
        sorted({call.step for call in handle.engine.calls if call.layer == layer}) for layer in range(handle.layers)
    ]
    first, others = COMPUTED[cache]
    assert by_layer == [first] + [others] * (handle.layers - 1)

    assert handle.cache is not None
    report = handle.cache.report()
    computed = sum(map(len, by_layer))
    assert (report["name"], report["computed"], report["possible"]) == (cache, computed, STEPS * handle.layers)
    assert report["skipped"] == pytest.approx(1 - computed / report["possible"])
    assert handle.cache.work.skipped(0) == 0
    assert handle.cache.work.skipped(2) == pytest.approx(1 - sum(2 in steps for steps in by_layer) / handle.layers)


@pytest.mark.parametrize("cache", CACHES)
def test_removal_leaves_the_video_as_it_was(pipe: Any, cache: str) -> None:
    plain = make(pipe)
    handle = apply(pipe, "full", cache=cache, **SKIPPING[cache])
    make(pipe)
    handle.remove()
    handle.remove()
    assert torch.equal(make(pipe), plain)
    assert not pipe.transformer.is_cache_enabled
    blocks = [*pipe.transformer.transformer_blocks, *getattr(pipe.transformer, "single_transformer_blocks", ())]
    touched = [*blocks, *(getattr(block, "attn", None) or block.attn1 for block in blocks)]
    assert all("forward" not in vars(module) for module in touched)
    assert not pipe.transformer._forward_pre_hooks
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)


@pytest.mark.parametrize("cache", CACHES)
def test_an_exception_leaves_nothing_behind(hunyuan: Any, cache: str) -> None:
    plain = make(hunyuan)
    with pytest.raises(ZeroDivisionError), apply(hunyuan, "full", cache=cache, **SKIPPING[cache]):
        make(hunyuan, callback_on_step_end=fail_at(3))
    assert torch.equal(make(hunyuan), plain)
    with apply(hunyuan, "full", cache=cache, **SKIPPING[cache]) as handle:
        whole = make(hunyuan)
        with pytest.raises(ZeroDivisionError):
            make(hunyuan, prompt="something else", callback_on_step_end=fail_at(3))
        assert torch.equal(make(hunyuan), whole)
        assert handle.cache is not None
        assert handle.cache.report()["possible"] == STEPS * handle.layers


@pytest.mark.parametrize("cache", CACHES)
def test_two_pipelines_know_nothing_of_each_other(hunyuan: Any, cache: str) -> None:
    other = cogvideox()
    plain = make(other)
    with apply(hunyuan, "full", cache=cache, **SKIPPING[cache]):
        alone = make(hunyuan)
    settings = {"cache": cache, **SKIPPING[cache]}
    with apply(hunyuan, "full", **settings) as first, apply(other, "full", **settings) as second:
        make(other)
        assert first.cache is not None
        assert first.cache.work.possible == 0
        assert torch.equal(make(hunyuan), alone)
        assert second.cache is not None
        second.remove()
        assert torch.equal(make(hunyuan), alone)
    assert torch.equal(make(other), plain)


@pytest.mark.parametrize("cache", CACHES)
def test_nothing_is_kept_when_the_last_step_is_over(hunyuan: Any, cache: str) -> None:
    """Memory peaks in the VAE, which comes next."""
    with apply(hunyuan, "full", cache=cache, **SKIPPING[cache]) as handle:
        make(hunyuan)
        assert not hunyuan.transformer.is_cache_enabled
        assert not getattr(handle.cache, "_memory", None)


@pytest.mark.parametrize("cache", sorted({*CACHES} - {"pab"}))
def test_guidance_branches_in_passes_of_their_own_are_not_mixed_up(hunyuan: Any, cache: str) -> None:
    """A scale of (nearly) 1 cancels the unconditional prediction: were results mixed up, the video would change."""
    with apply(hunyuan, "full", cache=cache, **SKIPPING[cache]):
        alone = make(hunyuan)
        guided = make(hunyuan, negative_prompt="a green square", true_cfg_scale=1.0 + 1e-7)
    torch.testing.assert_close(guided, alone, rtol=1e-3, atol=1e-3)


def test_pab_refuses_guidance_branches_in_passes_of_their_own(hunyuan: Any) -> None:
    with apply(hunyuan, "pab"), pytest.raises(RunError, match="two guidance branches per step"):
        make(hunyuan, negative_prompt="a green square", true_cfg_scale=4.0)


def test_a_cache_of_the_user_s_own_is_an_error(hunyuan: Any) -> None:
    from diffusers import FirstBlockCacheConfig

    hunyuan.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(RunError, match="already enabled on this transformer"):
        apply(hunyuan, cache="taylorseer")
    hunyuan.transformer.disable_cache()
    with apply(hunyuan, "full", cache="taylorseer"):
        make(hunyuan)


@pytest.mark.parametrize("cache", CACHES)
def test_adaspa_searches_at_the_first_call_that_the_cache_executes(pipe: Any, cache: str) -> None:
    with apply(pipe, cache=cache, **SPARSE, **SKIPPING[cache]) as handle:
        made = make(pipe)
    assert torch.isfinite(made).all()
    first, others = COMPUTED[cache]
    for layer in range(handle.layers):
        executed = first if layer == 0 else others
        calls = {call.step: call.plan for call in handle.engine.calls if call.layer == layer}
        assert sorted(calls) == executed
        searches = [next((step for step in executed if step >= wanted), None) for wanted in SPARSE["search_steps"]]
        for step, action in calls.items():
            if step < 2:
                assert action == DENSE
            elif step == searches[0]:
                assert action == SEARCH
            elif step == searches[1]:
                assert action == CACHED_SEARCH
            else:
                assert action == plan.SPARSE


def test_the_presets_are_methods_by_themselves(hunyuan: Any) -> None:
    for method in ("pab", "adacache"):
        with apply(hunyuan, method) as handle:
            make(hunyuan)
            assert handle.cache is not None
            assert handle.cache.name == method
            assert {call.plan for call in handle.engine.calls} == {DENSE}
