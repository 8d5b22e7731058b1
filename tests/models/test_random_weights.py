"""Pipelines with random weights: the shapes of the real model, the same numbers each time, and no network."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import imageio.v2 as imageio
import pytest
import torch
from accelerate import init_empty_weights

from adaspa_cli.config import resolve
from adaspa_cli.config.architecture import architecture_of
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.models.random_text import text_tokens
from adaspa_cli.models.random_weights import random_pipeline
from tests.pipelines import Listener, make_reports, small_run

CLASSES = {
    "HunyuanVideoPipeline": ("HunyuanVideoTransformer3DModel", "AutoencoderKLHunyuanVideo"),
    "HunyuanVideoImageToVideoPipeline": ("HunyuanVideoTransformer3DModel", "AutoencoderKLHunyuanVideo"),
    "CogVideoXImageToVideoPipeline": ("CogVideoXTransformer3DModel", "AutoencoderKLCogVideoX"),
    "HunyuanVideo15Pipeline": ("HunyuanVideo15Transformer3DModel", "AutoencoderKLHunyuanVideo15"),
    "HunyuanVideo15ImageToVideoPipeline": ("HunyuanVideo15Transformer3DModel", "AutoencoderKLHunyuanVideo15"),
    "CogVideoXPipeline": ("CogVideoXTransformer3DModel", "AutoencoderKLCogVideoX"),
    "WanPipeline": ("WanTransformer3DModel", "AutoencoderKLWan"),
    "WanImageToVideoPipeline": ("WanTransformer3DModel", "AutoencoderKLWan"),
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# Billions of parameters of the transformers, as the model cards and the sizes of the published files have them.
@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("hunyuan", 12.8),
        ("hunyuan-i2v", 12.8),
        ("hunyuan-i2v-33ch", 12.8),
        ("cogvideox", 5.6),
        ("cogvideox-i2v", 5.6),
        ("cogvideox-5b", 5.6),
        ("cogvideox-5b-i2v", 5.6),
        ("cogvideox-2b", 1.7),
        ("wan2.1-1.3b", 1.42),
        ("wan2.1-14b", 14.3),
        ("wan2.2-a14b", 28.6),
        ("wan2.2-5b", 5.0),
        ("wan2.1-i2v-14b", 16.4),
        ("wan2.2-i2v-a14b", 28.6),
        ("wan2.2-5b-i2v", 5.0),
        ("hunyuan1.5-480p", 8.3),
        ("hunyuan1.5-720p-i2v", 8.3),
    ],
)
def test_the_transformers_have_the_real_models_number_of_parameters(name: str, billions: float) -> None:
    architecture = architecture_of(resolve({"model": name, "random_weights": True}).config.model)
    transformer, vae = CLASSES[architecture.pipeline]
    with init_empty_weights():
        models = [
            getattr(diffusers, transformer).from_config(dict(part)) for part in architecture.transformers.values()
        ]
        getattr(diffusers, vae).from_config(dict(architecture.parts["vae"]))
    count = sum(parameter.numel() for model in models for parameter in model.parameters())
    assert count / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize("folder", ["hunyuan_folder", "cogvideox_folder"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_built_has_the_checkpoints_shapes(folder: str, dtype: str, request: pytest.FixtureRequest) -> None:
    settings = {"model": str(request.getfixturevalue(folder)), "dtype": dtype, "device": "cpu"}
    real = load_pipeline(resolve(settings).config.model)
    built = load_pipeline(resolve({**settings, "random_weights": True}).config.model)
    for part in ("transformer", "vae"):
        wanted, found = (getattr(pipe, part).state_dict() for pipe in (real, built))
        assert {name: (t.shape, t.dtype) for name, t in found.items()} == {
            name: (t.shape, t.dtype) for name, t in wanted.items()
        }
        assert all(torch.isfinite(t).all() for t in found.values())
    assert type(built.scheduler) is type(real.scheduler)
    assert built.text_encoder is None


def test_weights_are_drawn_on_one_device_and_kept_on_another(hunyuan_folder: Path) -> None:
    """As with offloading, where billions of them are drawn on a GPU; the meta device keeps none of their numbers."""
    config = resolve({"model": str(hunyuan_folder), "random_weights": True, "device": "cpu"}).config.model
    devices = torch.device("cpu"), torch.device("meta")
    pipe = random_pipeline(architecture_of(config), torch.float32, devices[0], decode=True, held=devices[1])
    for part in (pipe.transformer, pipe.vae):
        assert {parameter.device for parameter in part.parameters()} == {devices[1]}


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloaded_weights_are_those_of_a_model_on_the_gpu(hunyuan_folder: Path, offload: str) -> None:
    settings = {"model": str(hunyuan_folder), "random_weights": True, "dtype": "bfloat16", "device": "cuda"}
    wanted = load_pipeline(resolve(settings).config.model).transformer.state_dict()
    found = load_pipeline(resolve({**settings, "offload": offload}).config.model).transformer.state_dict()
    assert {tensor.device.type for tensor in found.values()} == {"cpu"}
    assert all(torch.equal(tensor, wanted[name].cpu()) for name, tensor in found.items())


def test_position_tables_are_real() -> None:
    """They are buffers, not weights: CogVideoX-2B adds one to its input."""
    architecture = architecture_of(resolve({"model": "cogvideox-2b", "random_weights": True, "layers": 1}).config.model)
    small = {**architecture.parts["transformer"], "num_attention_heads": 2, "sample_height": 8, "sample_width": 8}
    with torch.random.fork_rng():
        wanted = diffusers.CogVideoXTransformer3DModel(**small).patch_embed.pos_embedding
    cut = replace(architecture, parts={**architecture.parts, "transformer": small})
    built = random_pipeline(cut, torch.float32, torch.device("cpu"), decode=False)
    torch.testing.assert_close(built.transformer.patch_embed.pos_embedding, wanted)


def test_the_same_weights_each_time(hunyuan_folder: Path) -> None:
    config = resolve({"model": str(hunyuan_folder), "random_weights": True, "device": "cpu"}).config.model
    first, second = (load_pipeline(config, decode=False).transformer.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("words", "tokens"), [(0, 2), (9, 14), (300, 256)])
def test_a_prompt_has_a_plausible_number_of_tokens(words: int, tokens: int) -> None:
    assert text_tokens("word " * words, 256) == tokens


@pytest.mark.parametrize("folder", ["hunyuan_folder", "cogvideox_folder"])
def test_a_run_ends_in_latents_and_says_that_its_weights_are_random(
    folder: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    settings = small_run(request.getfixturevalue(folder), tmp_path, frames=9, random_weights=True)
    (report,) = make_reports(resolve(settings), Listener())
    assert report["random_weights"] == "random weights: only the times are meaningful"
    assert report["video"]["file"] is None
    assert [step["phase"] for step in report["steps"]] == ["dense", "search", "sparse", "cached search"]
    assert report["seconds"]["decoding"] == 0
    assert sorted(path.suffixes for path in tmp_path.iterdir()) == [[".report", ".html"], [".report", ".json"]]
    listener = Listener()
    (again,) = make_reports(resolve({**settings, "resume": True}), listener)
    assert again == report
    assert listener.names() == ["skipped"]


def test_a_decoded_video_says_so_in_its_metadata(hunyuan_folder: Path, tmp_path: Path) -> None:
    settings = small_run(hunyuan_folder, tmp_path, random_weights=True, layers=2, decode=True)
    (report,) = make_reports(resolve(settings), Listener())
    assert "2 of 4 layers" in report["random_weights"]
    assert report["model"]["layers"] == 2
    path = tmp_path / report["video"]["file"]
    assert imageio.mimread(path)[0].shape == (32, 48, 3)
    assert report["random_weights"].encode() in path.read_bytes()
    assert json.loads(path.with_suffix(".report.json").read_text())["random_weights"] == report["random_weights"]


def test_true_guidance_runs_both_branches(hunyuan_folder: Path, tmp_path: Path) -> None:
    settings = small_run(hunyuan_folder, tmp_path, random_weights=True, true_cfg_scale=2.0, negative_prompt="dull")
    (report,) = make_reports(resolve(settings), Listener())
    assert {search["branch"] for search in report["searches"]} == {"cond", "uncond"}
