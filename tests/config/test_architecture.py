"""What random weights are built from: the numbers of presets and folders, and cutting them."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from adaspa_cli.config import resolve
from adaspa_cli.config.architecture import architecture_of, check_early, facts_of_index, random_weights_note
from adaspa_cli.config.schema import ModelConfig, SamplingConfig
from adaspa_cli.errors import ConfigError, ModelError
from adaspa_cli.jobs import early
from adaspa_cli.models.loading import load_pipeline


def model(name: str, **settings: object) -> ModelConfig:
    return resolve({"model": name, "random_weights": True, **settings}).config.model


@pytest.mark.parametrize(
    ("name", "layers", "heads", "head_dim"),
    [
        ("hunyuan", 60, 24, 128),
        ("fasthunyuan", 60, 24, 128),
        ("cogvideox", 42, 48, 64),
        ("cogvideox-5b", 42, 48, 64),
        ("cogvideox-2b", 30, 30, 64),
        ("tiny", 8, 4, 64),
    ],
)
def test_presets_have_the_sizes_of_the_published_models(name: str, layers: int, heads: int, head_dim: int) -> None:
    found = architecture_of(model(name))
    assert found.layers == layers
    assert found.parts["transformer"]["num_attention_heads"] == heads
    assert found.parts["transformer"]["attention_head_dim"] == head_dim


@pytest.mark.parametrize(("layers", "dual", "single"), [(1, 1, 0), (2, 1, 1), (3, 1, 2), (6, 2, 4), (60, 20, 40)])
def test_fewer_layers_keep_the_proportion_of_their_kinds(layers: int, dual: int, single: int) -> None:
    found = architecture_of(model("hunyuan", layers=layers))
    assert (found.parts["transformer"]["num_layers"], found.parts["transformer"]["num_single_layers"]) == (dual, single)
    assert found.layers == layers


def test_more_layers_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 60, which the model has, got 61"):
        architecture_of(model("hunyuan", layers=61))


def test_the_note_says_how_much_of_the_model_was_built() -> None:
    assert random_weights_note(model("hunyuan")) == "random weights: only the times are meaningful"
    assert "6 of 60 layers" in str(random_weights_note(model("hunyuan", layers=6)))
    assert random_weights_note(resolve({"model": "hunyuan"}).config.model) is None


def test_a_hub_id_of_a_preset_is_known_and_any_other_is_refused_without_the_network() -> None:
    assert architecture_of(model("hunyuanvideo-community/HunyuanVideo")).layers == 60
    with pytest.raises(ModelError, match="not known without a download"):
        model("nobody/no-such-model")
    with pytest.raises(ModelError, match="not known without a download"):
        architecture_of(model("hunyuan", weights="nobody/no-such-model"))


def test_layers_need_random_weights() -> None:
    with pytest.raises(ConfigError, match="layers needs random_weights"):
        resolve({"layers": 3})


def test_a_folder_needs_its_config_files_alone(hunyuan_folder: Path, tmp_path: Path) -> None:
    for path in [*hunyuan_folder.glob("*.json"), *hunyuan_folder.glob("*/*config.json")]:
        target = tmp_path / path.relative_to(hunyuan_folder)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    found = architecture_of(model(str(tmp_path)))
    assert found.parts["transformer"] == json.loads((hunyuan_folder / "transformer" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot read .*vae"):
        architecture_of(model(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("tiny", {"frames": 6}, r"4k \+ 1 frames, got 6"),
        ("tiny", {"height": 100}, "height must be a multiple of 16, got 100"),
        ("hunyuan", {"width": 1000}, "width must be a multiple of 16, got 1000"),
        ("hunyuan", {"negative_prompt": "x"}, "has no effect"),
        ("cogvideox", {"frames": 12}, r"8k \+ 1 frames, got 12"),
        ("cogvideox", {"width": 2416}, "at most 2400 x 2400 pixels, got 720 x 2416"),
        ("cogvideox", {"true_cfg_scale": 2.0, "negative_prompt": "x"}, "true_cfg_scale is for HunyuanVideo"),
    ],
)
def test_what_a_model_does_not_make_is_refused_from_its_preset(
    name: str, wrong: dict[str, object], message: str
) -> None:
    config = resolve({"model": name}).config.model
    right = {"height": 720, "width": 1280, "frames": 129}
    check_early(config, SamplingConfig(**right))
    with pytest.raises(ConfigError, match=message):
        check_early(config, SamplingConfig(**(right | wrong)))


def test_sizes_are_checked_from_a_folder_s_config_files(cogvideox_folder: Path, tmp_path: Path) -> None:
    config = resolve({"model": str(cogvideox_folder)}).config.model
    with pytest.raises(ConfigError, match="at most 64 x 96 pixels, got 80 x 96"):
        check_early(config, SamplingConfig(height=80, width=96, frames=9))
    folder = shutil.copytree(cogvideox_folder, tmp_path / "broken")
    (folder / "vae" / "config.json").write_text("[]")
    broken = resolve({"model": str(folder)}).config.model
    check_early(broken, SamplingConfig(height=80, width=96, frames=9))  # the loader says what is wrong
    with pytest.raises(ModelError, match=r"cannot read .*vae"):
        architecture_of(broken)


def test_a_size_is_refused_before_torch_is_imported() -> None:
    code = (
        "import sys; from adaspa_cli.config import resolve, SamplingConfig\n"
        "from adaspa_cli.config.architecture import check_early\n"
        "check_early(resolve({}).config.model, SamplingConfig(height=256, width=256, frames=33))\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_each_of_two_transformers_keeps_a_layer() -> None:
    def cut(layers: int) -> list[int]:
        model = resolve({"model": "wan2.2-a14b", "random_weights": True, "layers": layers}).config.model
        return [config["num_layers"] for config in architecture_of(model).transformers.values()]

    assert (cut(2), cut(3)) == ([1, 1], [2, 1])
    with pytest.raises(ConfigError, match="at least 2, one per transformer, got 1"):
        cut(1)


@pytest.mark.parametrize("model", ["tiny", "hunyuan", "cogvideox-i2v", "wan2.1-1.3b"])
def test_weights_of_another_kind_than_the_preset_are_refused(model: str, cogvideox_folder: Path) -> None:
    """They would get its steps, size and guidance."""
    config = resolve({"model": model, "weights": str(cogvideox_folder)}).config
    with pytest.raises(ModelError, match=rf"is a CogVideoXPipeline, and --model {model} a ") as raised:
        check_early(config.model, config.sampling)
    assert raised.value.hint is not None
    assert raised.value.hint.startswith(f"--model {cogvideox_folder}")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"model": "wan2.2-5b-i2v"}, "is a CogVideoXPipeline, and --model wan2.2-5b-i2v a WanImageToVideoPipeline"),
        ({"pipeline": "WanPipeline"}, "is a CogVideoXPipeline, and pipeline is WanPipeline"),
    ],
)
def test_a_pipeline_for_other_weights_is_refused(model: dict[str, str], message: str, cogvideox_folder: Path) -> None:
    """Presets name one where the checkpoint's index names another."""
    config = resolve({"model": str(cogvideox_folder), "weights": str(cogvideox_folder)} | model).config
    with pytest.raises(ConfigError, match=message):
        check_early(config.model, config.sampling)
    own = resolve({"model": str(cogvideox_folder), "pipeline": "CogVideoXImageToVideoPipeline"}).config
    assert architecture_of(own.model).pipeline == "CogVideoXImageToVideoPipeline"


