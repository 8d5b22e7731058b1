"""Weights in fewer bits: near the model's own, of the size that they should have, and adaspa changes nothing of it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adaspa_cli import apply
from adaspa_cli.config import resolve
from adaspa_cli.config.model_files import check_files, check_transformer_file
from adaspa_cli.config.packages import check_packages
from adaspa_cli.errors import BackendError, ConfigError, ModelError
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.models.registry import family_of
from tests.models.test_lora import LAYERS, write_lora
from tests.pipelines import Listener, cogvideox, hunyuan_video, latents, make_reports, save, small_run, wan

PACKAGES = {"fp8": "torch", "int8": "torchao", "nf4": "bitsandbytes"}
MAKERS: dict[str, Callable[[], Any]] = {"hunyuan": hunyuan_video, "cogvideox": cogvideox, "wan2.2": lambda: wan("2.2")}
EXACT: dict[str, Any] = {
    "method": "adaspa", "sparsity": 0.0, "block_size": 16, "search_steps": (1, 3), "attention_backend": "reference",
}  # fmt: skip


@pytest.fixture(params=list(PACKAGES))
def kind(request: pytest.FixtureRequest) -> str:
    """A dtype of weights whose package is there."""
    name: str = request.param
    pytest.importorskip(PACKAGES[name], reason=f"needs {PACKAGES[name]}: pip install 'adaspa[quant]'")
    return name


@pytest.fixture(params=list(MAKERS), scope="module")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    pipe = MAKERS[request.param]()
    return pipe, save(pipe, tmp_path_factory.mktemp("saved") / "pipe")


def load(folder: Path, **settings: Any) -> Any:
    settings = {"model": str(folder), "device": "cpu", "dtype": "float32", **settings}
    return load_pipeline(resolve(settings).config.model)


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


def test_a_video_is_near_that_of_the_models_own_weights(saved: tuple[Any, Path], kind: str) -> None:
    _, folder = saved
    plain = latents(load(folder))
    loaded = load(folder, weights_dtype=kind)
    quantised = latents(loaded)
    assert 1e-5 < error(quantised, plain) < {"fp8": 0.2, "int8": 0.1, "nf4": 0.4}[kind]
    # On a CPU bitsandbytes multiplies in bfloat16, which makes other roundings of sums in another order.
    near = 5e-2 if kind == "nf4" else 1e-4
    with apply(loaded, **EXACT):
        torch.testing.assert_close(latents(loaded), quantised, rtol=near, atol=near)
    assert torch.equal(latents(loaded), quantised)
    assert family_of(loaded).shape(loaded).dtype == torch.float32


def test_the_linear_layers_of_all_blocks_are_quantised(saved: tuple[Any, Path], kind: str) -> None:
    pipe, folder = saved
    loaded = load(folder, weights_dtype=kind)
    family = family_of(loaded)
    for transformer, plain in zip(family.transformers(loaded), family.transformers(pipe), strict=True):
        kept = dict(plain.named_modules())
        for block in family.blocks(transformer):
            layers = [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
            assert layers
            for layer in layers:
                plain_weight = type(layer.weight) is torch.nn.Parameter and layer.weight.dtype == torch.float32
                assert plain_weight == (kind == "nf4" and layer.in_features % 64 > 0)
        norms = [name for name, module in kept.items() if name.endswith("norm_q") and hasattr(module, "weight")]
        assert all(torch.equal(transformer.get_submodule(name).weight, kept[name].weight) for name in norms)


def test_random_weights_may_be_quantised(kind: str, hunyuan_folder: Path, tmp_path: Path) -> None:
    settings = small_run(hunyuan_folder, tmp_path, random_weights=True, weights_dtype=kind)
    (report,) = make_reports(resolve(settings), Listener())
    assert report["settings"]["weights_dtype"]["value"] == kind
    assert report["model"]["dtype"] == "float32"


def test_a_lora_is_fused_before(kind: str, hunyuan_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs peft: pip install 'adaspa[lora]'")
    write_lora(tmp_path / "style.safetensors", hunyuan_video().transformer, LAYERS["hunyuan"])
    settings = {"lora": [str(tmp_path / "style.safetensors")]}
    with_lora, without = load(hunyuan_folder, **settings), load(hunyuan_folder)
    truth, plain = latents(with_lora), latents(without)
    made = latents(load(hunyuan_folder, weights_dtype=kind, **settings))
    assert error(made, truth) < error(made, plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights_dtype": "int4"}, "weights_dtype 'int4' is unknown"),
        ({"weights_dtype": "int8", "compile": True}, "compile can't be combined with weights in int8"),
        ({"weights_dtype": "nf4", "offload": "group"}, "nf4 cannot be moved by offload 'group'"),
        ({"weights_dtype": "fp8", "linear": "fp8"}, "quantised already"),
        ({"weights_dtype": "fp8", "transformer": "a.gguf"}, "a GGUF file is quantised already"),
        ({"transformer": "a.gguf", "linear": "fp8"}, "quantised already"),
        ({"transformer": "a.safetensors", "random_weights": True}, "random weights don't come from a file"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(settings)


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"weights_dtype": "int8"}, "torchao"),
        ({"weights_dtype": "nf4"}, "bitsandbytes"),
        ({"transformer": "a.gguf"}, "gguf"),
    ],
)
def test_a_missing_package_is_named(settings: dict[str, Any], package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaspa_cli.config.packages.importlib.util.find_spec", lambda _name: None)
    with pytest.raises(BackendError, match=f"needs the package {package}") as caught:
        check_packages(resolve(settings).config.model)
    assert "adaspa[quant]" in str(caught.value.hint)


# --- a transformer from a single file


def lighter(pipe: Any) -> dict[str, torch.Tensor]:
    """Other weights of the same shapes."""
    return {name: value * 0.9 for name, value in pipe.transformer.state_dict().items()}


@pytest.mark.parametrize("name", ["hunyuan", "wan"])
def test_a_safetensors_file_stands_for_the_checkpoints_transformer(name: str, tmp_path: Path) -> None:
    pipe = {"hunyuan": hunyuan_video, "wan": wan}[name]()
    folder = save(pipe, tmp_path / "saved")
    wanted = lighter(pipe)
    save_file(wanted, tmp_path / "other.safetensors")
    found = load(folder, transformer=str(tmp_path / "other.safetensors")).transformer.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    """The transformer of the small HunyuanVideo, its large weights in 8 bits."""
    gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'adaspa[quant]'")
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "hyvid")
    eight = gguf.GGMLQuantizationType.Q8_0
    for name, value in hunyuan_video().transformer.state_dict().items():
        rows = value.numpy()
        if rows.ndim == 2 and "blocks" in name and rows.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(rows, eight), raw_dtype=eight)
        else:
            writer.add_tensor(name, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_stands_for_the_checkpoints_transformer(hunyuan_folder: Path, gguf_file: Path) -> None:
    loaded = load(hunyuan_folder, transformer=str(gguf_file))
    made = latents(loaded)
    assert 1e-5 < error(made, latents(hunyuan_video())) < 0.1
    with apply(loaded, **EXACT):
        torch.testing.assert_close(latents(loaded), made, rtol=1e-4, atol=1e-4)


def test_a_lora_stays_beside_the_weights_of_a_gguf_file(hunyuan_folder: Path, gguf_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs peft: pip install 'adaspa[lora]'")
    write_lora(tmp_path / "style.safetensors", hunyuan_video().transformer, LAYERS["hunyuan"])
    settings = {"lora": [f"{tmp_path / 'style.safetensors'}:4"]}
    truth, plain = latents(load(hunyuan_folder, **settings)), latents(load(hunyuan_folder))
    loaded = load(hunyuan_folder, transformer=str(gguf_file), **settings)
    assert any("lora_" in name for name, _ in loaded.transformer.named_parameters())
    made = latents(loaded)
    assert error(made, truth) < error(made, plain) / 2
    with apply(loaded, **EXACT):
        torch.testing.assert_close(latents(loaded), made, rtol=1e-4, atol=1e-4)


def test_a_single_file_is_kept_in_the_dtypes_of_the_checkpoint(tmp_path: Path) -> None:
    """Wan's modulation and time embedding stay in float32 where the model is in bfloat16."""
    folder, file = save(wan(), tmp_path / "saved"), tmp_path / "file.safetensors"
    shutil.copy(folder / "transformer" / "diffusion_pytorch_model.safetensors", file)
    pipes = [load(folder, dtype="bfloat16", transformer=path) for path in (None, str(file))]
    plain, single = (dict(pipe.transformer.named_parameters()) for pipe in pipes)
    assert {plain["scale_shift_table"].dtype, plain["proj_out.weight"].dtype} == {torch.float32, torch.bfloat16}
    assert {name: x.dtype for name, x in single.items()} == {name: x.dtype for name, x in plain.items()}
    assert torch.equal(*map(latents, pipes))


