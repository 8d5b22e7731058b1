"""LoRA: fused into the weights as peft has it, by scale and by transformer; refused where it is of no use."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adaspa_cli.config import resolve
from adaspa_cli.config.lora import LoraSource
from adaspa_cli.config.model_files import check_files
from adaspa_cli.errors import BackendError, ConfigError, ModelError
from adaspa_cli.jobs.fingerprint import video_fingerprint
from adaspa_cli.models.loading import load_pipeline
from tests.pipelines import (
    PROMPT,
    Listener,
    cogvideox,
    hunyuan_video,
    hunyuan_video15,
    make_reports,
    qwen_and_byt5,
    save,
    small_run,
    wan,
)

RANK = 2
LAYERS = {
    "hunyuan": ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_mlp"),
    "hunyuan1.5": ("transformer_blocks.0.attn.to_q", "transformer_blocks.2.ff.net.2"),
    "cogvideox": ("transformer_blocks.1.attn1.to_v",),
    "wan": ("blocks.0.attn1.to_q", "blocks.1.ffn.net.2"),
}


def needs_peft() -> None:
    pytest.importorskip("peft", reason="needs peft: pip install 'adaspa[lora]'")


def write_lora(path: Path, transformer: Any, layers: tuple[str, ...], seed: int = 0) -> dict[str, Tensor]:
    """Write a random LoRA of some linear layers; returns what it adds to their weights."""
    random = torch.Generator().manual_seed(seed)
    tensors, added = {}, {}
    for name in layers:
        layer = transformer.get_submodule(name)
        down = torch.randn(RANK, layer.in_features, generator=random) * 0.3
        up = torch.randn(layer.out_features, RANK, generator=random) * 0.3
        tensors |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
        added[name] = up @ down
    save_file(tensors, path)
    return added


def weights(transformer: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in transformer.state_dict().items()}


def check_added(found: Any, plain: Mapping[str, Tensor], added: Mapping[str, Tensor]) -> None:
    """The weights are those of before and what was added, bit by bit where nothing was, and modules are plain."""
    now = weights(found)
    assert now.keys() == plain.keys()
    for name, value in now.items():
        extra = added.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if extra is None:
            assert torch.equal(value, plain[name]), name
        else:
            torch.testing.assert_close(value, plain[name] + extra)


def complete_hunyuan_video15() -> Any:
    pipe = hunyuan_video15()
    return type(pipe)(**pipe.components | qwen_and_byt5())


MAKERS: dict[str, Callable[[], Any]] = {
    "hunyuan": hunyuan_video,
    "hunyuan1.5": complete_hunyuan_video15,
    "cogvideox": cogvideox,
    "wan": wan,
}


@pytest.fixture(params=list(MAKERS), scope="module")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    pipe = MAKERS[request.param]()
    return request.param, pipe, save(pipe, tmp_path_factory.mktemp("saved") / request.param)


def load(folder: Path, **settings: Any) -> Any:
    return load_pipeline(resolve({"model": str(folder), "device": "cpu", "dtype": "float32", **settings}).config.model)


def test_two_add_up(saved: tuple[str, Any, Path], tmp_path: Path) -> None:
    """Of the same layers; one lies in a folder, and has no scale."""
    needs_peft()
    name, pipe, folder = saved
    (tmp_path / "other").mkdir()
    files = tmp_path / "style.safetensors", tmp_path / "other" / "pytorch_lora_weights.safetensors"
    first, second = (write_lora(file, pipe.transformer, LAYERS[name], seed=seed) for seed, file in enumerate(files))
    loaded = load(folder, lora=[f"{files[0]}:-2", str(tmp_path / "other")])
    check_added(loaded.transformer, weights(pipe.transformer), {key: second[key] - 2 * first[key] for key in first})


def test_each_of_two_transformers_has_its_own(tmp_path: Path) -> None:
    needs_peft()
    pipe = wan("2.2")
    folder = save(pipe, tmp_path / "saved")
    settings, added = {}, []
    for key, transformer in (("high", pipe.transformer), ("low", pipe.transformer_2)):
        file = tmp_path / f"{key}.safetensors"
        added.append(write_lora(file, transformer, LAYERS["wan"], seed=len(added)))
        settings[f"lora_{key}"] = [str(file)]
    loaded = load(folder, **settings)
    check_added(loaded.transformer, weights(pipe.transformer), added[0])
    check_added(loaded.transformer_2, weights(pipe.transformer_2), added[1])
    with pytest.raises(ConfigError, match="which of the model's two transformers"):
        load(folder, lora=settings["lora_low"])


def test_high_and_low_are_for_two_transformers(hunyuan_folder: Path, tmp_path: Path) -> None:
    needs_peft()
    write_lora(tmp_path / "style.safetensors", hunyuan_video().transformer, LAYERS["hunyuan"])
    with pytest.raises(ConfigError, match="lora_low is for a model with two transformers"):
        load(hunyuan_folder, lora_low=[str(tmp_path / "style.safetensors")])


def test_a_lora_of_another_model_is_refused_in_one_line(
    hunyuan_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Diffusers would print the error besides."""
    needs_peft()
    size = hunyuan_video().transformer.x_embedder.proj.out_channels
    shapes = {"transformer.blocks.9.to_x.lora_A.weight": (2, size)}
    shapes |= {"transformer.blocks.9.to_x.lora_B.weight": (size, 2)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "foreign.safetensors")
    of_diffusers = logging.getLogger("diffusers")
    of_diffusers.addHandler(caplog.handler)
    try:
        with pytest.raises(ModelError, match=r"does not fit this model|changes no layer of this model"):
            load(hunyuan_folder, lora=[str(tmp_path / "foreign.safetensors")])
    finally:
        of_diffusers.removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.parametrize("name", ["diffusion_model.blocks.0.self_attn.q", "lora_unet_blocks_0_self_attn_q"])
