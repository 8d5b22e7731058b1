"""The method ``diffusers``: a pipeline that adaspa only times, and what its report can know."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from typer.testing import CliRunner

import adaspa_cli
from adaspa_cli.app import app
from adaspa_cli.config import ModelConfig, resolve
from adaspa_cli.config.load import method_config
from adaspa_cli.errors import ConfigError, RunError
from adaspa_cli.files.typed_json import from_json
from adaspa_cli.files.videos import read_frames
from adaspa_cli.jobs.places import lossless_path, page_path
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.report.page import time_parts
from adaspa_cli.report.schema import Report
from adaspa_cli.sampling.run import to_frames
from tests.pages import read
from tests.pipelines import PROMPT, Listener, cogvideox, hunyuan_video, latents, make_reports, small_run

UNTOUCHED = {"method": "diffusers", "attention_backend": "auto"}


def processors(pipe: Any) -> list[Any]:
    return [module.processor for module in pipe.transformer.modules() if hasattr(module, "processor")]


@pytest.mark.parametrize("make", [hunyuan_video, cogvideox])
def test_nothing_is_attached_and_the_video_is_that_of_diffusers(make: Any) -> None:
    pipe = make()
    plain, own = latents(pipe), processors(pipe)
    with adaspa_cli.apply(pipe, "diffusers") as handle:
        assert processors(pipe) == own
        assert not pipe.transformer._forward_pre_hooks
        assert torch.equal(latents(pipe), plain)
        assert handle.clock.step == 4
        assert handle.layers == (4 if make is hunyuan_video else 2)
        assert (handle.attached, handle.backend, handle.engine.calls, handle.masks()) == (False, None, [], {})
    assert "step" not in vars(pipe.scheduler)
    assert torch.equal(latents(pipe), plain)


def test_a_pipeline_that_is_not_as_diffusers_has_it_is_refused() -> None:
    pipe = hunyuan_video()
    with adaspa_cli.apply(pipe, "full"), pytest.raises(RunError, match="already applied"):
        adaspa_cli.apply(pipe, "diffusers")
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(RunError, match="diffusers cache is already enabled"):
        adaspa_cli.apply(pipe, "diffusers")
    pipe.transformer.disable_cache()
    adaspa_cli.apply(pipe, "diffusers").remove()
    assert "step" not in vars(pipe.scheduler)


@pytest.fixture(scope="module")
def made(hunyuan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Listener]:
    out, listener = tmp_path_factory.mktemp("out"), Listener()
    (report,) = make_reports(resolve(small_run(hunyuan_folder, out, **UNTOUCHED)), listener)
    return out / report["video"]["file"], report, listener


def test_its_report_claims_no_time_of_attention_and_no_kernel(made: Any) -> None:
    _, report, listener = made
    assert [step["phase"] for step in report["steps"]] == ["dense"] * 4
    assert [(step["attention"], step["density"]) for step in report["steps"]] == [(None, 1)] * 4
    assert all(step["seconds"] > 0 for step in report["steps"])
    assert report["seconds"]["attention"] is None
    assert report["seconds"]["denoising"] == pytest.approx(sum(step["seconds"] for step in report["steps"]))
    assert (report["attention_backend"], report["dense_attention"], report["density"]) == (None, None, 1)
    assert report["search_steps"] == {"asked": [], "planned": [], "done": []}
    assert report["model"]["layers"] == 4
    assert ("started", 1, 4, None) in listener.heard


def test_its_page_says_that_the_time_of_attention_is_not_known(made: Any) -> None:
    video, report, _ = made
    parts = {part.name: part.seconds for part in time_parts(from_json(Report, report))}
    assert parts["denoising"] == report["seconds"]["denoising"]
    assert not [name for name in parts if "attention" in name]
    assert sum(parts.values()) == pytest.approx(report["seconds"]["total"])
    words = "".join(read(page_path(video).read_text(encoding="utf-8")).text)
    assert "attention inside diffusers, not timed" in words
    assert "the time of attention is not known" in words
    assert "attention, dense" not in words


def test_the_bundled_model_runs_with_it(tmp_path: Path) -> None:
    size = ["--height", "64", "--width", "64", "--frames", "5", "--steps", "2", "--device", "cpu", "--lossless"]
    arguments = ["generate", "--method", "diffusers", "--prompt", PROMPT, "--out", str(tmp_path), *size]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "attention by diffusers" in result.stderr
    assert "n/a" in result.stdout
    (report,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.report.json"))
    pipe = load_pipeline(ModelConfig(device="cpu"))
    settings = {key: setting["value"] for key, setting in report["settings"].items()}
    with torch.inference_mode():
        frames = pipe(
            prompt=PROMPT,
            height=64,
            width=64,
            num_frames=5,
            num_inference_steps=2,
            guidance_scale=settings["guidance_scale"],
            generator=torch.Generator("cpu").manual_seed(0),
            output_type="pt",
        ).frames
    made = read_frames(lossless_path(tmp_path / report["video"]["file"]))
    assert np.array_equal(made, to_frames(frames))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache": "pab"}, "'diffusers' runs the pipeline unchanged, without the cache 'pab'"),
        ({"merge": "tomesd"}, "'diffusers' runs the pipeline unchanged, without the merge 'tomesd'"),
        ({"attention_backend": "cpu"}, "unchanged, without the attention_backend 'cpu'"),
        ({"masks": "masks.safetensors"}, "masks can't be used with 'diffusers'"),
        ({"share_cfg_masks": True}, "'diffusers' attends densely and has no masks"),
    ],
)
def test_what_would_be_attached_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        method_config("diffusers", settings)
    assert caught.value.hint


def test_search_steps_of_a_model_that_it_does_not_use_do_not_matter(hunyuan_folder: Path, tmp_path: Path) -> None:
    flags = small_run(hunyuan_folder, tmp_path, **UNTOUCHED, steps=2)
    assert resolve(flags).config.method.algorithm.mask_steps(2) == ()