@pytest.mark.parametrize("make", [hunyuan_video, wan])
def test_a_single_file_that_lacks_weights_is_refused(make: Callable[[], Any], tmp_path: Path) -> None:
    pipe = make()
    weights = pipe.transformer.state_dict()
    save_file({name: weights[name] for name in list(weights)[:-1]}, tmp_path / "file.safetensors")
    folder = save(pipe, tmp_path / "saved")
    with pytest.raises(ModelError, match="does not hold all weights of a "):
        load(folder, transformer=str(tmp_path / "file.safetensors"))


@pytest.mark.parametrize("name", ["safetensors", "gguf"])
def test_weights_of_another_family_are_not_blamed_on_the_checkpoint(
    name: str, hunyuan_folder: Path, tmp_path: Path
) -> None:
    file, weights = tmp_path / f"other.{name}", wan().transformer.state_dict()
    if name == "gguf":
        gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'adaspa[quant]'")
        writer = gguf.GGUFWriter(file, "wan")
        for key, value in weights.items():
            writer.add_tensor(key, value.numpy())
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write()
        writer.close()
    else:
        save_file(weights, file)
    with pytest.raises(ModelError, match=f"transformer .*other.{name} does not fit this model: .* shape") as raised:
        load(hunyuan_folder, transformer=str(file))
    assert raised.value.hint == "is it of another model?"


