"""A family of another kind fits with nothing but its module and its entry in the list of families."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from adaspa_cli import apply
from adaspa_cli.bench.warm_up import first_blocks
from adaspa_cli.config import families, resolve
from adaspa_cli.config.search_masks import SearchOptions
from adaspa_cli.errors import ConfigError, RunError
from adaspa_cli.jobs.search_masks import search_masks
from adaspa_cli.masks.plan import CACHED_SEARCH, SEARCH
from adaspa_cli.models.compiled import compile_blocks
from adaspa_cli.models.registry import check_sampling, family_of
from tests.models.toy_family import BOUNDARY, FACTS, FAMILY, SCHEDULER, TRANSFORMER, toy
from tests.pipelines import PROMPT, Listener, latents, make_reports, masks_at_end, small_run

TOLERANCES = {"rtol": 1e-4, "atol": 1e-4}  # the same float32 sums in another order, as in tests/models/families
SPARSE: dict[str, Any] = {
    "sparsity": 0.6, "block_size": 8, "search_steps": (1, 3), "attention_backend": "reference",
}  # fmt: skip
DENSE: dict[str, Any] = {"method": "full", "attention_backend": "reference"}
EXACT = SPARSE | {"sparsity": 0.0}
GUIDED, UNGUIDED = {"guidance_scale": 5.0, "negative_prompt": "green"}, {"guidance_scale": 1.0}
FIRST, SECOND = {0, 1}, {2, 3}  # layers of the two transformers


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, FACTS))


@pytest.fixture
def pipe() -> Any:
    return toy()


def run(pipe: Any, **settings: Any) -> Tensor:
    return latents(pipe, **(UNGUIDED | settings))


def switch(pipe: Any) -> int:
    """The step at which the second transformer takes over."""
    return int((pipe.scheduler.timesteps >= BOUNDARY * 1000).sum())


def test_the_toy_is_what_it_is_meant_to_be(pipe: Any) -> None:
    plain, guided = run(pipe), run(pipe, **GUIDED)
    assert not torch.allclose(plain, guided, **TOLERANCES)
    assert switch(pipe) == 2
    assert family_of(pipe) is FAMILY


@pytest.mark.parametrize("guidance", [GUIDED, UNGUIDED], ids=["guided", "unguided"])
@pytest.mark.parametrize("method", [DENSE, EXACT], ids=["full", "adaspa"])
def test_attached_makes_the_same_video(pipe: Any, guidance: dict[str, Any], method: dict[str, Any]) -> None:
    plain = run(pipe, **guidance)
    with apply(pipe, **method) as handle:
        masks = masks_at_end(handle)
        assert handle.layers == 4
        torch.testing.assert_close(run(pipe, **guidance), plain, **TOLERANCES)
    branches = {"cond", "uncond"} if guidance is GUIDED else {"cond"}
    done = {(call.step, call.layer) for call in handle.engine.calls}
    assert done == {(step, layer) for step in range(4) for layer in (FIRST if step < 2 else SECOND)}
    if method is EXACT:
        assert set(masks) == {(layer, branch, 0) for layer in range(4) for branch in branches}


def test_the_second_transformer_searches_masks_of_its_own(pipe: Any) -> None:
    plain = run(pipe, **GUIDED)
    with apply(pipe, **SPARSE) as handle:
        made = run(pipe, **GUIDED)
    assert torch.isfinite(made).all()
    assert not torch.allclose(made, plain, **TOLERANCES)
    searched = {(search.step, search.layer) for search in handle.engine.searches}
    assert searched == {(1, 0), (1, 1), (2, 2), (2, 3), (3, 2), (3, 3)}
    actions = {(call.step, call.plan) for call in handle.engine.calls}
    assert (2, SEARCH) in actions
    assert (3, CACHED_SEARCH) in actions


def test_removal_restores_everything(pipe: Any) -> None:
    parts = pipe, pipe.scheduler, pipe.transformer, pipe.transformer_2
    plain, before = run(pipe), [set(vars(part)) for part in parts]
    processors = [block.attn1.processor for one in parts[2:] for block in one.blocks]
    with apply(pipe, **SPARSE):
        run(pipe)
    assert [set(vars(part)) for part in parts] == before
    assert [block.attn1.processor for one in parts[2:] for block in one.blocks] == processors
    assert not any(one._forward_pre_hooks for one in parts[2:])
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("guidance", [GUIDED, UNGUIDED], ids=["guided", "unguided"])
@pytest.mark.parametrize(
    "cache",
    [
        {"cache": "adacache", "adacache_thresholds": (1e-9,), "adacache_reuses": (1, 0), "adacache_motion": False},
        {"cache": "first-block", "first_block_threshold": 0.0},
        {"cache": "taylorseer", "taylorseer_interval": 1},
        {"cache": "pab", "pab_range": 1},
    ],
    ids=lambda cache: cache["cache"],
)
def test_a_step_cache_that_skips_nothing_changes_nothing(
    pipe: Any, guidance: dict[str, Any], cache: dict[str, Any]
) -> None:
    plain = run(pipe, **guidance)
    with apply(pipe, **(EXACT | cache)) as handle:
        if cache["cache"] == "pab" and guidance is GUIDED:
            with pytest.raises(RunError, match="two guidance branches"):
                run(pipe, **guidance)
            return
        torch.testing.assert_close(run(pipe, **guidance), plain, **TOLERANCES)
    assert handle.cache is not None
    counts = handle.cache.report()
    assert counts["computed"] == counts["possible"] == (2 if guidance is GUIDED else 1) * 4 * 2
    assert torch.equal(run(pipe, **guidance), plain)


@pytest.mark.parametrize("cache", [{"cache": "adacache", "adacache_reuses": (4,) * 6}, {"cache": "first-block"}])
def test_a_step_cache_takes_all_rows_of_a_bare_tensor(pipe: Any, cache: dict[str, Any]) -> None:
    """Two videos that are the same come out the same as alone: the first row of a tensor is not the video's tokens."""
    cache = cache | ({"first_block_threshold": 1000.0} if cache["cache"] == "first-block" else {})
    noise = torch.randn(1, 4, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    embeddings = pipe.encode_prompt(PROMPT)[0]
    del pipe.encode_prompt  # its class takes embeddings
    steps = {"num_inference_steps": 8, "prompt": None}
    with apply(pipe, **DENSE, **cache) as handle:
        alone = run(pipe, prompt_embeds=embeddings, latents=noise, **steps)
        assert handle.cache is not None
        assert 0 < handle.cache.report()["skipped"] < 1
        both = {"prompt_embeds": embeddings.repeat(2, 1, 1), "latents": noise.repeat(2, 1, 1, 1, 1)}
        together = run(pipe, **both, **steps)
    torch.testing.assert_close(together, alone.repeat(2, 1, 1, 1, 1), **TOLERANCES)


@pytest.mark.parametrize("calibrate", [False, True])
def test_a_cache_of_one_transformer_is_refused(pipe: Any, calibrate: bool) -> None:
    plain = run(pipe)
    settings = {"magcache_calibrate": True} if calibrate else {"magcache_ratios": (1.0,) * 4}
    with pytest.raises(RunError, match="this model has two"):
        apply(pipe, "full", cache="magcache", **settings)
    assert torch.equal(run(pipe), plain)


def test_either_transformer_may_be_absent() -> None:
    for name in ("transformer", "transformer_2"):
        pipe = toy()
        setattr(pipe, name, None)
        pipe.register_to_config(boundary_ratio={"transformer": 1.1, "transformer_2": None}[name])
        plain = run(pipe)
        with apply(pipe, **EXACT) as handle:
            torch.testing.assert_close(run(pipe), plain, **TOLERANCES)
            assert handle.layers == 2


def test_compiled_blocks_make_the_same_video(pipe: Any) -> None:
    plain = run(pipe)
    for one in FAMILY.transformers(pipe):
        compile_blocks(FAMILY.blocks(one), torch.device("cpu"), backend="eager")
    with apply(pipe, **EXACT):
        torch.testing.assert_close(run(pipe), plain, **TOLERANCES)


def test_blocks_of_both_transformers_are_cut_for_a_warm_up(pipe: Any) -> None:
    with first_blocks(FAMILY.transformers(pipe)):
        assert apply(pipe, "full").layers == 4


def test_sizes_are_those_of_its_patches(pipe: Any) -> None:
    right = resolve({"height": 64, "width": 96, "frames": 9}).config.sampling
    check_sampling(pipe, right)
    for wrong, message in (({"height": 40}, "height must be a multiple of 16"), ({"frames": 7}, r"4k \+ 1 frames")):
        with pytest.raises(ConfigError, match=message):
            check_sampling(pipe, resolve({"height": 64, "width": 96, "frames": 9, **wrong}).config.sampling)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The configurations of a pipeline, without weights."""
    classes = {
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    }
    vae = AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    configs = {
        "transformer/config.json": TRANSFORMER | {"num_layers": 4},
        "transformer_2/config.json": TRANSFORMER,
        "vae/config.json": {key: value for key, value in vae.config.items() if not key.startswith("_")},
        "scheduler/scheduler_config.json": SCHEDULER | {"_class_name": "UniPCMultistepScheduler"},
        "model_index.json": {"_class_name": "WanPipeline", "boundary_ratio": BOUNDARY, **classes},
    }
    for name, content in configs.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return tmp_path / "model"


@pytest.mark.parametrize(("layers", "counts"), [(None, [4, 2]), (3, [2, 1])])
def test_random_weights_make_a_report(folder: Path, tmp_path: Path, layers: int | None, counts: list[int]) -> None:
    flags = small_run(folder, tmp_path / "out", random_weights=True, guidance_scale=5.0)
    resolved = resolve(flags | ({} if layers is None else {"layers": layers}))
    (report,) = make_reports(resolved, Listener())
    assert report["model"]["pipeline"] == "WanPipeline"
    assert report["model"]["layers"] == sum(counts)
    assert report["model"]["heads"] == 2
    assert {search["branch"] for search in report["searches"]} == {"cond", "uncond"}
    assert {search["layer"] for search in report["searches"]} == set(range(sum(counts)))


def test_a_mask_file_is_of_one_transformer(folder: Path, tmp_path: Path) -> None:
    resolved = resolve(small_run(folder, tmp_path / "out", random_weights=True))
    with pytest.raises(RunError, match="a model with one transformer"):
        search_masks(resolved, SearchOptions(tmp_path / "masks.safetensors"), [PROMPT], Listener())
    assert not list(tmp_path.glob("masks*"))


def test_steps_per_phase_needs_one_transformer(folder: Path, tmp_path: Path) -> None:
    flags = small_run(folder, tmp_path / "out", random_weights=True, steps_per_phase=1)
    with pytest.raises(RunError, match="needs a model with one transformer"):
        list(make_reports(resolve(flags), Listener()))
