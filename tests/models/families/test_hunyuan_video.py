"""HunyuanVideo with adaspa: the same video where nothing is left out, masks of their own, no trace after removal.

What every family does is in tests/models/test_every_family.py.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers import PyramidAttentionBroadcastConfig
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from torch import Tensor

from adaspa_cli import apply
from adaspa_cli.errors import AdaspaError, ConfigError, ModelError, RunError
from adaspa_cli.masks import plan
from adaspa_cli.masks.plan import CACHED_SEARCH, DENSE, SEARCH
from tests.pipelines import PROMPT, SPARSE, hunyuan_video, latents, masks_at_end

# The same float32 sums in another order: latents of size 1 differed by 5e-7 on one machine, and other machines have
# other orders. A fifth of the blocks left out changes them by more than 2e-3.
TOLERANCES = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def pipe() -> Any:
    return hunyuan_video()


@pytest.fixture(scope="module")
def plain() -> Tensor:
    """What diffusers makes."""
    return latents(hunyuan_video())


def processors(pipe: Any) -> list[Any]:
    blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    return [block.attn.processor for block in blocks]


def test_full_attention_makes_the_same_video(pipe: Any, plain: Tensor, backend: str) -> None:
    if backend == "triton":  # the rest of the model rounds differently on a GPU
        pipe = pipe.to("cuda")
        plain = latents(pipe)
    with apply(pipe, "full", attention_backend=backend) as handle:
        assert handle.layers == 4
        made = latents(pipe)
    assert {call.plan for call in handle.engine.calls} == {DENSE}
    assert len(handle.engine.calls) == 4 * 4
    torch.testing.assert_close(made, plain, **TOLERANCES)


@pytest.mark.parametrize("head_dim", [32, 128])
def test_other_head_dimensions(head_dim: int) -> None:
    pipe = hunyuan_video(attention_head_dim=head_dim, rope_axes_dim=(head_dim // 4, head_dim // 4, head_dim // 2))
    plain = latents(pipe)
    with apply(pipe, **(SPARSE | {"sparsity": 0.0})):
        torch.testing.assert_close(latents(pipe), plain, **TOLERANCES)


def test_embedded_guidance() -> None:
    pipe = hunyuan_video(guidance_embeds=True)
    plain = latents(pipe, guidance_scale=6.0)
    with apply(pipe, **(SPARSE | {"sparsity": 0.0})):
        torch.testing.assert_close(latents(pipe, guidance_scale=6.0), plain, **TOLERANCES)


def test_true_guidance_gives_each_branch_masks_of_its_own(pipe: Any) -> None:
    guided = {"negative_prompt": "green squares everywhere, at rest", "true_cfg_scale": 4.0}
    plain = latents(pipe, **guided)
    with apply(pipe, **(SPARSE | {"sparsity": 0.0})):
        torch.testing.assert_close(latents(pipe, **guided), plain, **TOLERANCES)
    with apply(pipe, **SPARSE) as handle:
        masks = masks_at_end(handle)
        latents(pipe, **guided)
    assert set(masks) == {(layer, branch, 0) for layer in range(4) for branch in ("cond", "uncond")}
    video = slice(0, 18)  # 288 video tokens in blocks of 16
    chosen = [[masks[layer, b, 0].mask.to_bool()[:, video, video] for layer in range(4)] for b in ("cond", "uncond")]
    assert any(not torch.equal(cond, uncond) for cond, uncond in zip(*chosen, strict=True))
    searched = {(search.layer, search.branch, search.step) for search in handle.engine.searches}
    assert searched == {(layer, b, step) for layer in range(4) for b in ("cond", "uncond") for step in (1, 3)}


NOISE = torch.randn(2, 4, 3, 8, 12, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("method", ["full", "adaspa"])
@pytest.mark.parametrize(
    "call",
    [
        {"prompt": [PROMPT, "a square"], "negative_prompt": "green", "true_cfg_scale": 4.0},
        {"prompt": "a square", "negative_prompt": "green", "true_cfg_scale": 4.0, "latents": NOISE},
        {"prompt": "a square", "latents": NOISE},
        {"prompt": [PROMPT, "a square"], "pooled": 1},
    ],
    ids=["one negative prompt", "one prompt of each branch", "one prompt", "one pooled embedding"],
)
def test_text_of_one_row_serves_all_videos(pipe: Any, method: str, call: dict[str, Any]) -> None:
    """diffusers broadcasts whatever has one row."""
    call = dict(call)
    if call.pop("pooled", None):
        embeddings, pooled, mask = pipe.encode_prompt(call.pop("prompt"), device=torch.device("cpu"))
        call |= {"prompt": None, "prompt_embeds": embeddings, "pooled_prompt_embeds": pooled[:1]}
        call["prompt_attention_mask"] = mask
    plain = latents(pipe, **call)
    with apply(pipe, **({} if method == "full" else SPARSE | {"sparsity": 0.0}) | {"method": method}) as handle:
        masks = masks_at_end(handle)
        torch.testing.assert_close(latents(pipe, **call), plain, **TOLERANCES)
    branches = {"cond", "uncond"} if "true_cfg_scale" in call else {"cond"}
    if method == "adaspa":
        assert {(branch, sample) for _, branch, sample in masks} == {(b, i) for b in branches for i in (0, 1)}


@pytest.mark.parametrize("method", ["adaspa", "frame-region", "sparse-videogen", "minference"])
def test_both_branches_of_true_guidance_may_share_masks(pipe: Any, method: str) -> None:
    """The prompts differ in length."""
    guided = {"negative_prompt": "green squares everywhere, at rest, and many more of them", "true_cfg_scale": 4.0}
    plain = latents(pipe, **guided)
    with apply(pipe, **(SPARSE | {"method": method, "sparsity": 0.0, "share_cfg_masks": True})):
        torch.testing.assert_close(latents(pipe, **guided), plain, **TOLERANCES)
    with apply(pipe, **(SPARSE | {"method": method, "share_cfg_masks": True})) as handle:
        latents(pipe, **guided)
    assert {search.branch for search in handle.engine.searches} == {"cond"}
    assert len(handle.engine.calls) == 2 * 4 * 4
    assert {call.density is None for call in handle.engine.calls if call.step > 1} == {False}


def test_the_conditional_branch_does_not_depend_on_the_other_being_there(pipe: Any) -> None:
    """A scale of (nearly) 1 cancels the unconditional prediction: were masks mixed up, the video would change."""
    with apply(pipe, **SPARSE):
        alone = latents(pipe)
        guided = latents(pipe, negative_prompt="a green square", true_cfg_scale=1.0 + 1e-7)
    # n + s (c - n) with s = 1 loses some digits of n.
    torch.testing.assert_close(guided, alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "call",
    [
        {"prompt": [PROMPT, "a square"]},
        {"prompt": PROMPT, "num_videos_per_prompt": 2},
        {"prompt": ["a square", PROMPT], "num_videos_per_prompt": 2},
    ],
    ids=["two prompts of different length", "two videos of one prompt", "both"],
)
def test_a_batch_makes_the_same_videos(pipe: Any, call: dict[str, Any]) -> None:
    plain = latents(pipe, **call)
    with apply(pipe, "full", attention_backend="reference"):
        torch.testing.assert_close(latents(pipe, **call), plain, **TOLERANCES)
    with apply(pipe, **(SPARSE | {"sparsity": 0.0})) as handle:
        masks = masks_at_end(handle)
        torch.testing.assert_close(latents(pipe, **call), plain, **TOLERANCES)
    assert {sample for _, _, sample in masks} == set(range(plain.shape[0]))


def test_a_video_does_not_depend_on_what_else_is_in_its_batch(pipe: Any) -> None:
    prompts = [PROMPT, "a square"]
    with apply(pipe, **SPARSE):
        together = latents(pipe, prompt=prompts, generator=[torch.Generator().manual_seed(s) for s in (5, 6)])
        for row, (prompt, seed) in enumerate(zip(prompts, (5, 6), strict=True)):
            alone = latents(pipe, prompt=prompt, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(together[row : row + 1], alone, **TOLERANCES)


def test_padded_text_is_no_part_of_the_masks(pipe: Any) -> None:
    with apply(pipe, **SPARSE) as handle:
        masks = masks_at_end(handle)
        latents(pipe)
    # 288 video tokens and the prompt's few, not the 256 that it is padded to.
    assert {found.mask.key_blocks for found in masks.values()} == {19}


def test_a_handle_may_be_removed_twice(pipe: Any, plain: Tensor) -> None:
    handle = apply(pipe, **SPARSE)
    handle.remove()
    handle.remove()
    assert torch.equal(latents(pipe), plain)


def test_two_pipelines_know_nothing_of_each_other(pipe: Any, plain: Tensor) -> None:
    other = hunyuan_video()
    with apply(pipe, **SPARSE):
        alone = latents(pipe)
    with apply(pipe, **SPARSE) as first, apply(other, "full", attention_backend="reference") as second:
        torch.testing.assert_close(latents(other, num_inference_steps=4), plain, **TOLERANCES)
        assert first.engine.calls == []
        assert torch.equal(latents(pipe), alone)
        assert second.masks() == {}
        second.remove()
        assert torch.equal(latents(pipe), alone)
    assert torch.equal(latents(other), plain)


def test_replacing_the_processors_after_apply_is_an_error(pipe: Any) -> None:
    with apply(pipe, **SPARSE):
        pipe.transformer.set_attn_processor(HunyuanVideoAttnProcessor2_0())
        with pytest.raises(RunError, match="processors were replaced") as caught:
            latents(pipe)
    assert "before adaspa_cli.apply()" in str(caught.value.hint)
    assert {type(processor) for processor in processors(pipe)} == {HunyuanVideoAttnProcessor2_0}


def test_fusing_the_projections_after_apply_does_not_wipe_the_method(pipe: Any) -> None:
    """diffusers has nothing to fuse in HunyuanVideo; in CogVideoX it has, and there this is an error."""
    with apply(pipe, **SPARSE) as handle:
        before = latents(pipe)
        pipe.transformer.fuse_qkv_projections()
        assert torch.equal(latents(pipe), before)
        assert plan.SPARSE in {call.plan for call in handle.engine.calls}


def test_calling_the_transformer_outside_a_run_is_an_error(pipe: Any) -> None:
    call = {
        "hidden_states": torch.zeros(1, 4, 3, 8, 12),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, 256, 32),
        "encoder_attention_mask": torch.ones(1, 256),
        "pooled_projections": torch.zeros(1, 32),
    }
    with apply(pipe, **SPARSE), torch.inference_mode():
        with pytest.raises(RunError, match="outside a run"):
            pipe.transformer(**call)
        pipe.scheduler.set_timesteps(4)
        with pytest.raises(RunError, match="keyword arguments"):
            pipe.transformer(*call.values())


def test_a_loop_says_which_guidance_branch_a_pass_is(pipe: Any) -> None:
    """As image-to-video of diffusers does not: the masks of one branch would serve the other."""
    sample, text = torch.zeros(1, 4, 3, 8, 12), torch.ones(1, 16)

    def step(timestep: Tensor, names: list[str | None]) -> None:
        for name in names:
            with pipe.transformer.cache_context(name) if name else nullcontext():
                out = pipe.transformer(
                    hidden_states=sample, timestep=timestep[None], encoder_hidden_states=torch.zeros(1, 16, 32),
                    encoder_attention_mask=text, pooled_projections=torch.zeros(1, 32), return_dict=False,
                )[0]  # fmt: skip
        pipe.scheduler.step(out, timestep, sample)

    with apply(pipe, **SPARSE) as handle, torch.inference_mode():
        for names in (["cond", "uncond"], [None]):
            pipe.scheduler.set_timesteps(4)
            for timestep in pipe.scheduler.timesteps:
                step(timestep, names)
            assert {search.branch for search in handle.engine.searches} == {name or "cond" for name in names}
        pipe.scheduler.set_timesteps(4)
        with pytest.raises(RunError, match="called twice in a step"):
            step(pipe.scheduler.timesteps[0], [None, None])


def test_a_search_waits_for_the_first_call_that_a_cache_executes(pipe: Any) -> None:
    cache = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=3,
        spatial_attention_timestep_skip_range=(-1, 2000),
        current_timestep_callback=lambda: int(pipe.current_timestep),
    )
    with apply(pipe, **(SPARSE | {"search_steps": (2, 5)})) as handle:
        pipe.transformer.enable_cache(cache)
        made = latents(pipe, num_inference_steps=8)
        pipe.transformer.disable_cache()
    assert torch.isfinite(made).all()
    assert sorted({call.step for call in handle.engine.calls}) == [0, 3, 6]
    actions = {call.step: call.plan for call in handle.engine.calls}
    assert actions == {0: DENSE, 3: SEARCH, 6: CACHED_SEARCH}


def test_the_user_s_own_step_callback_still_works(pipe: Any) -> None:
    seen: list[int] = []

    def callback(_pipe: Any, index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(index)
        return values

    with apply(pipe, **SPARSE):
        latents(pipe, callback_on_step_end=callback)
    assert seen == [0, 1, 2, 3]


def test_an_unknown_pipeline_is_refused() -> None:
    with pytest.raises(ModelError, match="no adapter for object"):
        apply(object())


def test_impossible_settings_leave_the_pipeline_alone(pipe: Any) -> None:
    before = processors(pipe)
    with pytest.raises(ConfigError, match="unknown method 'adspa'; did you mean 'adaspa'"):
        apply(pipe, "adspa")
    with pytest.raises(ConfigError, match="sparsity"):
        apply(pipe, sparsity=1.5)
    with pytest.raises(AdaspaError, match="attention_backend 'cuda' is unknown"):
        apply(pipe, attention_backend="cuda")
    assert all(a is b for a, b in zip(processors(pipe), before, strict=True))
    assert not {"step", "set_timesteps"} & set(vars(pipe.scheduler))


def test_an_exact_search_step_beyond_the_run_is_an_error(pipe: Any) -> None:
    with apply(pipe, **SPARSE), pytest.raises(ConfigError, match="search step 3 is beyond the last step"):
        latents(pipe, num_inference_steps=3)


def test_the_schedule_of_a_preset_scales_to_the_run(pipe: Any) -> None:
    with apply(pipe, "adaspa", block_size=16, attention_backend="reference") as handle:
        latents(pipe, num_inference_steps=5)
    assert sorted({search.step for search in handle.engine.searches}) == [1, 3]