def test_a_file_that_is_called_gguf_is_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    file = tmp_path / "text.gguf"
    file.write_text("nothing")
    with pytest.raises(ModelError, match=r"text\.gguf is not a GGUF file"):
        check_files(resolve({"model": "hunyuan", "transformer": str(file)}).config.model)


def test_a_file_that_is_cut_short_is_not_called_one_of_another_model(hunyuan_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs gguf: pip install 'adaspa[quant]'")
    file = tmp_path / "short.gguf"
    file.write_bytes(b"GGUF" + (3).to_bytes(4, "little"))
    with pytest.raises(ModelError, match=r"short\.gguf can't be read: it is cut short") as raised:
        load(hunyuan_folder, transformer=str(file))
    assert "again" in str(raised.value.hint)


def test_a_file_of_another_format_is_not_called_one_of_another_model(hunyuan_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("steps: 5\n")
    with pytest.raises(ModelError, match=r"settings\.yaml can't be read") as raised:
        load(hunyuan_folder, transformer=str(file))
    assert ".safetensors" in str(raised.value.hint)


def test_files_of_no_use_are_refused(hunyuan_folder: Path, cogvideox_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a file"):
        check_transformer_file(resolve({"transformer": str(tmp_path / "none.safetensors")}).config.model)
    with pytest.raises(ModelError, match="is not a file"):
        load(hunyuan_folder, transformer=str(tmp_path / "none.safetensors"))
    (tmp_path / "text.safetensors").write_text("nothing")
    with pytest.raises(ModelError):
        load(hunyuan_folder, transformer=str(tmp_path / "text.safetensors"))
    with pytest.raises(ConfigError, match="from a single file"):
        load(cogvideox_folder, transformer=str(tmp_path / "text.safetensors"))
    with pytest.raises(ConfigError, match="two transformers"):
        load(save(wan("2.2"), tmp_path / "saved"), transformer=str(tmp_path / "text.safetensors"))