def test_a_lora_of_another_size_of_model_is_refused_before_any_weight_is_read(name: str, tmp_path: Path) -> None:
    tensors = {f"{name}.lora_down.weight": torch.zeros(4, 5120), f"{name}.lora_up.weight": torch.zeros(5120, 4)}
    save_file(tensors | {f"{name}.alpha": torch.tensor(4.0)}, tmp_path / "style.safetensors")
    lora = [str(tmp_path / "style.safetensors")]
    with pytest.raises(ModelError, match="is for another model: none of its tensors has 1536 channels") as raised:
        check_files(resolve({"model": "wan2.1-1.3b", "lora": lora}).config.model)
    assert raised.value.hint == (
        "its channels are 5120, as those of wan2.1-14b, wan2.1-i2v-14b, wan2.2-a14b, wan2.2-i2v-a14b"
    )
    check_files(resolve({"model": "wan2.1-14b", "lora": lora}).config.model)


def test_a_lora_of_another_part_touches_nothing(hunyuan_folder: Path, tmp_path: Path) -> None:
    needs_peft()
    size = hunyuan_video().transformer.x_embedder.proj.out_channels
    shapes = {"unet.to_q.lora_A.weight": (2, size), "unet.to_q.lora_B.weight": (size, 2)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "foreign.safetensors")
    with pytest.raises(ModelError, match="changes no layer of this model"):
        load(hunyuan_folder, lora=[str(tmp_path / "foreign.safetensors")])


def test_a_run_names_it_and_its_bytes_count(hunyuan_folder: Path, tmp_path: Path) -> None:
    needs_peft()
    file = tmp_path / "style.safetensors"
    write_lora(file, hunyuan_video().transformer, LAYERS["hunyuan"])
    settings = small_run(hunyuan_folder, tmp_path / "out", lora=[f"{file}:0.7"])
    (report,) = make_reports(resolve(settings), Listener())
    (used,) = report["loras"]
    assert (used["file"], used["scale"], len(used["sha256"]), used["stage"]) == (str(file), 0.7, 64, None)
    assert f"LoRA {file}, scale 0.7" in next((tmp_path / "out").glob("*.report.html")).read_text()


def test_bytes_and_scale_decide_about_the_fingerprint_not_the_path(tmp_path: Path) -> None:
    transformer = hunyuan_video().transformer
    first, moved, other = (tmp_path / f"{name}.safetensors" for name in ("first", "moved", "other"))
    write_lora(first, transformer, LAYERS["hunyuan"])
    moved.write_bytes(first.read_bytes())
    write_lora(other, transformer, LAYERS["hunyuan"], seed=1)
    prints = [
        video_fingerprint(resolve({"lora": lora}), PROMPT, 0)
        for lora in ([str(first)], [f"{moved}:1"], [f"{first}:0.9"], [str(other)], [str(first), str(other)], [])
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 5
    assert video_fingerprint(resolve({}), PROMPT, 0) == prints[-1]


@pytest.mark.parametrize(
    ("text", "name", "scale"),
    [("a.safetensors", "a.safetensors", 1.0), ("org/name:0.5", "org/name", 0.5), ("c:x/y:-1e-1", "c:x/y", -0.1)],
)
def test_names_and_scales_are_told_apart(text: str, name: str, scale: float) -> None:
    assert LoraSource.parse("lora", text) == LoraSource(name, scale)


@pytest.mark.parametrize("text", ["a:0", "a:nan", "a:1000", ":0.5", ""])
def test_impossible_scales_and_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        resolve({"lora": [text]})


def test_files_of_no_use_give_one_line(tmp_path: Path) -> None:
    def refused(name: str) -> str:
        with pytest.raises(ModelError) as caught:
            LoraSource.parse("lora", str(tmp_path / name)).file()
        return str(caught.value)

    assert "No such file" in refused("none.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors at all")
    assert "corrupt" in refused("text.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "plain.safetensors")
    assert "holds no LoRA" in refused("plain.safetensors")
    assert "holds 2 files" in refused(".")
    (tmp_path / "empty").mkdir()
    assert "holds no file" in refused("empty")


def test_without_peft_it_says_what_to_install(hunyuan_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaspa_cli.config.packages.importlib.util.find_spec", lambda _name: None)
    with pytest.raises(BackendError, match="needs the package peft") as caught:
        load(hunyuan_folder, lora=["none.safetensors"])
    assert "adaspa[lora]" in str(caught.value.hint)
