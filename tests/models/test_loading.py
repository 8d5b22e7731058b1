"""Loading: what is there is loaded as it was saved, what is not there or broken gives one line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from transformers import T5Tokenizer

from adaspa_cli.config import ModelConfig, resolve
from adaspa_cli.errors import AdaspaError, BackendError, ConfigError, ModelError
from adaspa_cli.models.loading import BUNDLED, choose_device, choose_dtype, load_pipeline
from tests.pipelines import PROMPT, cogvideox, hunyuan_video, latents, save

CPU = torch.device("cpu")


def local(folder: Path, **settings: Any) -> ModelConfig:
    return ModelConfig(**({"weights": str(folder), "device": "cpu", "dtype": "float32"} | settings))


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a saved pipeline that a test may break."""

    def make(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / folder.name))

    return make


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def prompt_embeddings(pipe: Any) -> torch.Tensor:
    with torch.inference_mode():
        return pipe.encode_prompt(PROMPT, device=CPU)[0]


def test_a_saved_hunyuan_video_makes_the_same_video(hunyuan_folder: Path) -> None:
    loaded = load_pipeline(local(hunyuan_folder))
    assert type(loaded).__name__ == "HunyuanVideoPipeline"
    assert torch.equal(latents(loaded), latents(hunyuan_video()))


def test_a_saved_cogvideox_makes_the_same_video(cogvideox_folder: Path) -> None:
    loaded = load_pipeline(local(cogvideox_folder))
    assert type(loaded).__name__ == "CogVideoXPipeline"
    assert torch.equal(latents(loaded), latents(cogvideox()))


def test_a_path_below_home_is_found(hunyuan_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(hunyuan_folder.parent))
    assert load_pipeline(local(Path("~") / hunyuan_folder.name)).transformer.dtype == torch.float32


def test_the_bundled_model_loads() -> None:
    if not BUNDLED.is_dir():
        pytest.skip("this checkout has no bundled model")
    pipe = load_pipeline(resolve({"device": "cpu"}).config.model)
    assert type(pipe).__name__ == "HunyuanVideoPipeline"


