"""Videos from pictures: what tests/models/test_every_family.py has not, such as branches that nobody names, frames."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import pytest
import torch
from diffusers import CogVideoXVideoToVideoPipeline
from PIL import Image

from adaspa_cli import apply
from adaspa_cli.config import resolve
from adaspa_cli.errors import ConfigError, RunError
from adaspa_cli.models.random_weights import random_pipeline
from adaspa_cli.models.registry import family_of
from adaspa_cli.sampling.run import sample
from tests.pipelines import (
    FRAMES,
    HEIGHT,
    PROMPT,
    SPARSE,
    WIDTH,
    Listener,
    cogvideox,
    cogvideox_image,
    hunyuan_video_image,
    latents,
    make_reports,
    save,
    small_run,
)

TOLERANCES = {"rtol": 1e-4, "atol": 1e-4}
MODELS: dict[str, Callable[[], Any]] = {
    "cogvideox 1.0": lambda: cogvideox_image("1.0"),
    "cogvideox 1.5": lambda: cogvideox_image("1.5"),
    "hunyuan replace": lambda: hunyuan_video_image("token_replace"),
    "hunyuan concat": lambda: hunyuan_video_image("latent_concat"),
}
GUIDED = {"true_cfg_scale": 4.0, "negative_prompt": "dull green squares at rest"}


def picture(shade: int = 90) -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), (shade, 40, 200))
    image.paste("yellow", (20, 20, 50, 50))
    return image


@pytest.fixture(params=list(MODELS))
def pipe(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]()


@pytest.fixture(params=["token_replace", "latent_concat"])
def hunyuan(request: pytest.FixtureRequest) -> Any:
    return hunyuan_video_image(request.param)


def test_the_picture_matters(pipe: Any) -> None:
    with apply(pipe, "full", attention_backend="reference"):
        assert not torch.allclose(latents(pipe, image=picture()), latents(pipe, image=picture(230)), **TOLERANCES)


@pytest.mark.parametrize("cache", ["magcache", "taylorseer"])
def test_a_cache_of_diffusers_keeps_the_passes_apart(hunyuan: Any, cache: str) -> None:
    """It keeps them by a name that the pipeline does not say: both would count as one, with twice the steps."""
    settings = {"magcache_ratios": (1.0,) * 8, "magcache_retention": 0.2} if cache == "magcache" else {}
    skipped = []
    with apply(hunyuan, "full", attention_backend="reference", cache=cache, **settings) as handle:
        for guidance in ({}, GUIDED):
            latents(hunyuan, image=picture(), num_inference_steps=8, **guidance)
            assert handle.cache is not None
            skipped.append(handle.cache.report()["skipped"])
    assert skipped[0] == skipped[1] > 0


def test_after_an_exception_in_the_second_pass_the_first_is_conditional_again(hunyuan: Any) -> None:
    with apply(hunyuan, **SPARSE) as handle:
        whole = latents(hunyuan, image=picture(), **GUIDED)
        forward, calls = hunyuan.transformer.forward, []

        def broken(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == 4:
                raise ZeroDivisionError
            return forward(*args, **kwargs)

        hunyuan.transformer.forward = broken
        with pytest.raises(ZeroDivisionError):
            latents(hunyuan, image=picture(), **GUIDED)
        hunyuan.transformer.forward = forward
        assert torch.equal(latents(hunyuan, image=picture(), **GUIDED), whole)
        assert {call.step for call in handle.engine.calls} == {0, 1, 2, 3}


def test_a_third_pass_in_a_step_is_refused(hunyuan: Any) -> None:
    transformer, forward = hunyuan.transformer, hunyuan.transformer.forward

    with apply(hunyuan, "full", attention_backend="reference"):

        def again(**kwargs: Any) -> Any:
            transformer.forward = forward
            for _ in range(2):
                transformer(**kwargs)
            return forward(**kwargs)

        transformer.forward = again
        with pytest.raises(RunError, match="three times in a step"):
            latents(hunyuan, image=picture())


def test_the_tokens_of_a_replaced_first_frame_stay_in_front(hunyuan: Any) -> None:
    plain = latents(hunyuan, image=picture())
    with apply(hunyuan, **(SPARSE | {"sparsity": 0.0}), token_order="hilbert") as handle:
        torch.testing.assert_close(latents(hunyuan, image=picture()), plain, **TOLERANCES)
        lead = handle._attachment.rows[0].layout.lead_frames
    assert lead == (hunyuan.transformer.config.image_condition_type == "token_replace")


@pytest.mark.parametrize("name", list(MODELS))
def test_as_many_frames_as_asked_come_out(name: str, tmp_path: Path) -> None:
    """Also where the pipeline drops four; of layouts and grids those are a part."""
    pipe = MODELS[name]()
    settings = {"height": HEIGHT, "width": WIDTH, "frames": FRAMES, "steps": 2, "device": "cpu"}
    picture().save(tmp_path / "first.png")
    resolved = resolve({"model": "tiny", "image": str(tmp_path / "first.png"), **settings})
    if name.startswith("cog"):
        resolved = resolve({"model": "cogvideox", "image": str(tmp_path / "first.png"), **settings})
    with apply(pipe, "full", attention_backend="reference") as handle:
        assert sample(pipe, resolved, PROMPT, 0).shape[1] == FRAMES
        row = handle._attachment.rows[0]
    grid = family_of(pipe).video_grid(pipe, resolved.config.sampling)
    assert grid == (row.layout.frames, row.layout.height, row.layout.width)
    assert grid[0] == {"hunyuan concat": 4, "cogvideox 1.5": 2}.get(name, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(cogvideox_image("1.5"), tmp_path_factory.mktemp("saved") / "image")


def test_a_run_from_the_command_line_settings(folder: Path, tmp_path: Path) -> None:
    """The picture is in the report, and its bytes, not its path, decide whether a video is the same."""
    file = tmp_path / "first.png"
    picture().save(file)
    settings = small_run(folder, tmp_path / "out", frames=9, image=str(file))
    (report,) = make_reports(resolve(settings), Listener())
    used = report["pictures"]["image"]
    assert (used["file"], len(used["sha256"])) == ("first.png", 64)
    assert "nothing cropped, scaled by 0.5 to 48 x 32" in used["note"]
    assert report["settings"]["image"]["value"] == str(file)
    assert imageio.mimread(tmp_path / "out" / report["video"]["file"])[0].shape == (32, 48, 3)
    moved = tmp_path / "moved.png"
    file.rename(moved)
    listener = Listener()
    make_reports(resolve(settings | {"image": str(moved), "resume": True}), listener)
    assert listener.names() == ["skipped"]
    picture(91).save(moved)
    listener = Listener()
    make_reports(resolve(settings | {"image": str(moved), "resume": True}), listener)
    assert "skipped" not in listener.names()


def test_a_model_that_needs_a_picture_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="makes a video from a picture, and none was given"):
        make_reports(resolve(small_run(folder, tmp_path, frames=9)), Listener())


def test_with_random_weights_a_grey_picture_will_do(folder: Path, tmp_path: Path) -> None:
    (report,) = make_reports(resolve(small_run(folder, tmp_path, frames=9, random_weights=True)), Listener())
    assert report["pictures"] is None
    assert report["model"]["pipeline"] == "CogVideoXImageToVideoPipeline"


@pytest.mark.parametrize("name", ["hunyuan-i2v", "hunyuan-i2v-33ch", "cogvideox-5b-i2v", "cogvideox-i2v"])
def test_presets_build_with_random_weights(name: str) -> None:
    """At a small width, with two layers: the keys are those that the classes know, and a video can be made."""
    from adaspa_cli.config.architecture import architecture_of

    resolved = resolve({"model": name, "random_weights": True, "layers": 2, "device": "cpu", "dtype": "float32"})
    architecture = architecture_of(resolved.config.model)
    parts = copy.deepcopy(dict(architecture.parts))
    parts["transformer"] |= {"num_attention_heads": 2, "text_embed_dim": 32}
    parts["vae"] |= {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
    object.__setattr__(architecture, "parts", parts)
    pipe = random_pipeline(architecture, torch.float32, torch.device("cpu"), decode=False)
    size = {"height": 480, "width": 720} if name == "cogvideox-5b-i2v" else {"height": 64, "width": 96}
    small = resolve({"model": name, "random_weights": True, "steps": 2, "frames": 9, **size})
    assert torch.isfinite(sample(pipe, small, PROMPT, 0)).all()


# --- video to video: the pipeline of diffusers, from Python


def test_video_to_video_through_python() -> None:
    """It runs the last steps alone; search steps are those of the steps that are run."""
    pipe = CogVideoXVideoToVideoPipeline(**cogvideox("1.0").components)
    call = {"video": [picture(shade) for shade in range(0, 90, 10)], "strength": 0.5, "num_frames": None}
    pipe.set_progress_bar_config(disable=True)

    def run() -> torch.Tensor:
        settings = {"prompt": PROMPT, "height": HEIGHT, "width": WIDTH, "num_inference_steps": 8}
        with torch.inference_mode():
            kept = {key: value for key, value in call.items() if value is not None}
            return pipe(**settings, **kept, generator=torch.Generator().manual_seed(0), output_type="latent").frames

    plain = run()
    with apply(pipe, **(SPARSE | {"sparsity": 0.0})) as handle:
        torch.testing.assert_close(run(), plain, **TOLERANCES)
        assert {call.step for call in handle.engine.calls} == {0, 1, 2, 3}
        assert sorted({search.step for search in handle.engine.searches}) == [1, 3]
    assert torch.equal(run(), plain)
