"""Sizes that a model cannot make are refused before anything runs, with the nearest that it can."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from adaspa_cli import apply
from adaspa_cli.config import SamplingConfig
from adaspa_cli.config.families import facts_of
from adaspa_cli.errors import ConfigError, ModelError
from adaspa_cli.models.registry import check_sampling, family_of
from tests.pipelines import FRAMES, HEIGHT, WIDTH, cogvideox, hunyuan_video, latents

SIZE = SamplingConfig(height=HEIGHT, width=WIDTH, frames=FRAMES)


@pytest.fixture(scope="module")
def hunyuan() -> Any:
    return hunyuan_video()


@pytest.fixture(scope="module", params=["1.0", "1.5"])
def cog(request: pytest.FixtureRequest) -> Any:
    return cogvideox(request.param)


def test_valid_sizes_pass(hunyuan: Any, cog: Any) -> None:
    for pipe in (hunyuan, cog):
        check_sampling(pipe, SIZE)
        check_sampling(pipe, replace(SIZE, height=32, width=48, frames=1))


@pytest.mark.parametrize(
    ("frames", "nearest"), [(2, 1), (4, 5), (8, 9), (10, 9), (12, 13), (128, 129), (130, 129), (132, 133)]
)
def test_frames_name_the_nearest_valid_number(hunyuan: Any, frames: int, nearest: int) -> None:
    with pytest.raises(ConfigError, match=rf"4k \+ 1 frames, got {frames}") as caught:
        check_sampling(hunyuan, replace(SIZE, frames=frames))
    assert caught.value.hint == f"nearest: {nearest}"


@pytest.mark.parametrize(("frames", "nearest"), [(2, 1), (4, 1), (6, 9), (48, 49), (52, 49), (160, 161), (15, 17)])
def test_cogvideox_makes_an_odd_number_of_latent_frames(cog: Any, frames: int, nearest: int) -> None:
    """Its VAE decodes latent frames in pairs, the odd one first, and makes 4n pictures of an even number n."""
    with pytest.raises(ConfigError, match=rf"8k \+ 1 frames, got {frames}") as caught:
        check_sampling(cog, replace(SIZE, frames=frames))
    assert caught.value.hint == f"nearest: {nearest}"


@pytest.mark.parametrize("frames", range(1, 18))
def test_a_video_has_the_frames_that_were_asked_for_or_is_refused(hunyuan: Any, cog: Any, frames: int) -> None:
    for pipe in (hunyuan, cog):
        try:
            check_sampling(pipe, replace(SIZE, height=16, width=16, frames=frames))
        except ConfigError:
            continue
        video = latents(pipe, height=16, width=16, num_frames=frames, num_inference_steps=1, output_type="pt")
        assert video.shape[1] == frames, type(pipe).__name__


@pytest.mark.parametrize("key", ["height", "width"])
@pytest.mark.parametrize(("given", "nearest"), [(1, 16), (33, 32), (47, 48), (70, 64), (95, 96)])
def test_height_and_width_name_the_nearest_multiple(hunyuan: Any, cog: Any, key: str, given: int, nearest: int) -> None:
    for pipe in (hunyuan, cog):
        with pytest.raises(ConfigError, match=f"{key} must be a multiple of 16, got {given}") as caught:
            check_sampling(pipe, replace(SIZE, **{key: given}))
        assert caught.value.hint == f"nearest: {nearest}"


@pytest.mark.parametrize("size", [{"height": HEIGHT + 16}, {"width": WIDTH + 16}])
def test_cogvideox_15_makes_nothing_larger_than_its_position_tables(size: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"at most {HEIGHT} x {WIDTH} pixels"):
        check_sampling(cogvideox("1.5"), replace(SIZE, **size))


def test_cogvideox_10_and_hunyuan_make_larger_videos(hunyuan: Any) -> None:
    for pipe in (hunyuan, cogvideox("1.0")):
        check_sampling(pipe, replace(SIZE, height=HEIGHT + 16))
        assert latents(pipe, height=HEIGHT + 16, num_inference_steps=1).shape[-2] == (HEIGHT + 16) // 8


def test_arguments_that_a_family_does_not_have_are_refused() -> None:
    guided = SamplingConfig(true_cfg_scale=3.0, negative_prompt="x", guidance_scale=5.0)
    hunyuan, cog = (facts_of(name, name).call_arguments for name in ("HunyuanVideoPipeline", "CogVideoXPipeline"))
    assert hunyuan(guided) == {"guidance_scale": 5.0, "true_cfg_scale": 3.0}
    with pytest.raises(ConfigError, match="true_cfg_scale is for HunyuanVideo"):
        cog(guided)
    assert cog(SIZE) == {"guidance_scale": 6.0}


def test_a_family_is_known_by_its_pipeline(hunyuan: Any) -> None:
    assert family_of(hunyuan).facts.pipeline == "HunyuanVideoPipeline"
    with pytest.raises(ModelError, match="no adapter for str") as caught:
        family_of("pipeline")
    assert "HunyuanVideoPipeline" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["HunyuanVideoPipeline", "AnotherName"])
def test_a_subclass_belongs_to_its_family_whatever_its_name(hunyuan: Any, name: str) -> None:
    own = type(name, (type(hunyuan),), {})(**hunyuan.components)
    assert family_of(own) is family_of(hunyuan)
    plain = latents(own)
    with apply(own, "full", attention_backend="reference") as handle:
        torch.testing.assert_close(latents(own), plain, rtol=1e-4, atol=1e-4)
    assert handle.layers == 4