@pytest.fixture
def misnamed(hunyuan_folder: Path, copy: Callable[[Path], Path]) -> Path:
    """A pipeline that names its tokenizer as public checkpoints do."""
    folder = copy(hunyuan_folder)
    edit_json(folder / "model_index.json", tokenizer=["transformers", "LlamaTokenizerFast"])
    edit_json(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    return folder


def test_the_tokenizer_is_read_as_it_was_written(hunyuan_folder: Path, misnamed: Path) -> None:
    expected = prompt_embeddings(load_pipeline(local(hunyuan_folder)))
    assert torch.equal(prompt_embeddings(load_pipeline(local(misnamed))), expected)


def test_diffusers_alone_falls_into_the_tokenizer_s_trap(hunyuan_folder: Path, misnamed: Path) -> None:
    """Guards the test above: should this fail one day, the special case in the loader has become needless."""
    expected = prompt_embeddings(load_pipeline(local(hunyuan_folder)))
    plain = diffusers.HunyuanVideoPipeline.from_pretrained(misnamed)
    found = prompt_embeddings(plain)
    assert found.shape != expected.shape or not torch.allclose(found, expected)


def test_the_tokenizer_pads_on_the_right(hunyuan_folder: Path, copy: Callable[[Path], Path]) -> None:
    folder = copy(hunyuan_folder)
    edit_json(folder / "tokenizer" / "tokenizer_config.json", padding_side="left")
    assert load_pipeline(local(folder)).tokenizer.padding_side == "right"


def test_a_t5_tokenizer_that_is_only_a_sentencepiece_model(
    cogvideox_folder: Path, copy: Callable[[Path], Path], tmp_path: Path
) -> None:
    """As in the public checkpoints of CogVideoX."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = copy(cogvideox_folder)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join([PROMPT, "a green square rests on a white background"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "spiece"), vocab_size=30, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, num_threads=1,
    )  # fmt: skip
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    shutil.copy(tmp_path / "spiece.model", folder / "tokenizer")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))

    tokenizer = load_pipeline(local(folder)).tokenizer
    assert isinstance(tokenizer, T5Tokenizer)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    assert tokenizer(PROMPT).input_ids == [*pieces.encode(PROMPT), pieces.eos_id()]


def test_the_flow_shift_is_set(hunyuan_folder: Path) -> None:
    assert load_pipeline(local(hunyuan_folder)).scheduler.config.shift == 7.0
    fast = resolve({"model": "fasthunyuan", "weights": str(hunyuan_folder), "device": "cpu", "dtype": "float32"})
    scheduler = load_pipeline(fast.config.model).scheduler
    assert scheduler.shift == 17.0
    sigmas = torch.linspace(1, 0, 7, dtype=torch.float64)[:-1]  # those that the pipeline gives to its scheduler
    scheduler.set_timesteps(sigmas=sigmas.numpy())
    shifted = 17 * sigmas / (1 + 16 * sigmas)
    torch.testing.assert_close(scheduler.sigmas[:-1].double(), shifted, rtol=1e-6, atol=0)  # stored as float32


def test_a_flow_shift_for_a_scheduler_without_one_is_refused(cogvideox_folder: Path) -> None:
    with pytest.raises(AdaspaError, match=r"flow[_-]shift"):
        load_pipeline(local(cogvideox_folder, flow_shift=5.0))


def test_switches_of_the_vae(hunyuan_folder: Path) -> None:
    pipe = load_pipeline(local(hunyuan_folder, vae_tiling=True, vae_framewise=False))
    assert pipe.vae.use_tiling
    assert not pipe.vae.use_framewise_decoding
    untouched = load_pipeline(local(hunyuan_folder)).vae
    assert not untouched.use_tiling
    assert untouched.use_framewise_decoding == hunyuan_video().vae.use_framewise_decoding


@pytest.mark.parametrize(
    ("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)]
)
def test_a_dtype_that_is_named_is_taken(hunyuan_folder: Path, name: str, dtype: torch.dtype) -> None:
    assert choose_dtype(name, CPU) == dtype
    pipe = load_pipeline(local(hunyuan_folder, dtype=name))
    parts = (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    assert {part.dtype for part in parts} == {dtype}


def test_auto_is_bfloat16_on_gpus_and_what_is_fast_on_cpus() -> None:
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("auto", CPU) in (torch.bfloat16, torch.float32)


def test_auto_is_the_gpu_where_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


def test_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(BackendError, match="--device cuda:97: this machine has"):
        choose_device("cuda:97")


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading_on_the_cpu_is_an_error(hunyuan_folder: Path, offload: str) -> None:
    with pytest.raises(BackendError, match=f"--offload {offload} needs a GPU, and the run is on cpu"):
        load_pipeline(local(hunyuan_folder, offload=offload))


def refuse(folder: Path | str) -> ModelError:
    """Load a pipeline that cannot be loaded, and check that the error is one line."""
    with pytest.raises(ModelError) as caught:
        load_pipeline(ModelConfig(weights=str(folder), device="cpu", dtype="float32"))
    assert "\n" not in caught.value.message
    return caught.value


def test_a_missing_folder(tmp_path: Path) -> None:
    assert refuse(tmp_path / "nothing").message == f"model {tmp_path / 'nothing'} does not exist"


def test_a_folder_without_an_index(tmp_path: Path) -> None:
    error = refuse(tmp_path)
    assert "holds no model_index.json" in error.message
    assert error.hint


@pytest.mark.parametrize("text", ["{", "", "[1]", '"text"', "\xff"])
def test_an_index_that_is_not_json(hunyuan_folder: Path, copy: Callable[[Path], Path], text: str) -> None:
    folder = copy(hunyuan_folder)
    (folder / "model_index.json").write_text(text, encoding="latin-1")
    assert "model_index.json" in refuse(folder).message


@pytest.mark.parametrize("family", ["LTXPipeline", None, ["pipeline", "MyPipeline"]])
def test_an_unknown_family_names_those_that_are_known(
    hunyuan_folder: Path, copy: Callable[[Path], Path], family: Any
) -> None:
    folder = copy(hunyuan_folder)
    edit_json(folder / "model_index.json", _class_name=family)
    error = refuse(folder)
    assert "HunyuanVideoPipeline, CogVideoXPipeline" in str(error.hint)
    with pytest.raises(ModelError):
        resolve({"model": str(folder)})


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer", "tokenizer_2", "scheduler"])
def test_a_missing_part_is_named(hunyuan_folder: Path, copy: Callable[[Path], Path], part: str) -> None:
    folder = copy(hunyuan_folder)
    shutil.rmtree(folder / part)
    assert refuse(folder).message == f"{folder} is incomplete: it lacks {part}"


PARTS = ["transformer", "vae", "text_encoder", "text_encoder_2"]


@pytest.mark.parametrize("parts", [PARTS, ["transformer", "vae"]], ids=["all parts", "some"])
def test_weights_that_are_there_as_a_variant_only(tmp_path: Path, parts: list[str]) -> None:
    """As many published checkpoints of half the size."""
    pipe = hunyuan_video()
    folder = save(pipe, tmp_path / "model")
    for part in parts:
        weights_of(folder, part).unlink()
        getattr(pipe, part).save_pretrained(folder / part, variant="fp16")
    assert torch.equal(latents(load_pipeline(local(folder))), latents(pipe))


OFFLINE = """
import sys
from adaspa_cli.config import resolve
from adaspa_cli.models.loading import load_pipeline
pipe = load_pipeline(resolve({"model": sys.argv[1], "device": "cpu", "dtype": "float32"}).config.model)
print(type(pipe).__name__, pipe.transformer.dtype)
"""


def without_network(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python where nothing listens at the hub's address, and the hub's client does not know it."""
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(home), "PYTHONPATH": ":".join(sys.path)}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_the_hub_is_asked_once_where_it_does_not_answer(tmp_path: Path) -> None:
    """Its client would try six times, and print each."""
    for model in ("nobody/no-such-model", "cogvideox-2b"):
        made = without_network(tmp_path, "-m", "adaspa_cli", "generate", "--model", model, "--prompt", "x")
        assert made.returncode == 2
        said = [line for line in made.stderr.splitlines() if not line.startswith("search steps")]
        assert len(said) == 2
        assert said[0].startswith("error: cannot fetch ")
        assert "HF_HUB_OFFLINE" in said[1]


