"""adaspa-plus in whole pipelines: exact where nothing is left out; with guidance, shared masks, caches, compiled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from adaspa_cli import apply
from adaspa_cli.masks.plan import CACHED_SEARCH, SEARCH, SPARSE
from adaspa_cli.report.compensation import compensation_use
from tests.pipelines import cogvideox, hunyuan_video, latents

# The same float32 sums in another order, as in tests/models/families.
TOLERANCES = {"rtol": 1e-4, "atol": 1e-4}
PLUS = {
    "method": "adaspa-plus",
    "block_size": 16,
    "search_rows": 4,
    "probes": 16,
    "sparsity": 0.6,
    "search_steps": (1, 3),
    "attention_backend": "reference",
}
NO_REPAIR = {"repair": "none"}
Make = Callable[..., Any]
families = pytest.mark.parametrize("make", [hunyuan_video, cogvideox])


def test_it_is_what_apply_runs_where_no_method_is_named() -> None:
    pipe = hunyuan_video()
    with apply(pipe, **{key: value for key, value in PLUS.items() if key != "method"}):
        unnamed = latents(pipe)
    with apply(pipe, **PLUS):
        assert torch.equal(latents(pipe), unnamed)
    with apply(pipe, "adaspa", sparsity=PLUS["sparsity"], block_size=PLUS["block_size"]):
        assert not torch.equal(latents(pipe), unnamed)


@families
@pytest.mark.parametrize("changed", [{"sparsity": 0.0}, {"probes": 4096}], ids=["all blocks", "probes on every row"])
def test_it_makes_the_dense_video_where_nothing_is_lost(make: Make, changed: dict[str, Any]) -> None:
    pipe = make()
    plain = latents(pipe)
    with apply(pipe, **(PLUS | changed)):
        torch.testing.assert_close(latents(pipe), plain, **TOLERANCES)
    torch.testing.assert_close(latents(pipe), plain)


@families
def test_a_ramp_is_dense_at_its_first_step_alone(make: Make) -> None:
    pipe = make()
    ramp = {"sparsity": {0: 0.3, "50%": 0.6}, "search_steps": (0,)}
    with apply(pipe, **(PLUS | ramp)) as handle:
        made = latents(pipe)
    assert torch.isfinite(made).all()
    by_step = {call.step: call.plan for call in handle.engine.calls}
    assert [by_step[step] for step in range(4)] == [
        SEARCH,
        SPARSE,
        CACHED_SEARCH,
        SPARSE,
    ]
    density = {call.step: float(call.density.mean()) for call in handle.engine.calls if call.density is not None}
    assert density[1] > density[2] == density[3]


@families
@pytest.mark.parametrize("piece", [{"remainder": "pooled"}, {"repair": "probes"}], ids=["remainder", "repair"])
def test_what_makes_up_for_left_out_blocks_brings_the_video_nearer(make: Make, piece: dict[str, Any]) -> None:
    pipe = make()
    plain, errors = latents(pipe), []
    alone = {"method": "adaspa", "head_adaptive": False, "block_size": 16, "sparsity": 0.6, "search_steps": (1, 3)}
    for settings in (alone, alone | piece):
        with apply(pipe, **settings, attention_backend="reference"):
            errors.append(float((latents(pipe) - plain).norm()))
    assert errors[1] < 0.97 * errors[0]


@families
def test_the_handle_has_the_error_estimate_of_the_report(make: Make) -> None:
    pipe = make()
    with apply(pipe, **PLUS) as handle:
        assert handle.error_estimate is None
        latents(pipe)
        found = compensation_use(handle.engine.calls)
        assert found is not None
        assert handle.error_estimate == pytest.approx(found.after, abs=1e-6)
        assert 0 < handle.error_estimate < 1
    with apply(pipe, **(PLUS | {"sparsity": 0.2})) as denser:
        latents(pipe)
    assert denser.error_estimate is not None
    assert denser.error_estimate < handle.error_estimate


@pytest.mark.parametrize(
    "settings", [{"method": "full"}, {"method": "adaspa", "block_size": 16}, {"method": "diffusers"}, PLUS | NO_REPAIR]
)
def test_without_a_repair_the_handle_has_no_error_estimate(settings: dict[str, Any]) -> None:
    pipe = hunyuan_video()
    with apply(pipe, **settings) as handle:
        latents(pipe)
    assert handle.error_estimate is None


GUIDED = {
    "true CFG": (hunyuan_video, {"true_cfg_scale": 3.0, "negative_prompt": "blurry, a circle"}),
    "batch-2 CFG": (cogvideox, {"guidance_scale": 4.0}),
}


@pytest.mark.parametrize("shared", [False, True], ids=["own masks", "shared masks"])
@pytest.mark.parametrize(("make", "settings"), GUIDED.values(), ids=GUIDED.keys())
def test_with_guidance_each_branch_is_made_up_for(make: Make, settings: dict[str, Any], shared: bool) -> None:
    pipe = make()
    with apply(pipe, **PLUS, share_cfg_masks=shared) as handle:
        made = latents(pipe, **settings)
    assert torch.isfinite(made).all()
    sparse = [call for call in handle.engine.calls if call.density is not None]
    assert len(sparse) == 2 * 2 * handle.layers
    assert all(call.estimate.after is not None for call in sparse)
    assert {search.branch for search in handle.engine.searches} == ({"cond"} if shared else {"cond", "uncond"})


@pytest.mark.parametrize("cache", ["first-block", "magcache"])
def test_a_cache_on_top_skips_what_it_skips(cache: str) -> None:
    pipe = hunyuan_video()
    settings = {"magcache_ratios": (1.0,) * 4} if cache == "magcache" else {"first_block_threshold": 10.0}
    with apply(pipe, **PLUS, cache=cache, **settings) as handle:
        made = latents(pipe)
    assert torch.isfinite(made).all()
    assert handle.cache is not None
    assert len(handle.engine.calls) < 4 * 4


def test_compiled_blocks_make_the_same_video() -> None:
    from adaspa_cli.models.compiled import compile_blocks

    pipe = hunyuan_video()
    with apply(pipe, **PLUS):
        plain = latents(pipe)
    blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    compile_blocks(blocks, torch.device("cpu"), backend="eager")
    with apply(pipe, **PLUS):
        torch.testing.assert_close(latents(pipe), plain, **TOLERANCES)
