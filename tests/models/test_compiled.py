"""Compiled blocks: a few graphs for all layers, none of which knows a mask, a step or a prompt."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook
from torch._dynamo.utils import counters

import adaspa_cli
from adaspa_cli.config import ModelConfig, resolve
from adaspa_cli.errors import BackendError, ConfigError
from adaspa_cli.models.compiled import compile_blocks
from adaspa_cli.models.families.cogvideox import CogVideoXProcessor
from adaspa_cli.models.families.hunyuan_video import HunyuanVideoProcessor
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.models.registry import family_of
from tests.pipelines import cogvideox, hunyuan_video, latents, save

CPU = torch.device("cpu")
METHOD: dict[str, Any] = {
    "method": "adaspa", "sparsity": 0.5, "block_size": 16, "attention_backend": "reference", "search_steps": (1, 2),
}  # fmt: skip
# The part before attention and the part after it, of dual and single blocks. The first single block and the first of
# CogVideoX's blocks get tokens in another memory layout than those behind them, which splits a joint sequence.
GRAPHS = {"hunyuan": 5, "cogvideox": 4}


@pytest.fixture(autouse=True)
def _no_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=5):  # of 8, so that fewer layers are more than it allows
        yield
    torch._dynamo.reset()
    counters.clear()


def many_layers(family: str) -> Any:
    """More layers of a kind than torch.compile would compile one by one."""
    layers = torch._dynamo.config.recompile_limit + 2
    if family == "cogvideox":
        return cogvideox(num_layers=layers, num_attention_heads=1)
    return hunyuan_video(num_layers=layers, num_single_layers=layers, num_attention_heads=1)


def run(pipe: Any, prompt: str = "a red circle", method: dict[str, Any] | None = None, **size: int) -> torch.Tensor:
    with adaspa_cli.apply(pipe, **(METHOD | (method or {}))):
        return latents(pipe, **({"prompt": prompt, "height": 32, "width": 48, "num_inference_steps": 3} | size))


def blocks_of(pipe: Any) -> list[Any]:
    return family_of(pipe).blocks(pipe.transformer)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("processor", [HunyuanVideoProcessor, CogVideoXProcessor])
def test_diffusers_still_sees_which_arguments_attention_takes(processor: Any) -> None:
    parameters = inspect.signature(processor(0, None).__call__).parameters
    assert list(parameters) == [
        "attn", "hidden_states", "encoder_hidden_states", "attention_mask", "image_rotary_emb",
    ]  # fmt: skip


@pytest.mark.parametrize("family", list(GRAPHS))
def test_all_layers_share_graphs_that_know_no_run(family: str) -> None:
    pipe = many_layers(family)
    expected = run(pipe)
    compile_blocks(blocks_of(pipe), CPU, backend="aot_eager")
    torch.testing.assert_close(run(pipe), expected)
    assert graphs() == GRAPHS[family]
    run(pipe, "another prompt, which has a text of another length")
    run(pipe, method={"sparsity": 0.7, "search_steps": (0,), "head_adaptive": False})
    run(pipe, method={"method": "minference"})
    assert graphs() == GRAPHS[family]


@pytest.mark.parametrize("family", list(GRAPHS))
def test_other_sizes_take_one_more_set_of_graphs(family: str) -> None:
    pipe = many_layers(family)
    compile_blocks(blocks_of(pipe), CPU, backend="eager")
    run(pipe)
    for size in ({"width": 64}, {"height": 48}, {"num_frames": 17}, {"height": 64, "width": 64}):
        run(pipe, **size)
        assert graphs() == 2 * GRAPHS[family]


@pytest.mark.parametrize("cache", ["adacache", "first-block"])
def test_caches_of_blocks_stay_outside_of_graphs(cache: str) -> None:
    pipe, method = many_layers("hunyuan"), {"cache": cache, "first_block_threshold": 0.0}
    expected = run(pipe, method=method)
    compile_blocks(blocks_of(pipe), CPU, backend="eager")
    torch.testing.assert_close(run(pipe, method=method), expected)
    assert graphs() == GRAPHS["hunyuan"]


def test_blocks_compiled_by_their_owner_work() -> None:
    pipe = many_layers("hunyuan")
    expected = run(pipe)
    pipe.transformer.compile_repeated_blocks(backend="eager")
    torch.testing.assert_close(run(pipe), expected)


def test_offloading_the_whole_transformer_stays_outside_of_graphs() -> None:
    pipe = many_layers("hunyuan")
    expected = run(pipe)
    pipe.transformer, _ = cpu_offload_with_hook(pipe.transformer, "cpu")
    compile_blocks(blocks_of(pipe), CPU, backend="eager")
    torch.testing.assert_close(run(pipe), expected)
    assert graphs() == GRAPHS["hunyuan"]


@pytest.mark.slow
def test_a_loaded_pipeline_runs_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    settings = {"weights": str(save(cogvideox(num_layers=1), tmp_path / "model")), "device": "cpu", "dtype": "float32"}
    expected = run(load_pipeline(ModelConfig(**settings)))
    with torch._inductor.config.patch(compile_threads=1):
        got = run(load_pipeline(ModelConfig(**settings, compile=True)))
    assert graphs() == 2
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_cpu_without_a_compiler_is_an_error(hunyuan_folder: Path) -> None:
    config = ModelConfig(weights=str(hunyuan_folder), device="cpu", dtype="float32", compile=True)
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(BackendError, match="needs a C"),
    ):
        load_pipeline(config)


def test_what_takes_blocks_apart_is_refused() -> None:
    with pytest.raises(ConfigError, match="can't be combined with offload 'group'"):
        resolve({"compile": True, "offload": "group"})
    assert resolve({"compile": True, "offload": "model"}).config.model.compile
    for settings in ({"method": "pab"}, {"cache": "taylorseer"}):
        with pytest.raises(ConfigError, match="compile can't be combined with cache"):
            resolve({"compile": True} | settings)