def test_a_class_of_its_own_is_run_by_the_one_that_is_given() -> None:
    model = resolve({"model": "hunyuan", "weights": "org/own", "pipeline": "HunyuanVideoPipeline"}).config.model
    assert facts_of_index(model, {"_class_name": "OwnPipeline"}).pipeline == "HunyuanVideoPipeline"
    with pytest.raises(ModelError, match="is a OwnPipeline, which adaspa does not know"):
        facts_of_index(dataclasses.replace(model, pipeline=None), {"_class_name": "OwnPipeline"})


def hub_with(cache: Path, hub_id: str, pipeline: str) -> None:
    """A cache of the hub that has the index of a checkpoint alone."""
    folder = cache / f"models--{hub_id.replace('/', '--')}"
    (folder / "snapshots" / "0").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    (folder / "snapshots" / "0" / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))


def test_a_hub_id_of_another_kind_is_refused_by_the_cache_or_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    refused = r"org/finetuned is a CogVideoXPipeline, and --model hunyuan a HunyuanVideoPipeline"
    resolved = resolve({"model": "hunyuan", "weights": "org/finetuned", "prompt": ["x"]})
    model, sampling = resolved.config.model, resolved.config.sampling
    check_early(model, sampling)  # nothing is known of it yet
    with monkeypatch.context() as patch:
        asked = {"_class_name": "CogVideoXPipeline"}
        patch.setattr("adaspa_cli.config.model_source.fetch_model_index", lambda _id: asked)
        patch.setattr("adaspa_cli.models.loading.fetch_model_index", lambda _id: asked)
        patch.setattr("adaspa_cli.config.weights.check_weights_fit", lambda *_: None)
        patch.setattr("adaspa_cli.models.loading.check_weights_fit", lambda *_: None)
        with pytest.raises(ModelError, match=refused):
            early.check_early(lambda _line: None, resolved, str(tmp_path / "out"))
        with pytest.raises(ModelError, match=refused):  # of a run that may be complete: before its weights
            load_pipeline(dataclasses.replace(model, device="cpu"))
        asked["_class_name"] = "HunyuanVideoPipeline"
        early.check_early(lambda _line: None, resolved, str(tmp_path / "out"))
    hub_with(tmp_path / "hub", "org/finetuned", "CogVideoXPipeline")
    with pytest.raises(ModelError, match=refused):
        check_early(model, sampling)
    with pytest.raises(ModelError, match=r"zai-org/CogVideoX1.5-5B is a CogVideoXPipeline, and --model hunyuan a"):
        check_early(resolve({"model": "hunyuan", "weights": "zai-org/CogVideoX1.5-5B"}).config.model, sampling)


def test_weights_of_the_presets_kind_are_taken(cogvideox_folder: Path) -> None:
    own = {"height": 32, "width": 48, "frames": 9, "weights": str(cogvideox_folder)}
    config = resolve({"model": "cogvideox", **own}).config
    check_early(config.model, config.sampling)