def test_a_cached_checkpoint_is_loaded_without_network(hunyuan_folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--nobody--model"
    shutil.copytree(hunyuan_folder, repository / "snapshots" / "0")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0")
    made = without_network(tmp_path, "-c", OFFLINE, "nobody/model")
    assert made.stdout.split() == ["HunyuanVideoPipeline", "torch.float32"], made.stderr
    assert made.stderr == ""


def weights_of(folder: Path, part: str) -> Path:
    (path,) = (folder / part).glob("*.safetensors")
    return path


@pytest.mark.parametrize("part", PARTS)
def test_a_part_without_weights(hunyuan_folder: Path, copy: Callable[[Path], Path], part: str) -> None:
    folder = copy(hunyuan_folder)
    weights_of(folder, part).unlink()
    assert str(folder) in refuse(folder).message


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kept", [0, 5, 0.5], ids=["empty", "no header", "half"])
def test_truncated_weights(hunyuan_folder: Path, copy: Callable[[Path], Path], part: str, kept: float) -> None:
    folder = copy(hunyuan_folder)
    path = weights_of(folder, part)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    assert str(folder) in refuse(folder).message


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_weights_that_are_no_safetensors(hunyuan_folder: Path, copy: Callable[[Path], Path], part: str) -> None:
    folder = copy(hunyuan_folder)
    weights_of(folder, part).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert str(folder) in refuse(folder).message


@pytest.mark.parametrize(
    "file",
    [
        "transformer/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer_2/tokenizer.json",
    ],
)
def test_a_corrupt_json_file(hunyuan_folder: Path, copy: Callable[[Path], Path], file: str) -> None:
    folder = copy(hunyuan_folder)
    assert (folder / file).exists()
    (folder / file).write_text("{")
    assert str(folder) in refuse(folder).message


def test_weights_of_another_shape(hunyuan_folder: Path, copy: Callable[[Path], Path]) -> None:
    folder = copy(hunyuan_folder)
    edit_json(folder / "transformer" / "config.json", num_attention_heads=3)
    assert str(folder) in refuse(folder).message


def test_a_class_that_the_library_does_not_have(hunyuan_folder: Path, copy: Callable[[Path], Path]) -> None:
    folder = copy(hunyuan_folder)
    edit_json(folder / "model_index.json", vae=["diffusers", "AutoencoderKLOfTheFuture"])
    assert str(folder) in refuse(folder).message


def test_a_hub_id_without_network() -> None:
    error = refuse("nobody/no-such-model")
    assert error.message.startswith("cannot fetch nobody/no-such-model: HF_HUB_OFFLINE is set and the cache")
    assert "local folder" in str(error.hint)
    with pytest.raises(ModelError, match="cannot fetch nobody/no-such-model"):
        resolve({"model": "nobody/no-such-model"})


def test_an_empty_configuration_names_the_bundled_model() -> None:
    assert resolve().config.model.weights == "bundled"
    with pytest.raises(ConfigError):
        ModelConfig(dtype="float8")


def test_loading_prints_nothing(hunyuan_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_pipeline(local(hunyuan_folder))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
