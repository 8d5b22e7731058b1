"""Wan 2.1 and 2.2: what only they do. What every family does is in tests/models/test_every_family.py."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adaspa_cli import apply
from adaspa_cli.bench.warm_up import first_blocks
from adaspa_cli.config import resolve
from adaspa_cli.config.architecture import architecture_of, check_early
from adaspa_cli.config.load import method_config
from adaspa_cli.config.search_masks import SearchOptions
from adaspa_cli.errors import ConfigError, RunError
from adaspa_cli.hooks import clock
from adaspa_cli.jobs.search_masks import search_masks
from adaspa_cli.maskfiles.compare import compare
from adaspa_cli.masks.methods.registry import make_policy
from adaspa_cli.masks.plan import CACHED_SEARCH, SEARCH
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.models.registry import check_sampling, family_of
from adaspa_cli.visual.mask_choice import MaskChoice
from adaspa_cli.visual.mask_reading import masks_to_read
from tests.models.every_family import picture
from tests.pipelines import PROMPT, WAN_BOUNDARY, Listener, latents, make_reports, save, small_run, wan, wan_image

TOLERANCES = {"rtol": 1e-4, "atol": 1e-4}  # as in tests/models/test_every_family.py
SPARSE: dict[str, Any] = {
    "method": "adaspa", "sparsity": 0.6, "block_size": 8, "search_steps": (1, 3), "attention_backend": "reference",
}  # fmt: skip
GUIDED, UNGUIDED = {"guidance_scale": 5.0, "negative_prompt": "green"}, {"guidance_scale": 1.0}


@pytest.fixture
def both() -> Any:
    """Wan 2.2: two transformers of two layers."""
    return wan("2.2")


def run(pipe: Any, **settings: Any) -> Tensor:
    return latents(pipe, **(UNGUIDED | settings))


def test_each_transformer_makes_two_of_four_steps(both: Any) -> None:
    run(both)
    assert int((both.scheduler.timesteps >= WAN_BOUNDARY * 1000).sum()) == 2
    with apply(both, "full") as handle:
        run(both)
    done = {(call.step, call.layer) for call in handle.engine.calls}
    assert done == {(step, layer) for step in range(4) for layer in ((0, 1) if step < 2 else (2, 3))}


def test_the_second_transformer_searches_masks_of_its_own(both: Any) -> None:
    with apply(both, **SPARSE) as handle:
        run(both, **GUIDED)
    searched = {(search.step, search.layer) for search in handle.engine.searches}
    assert searched == {(1, 0), (1, 1), (2, 2), (2, 3), (3, 2), (3, 3)}
    plans = {(call.step, call.plan) for call in handle.engine.calls}
    assert {(2, SEARCH), (3, CACHED_SEARCH)} <= plans


def test_each_stage_has_a_guidance_of_its_own(both: Any) -> None:
    plain = run(both, **GUIDED, guidance_scale_2=2.0)
    assert not torch.allclose(plain, run(both, **GUIDED), **TOLERANCES)
    with apply(both, **(SPARSE | {"sparsity": 0.0})):
        torch.testing.assert_close(run(both, **GUIDED, guidance_scale_2=2.0), plain, **TOLERANCES)


@pytest.mark.parametrize("calibrate", [False, True])
def test_a_cache_of_one_transformer_is_refused(both: Any, calibrate: bool) -> None:
    plain = run(both)
    settings = {"magcache_calibrate": True} if calibrate else {"magcache_ratios": (1.0,) * 4}
    with pytest.raises(RunError, match="this model has two"):
        apply(both, "full", cache="magcache", **settings)
    assert torch.equal(run(both), plain)


@pytest.mark.parametrize("absent", ["transformer", "transformer_2"])
def test_either_transformer_may_be_absent(both: Any, absent: str) -> None:
    setattr(both, absent, None)
    both.register_to_config(boundary_ratio={"transformer": 1.1, "transformer_2": None}[absent])
    plain = run(both)
    with apply(both, **(SPARSE | {"sparsity": 0.0})) as handle:
        torch.testing.assert_close(run(both), plain, **TOLERANCES)
        assert handle.layers == 2


def test_blocks_of_both_transformers_are_cut_for_a_warm_up(both: Any) -> None:
    with first_blocks(family_of(both).transformers(both)):
        assert apply(both, "full").layers == 4


@pytest.mark.parametrize("order", ["raster", "hilbert"])
def test_tokens_may_have_timesteps_of_their_own(order: str) -> None:
    """As the frame of an image has none: what a token's modulation is must move with the token."""
    pipe = wan("2.2-5b")
    transformer, tokens = pipe.transformer, 3 * 4 * 6
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 4, 3, 8, 12, generator=generator)
    text = torch.randn(1, 16, 32, generator=generator)

    def call(timestep: Tensor) -> Tensor:
        times = torch.cat([torch.zeros(tokens // 3), timestep.float().expand(tokens - tokens // 3)])[None]
        with torch.inference_mode():
            out: Tensor = transformer(
                hidden_states=noise, timestep=times, encoder_hidden_states=text, return_dict=False
            )[0]
        return out

    pipe.scheduler.set_timesteps(4)
    plain = call(pipe.scheduler.timesteps[0])
    with apply(pipe, "full", token_order=order, attention_backend="reference"):
        pipe.scheduler.set_timesteps(4)
        torch.testing.assert_close(call(pipe.scheduler.timesteps[0]), plain, **TOLERANCES)


@pytest.mark.parametrize(
    ("version", "preset"), [("2.1", "wan2.1-14b"), ("2.2", "wan2.2-a14b"), ("2.2-5b", "wan2.2-5b")]
)
def test_a_folder_has_the_defaults_of_its_kind(version: str, preset: str, tmp_path: Path) -> None:
    resolved = resolve({"model": str(save(wan(version), tmp_path / "pipe"))})
    assert resolved.origins()["fps"] == f"model preset {preset}"


@pytest.mark.parametrize(
    ("model", "shift", "guidance", "steps"),
    [
        ("wan2.1-1.3b", 8.0, (6.0, None), 50),
        ("wan2.1-14b", 5.0, (5.0, None), 50),
        ("wan2.2-a14b", 12.0, (4.0, 3.0), 40),
        ("wan2.2-5b", 5.0, (5.0, None), 50),
        ("wan2.1-i2v-14b", 5.0, (5.0, None), 50),
        ("wan2.2-i2v-a14b", 5.0, (3.5, 3.5), 40),
        ("wan2.2-5b-i2v", 5.0, (5.0, None), 50),
    ],
)
def test_presets_sample_as_the_authors_do(
    model: str, shift: float, guidance: tuple[float, float | None], steps: int
) -> None:
    config = resolve({"model": model}).config
    sampling = config.sampling
    assert (sampling.guidance_scale, sampling.guidance_scale_2) == guidance
    assert sampling.steps == steps
    assert (sampling.negative_prompt or "").startswith("色调艳丽，过曝，静态")
    assert (sampling.negative_prompt or "").count("，") == 27
    assert config.model.flow_shift == shift


def test_the_shift_is_what_the_scheduler_calls_flow_shift(tmp_path: Path) -> None:
    folder = save(wan(), tmp_path / "pipe")
    pipe = load_pipeline(resolve({"model": str(folder), "device": "cpu", "flow_shift": 9.0}).config.model)
    assert pipe.scheduler.config.flow_shift == 9.0


@pytest.mark.parametrize(
    ("version", "settings", "message"),
    [
        ("2.1", {"guidance_scale_2": 3.0}, "the model has one"),
        ("2.2", {"guidance_scale": 1.0, "guidance_scale_2": 3.0}, "switches guidance off in both stages"),
        ("2.1", {"true_cfg_scale": 2.0, "negative_prompt": "x"}, "Wan uses --guidance-scale"),
        ("2.2-5b", {"height": 144}, "height must be a multiple of 32"),
    ],
)
def test_what_would_be_ignored_is_refused(version: str, settings: dict[str, Any], message: str) -> None:
    size = {"height": 128, "width": 192, "frames": 9}
    with pytest.raises(ConfigError, match=message):
        check_sampling(wan(version), resolve(size | settings).config.sampling)


def test_the_tokenizer_is_read_as_it_was_written(tmp_path: Path) -> None:
    """transformers would rebuild it from its vocabulary, without the fall-back to bytes that UMT5 has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = save(wan(), tmp_path / "pipe")
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "T5TokenizerFast"]
    (folder / "model_index.json").write_text(json.dumps(index))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("a", -3.0)]
    written = Tokenizer(models.Unigram([*pieces, *((f"<0x{n:02X}>", -9.0) for n in range(100))], 2, byte_fallback=True))
    written.pre_tokenizer = pre_tokenizers.Metaspace()
    written.decoder = decoders.Metaspace()
    written.save(str(folder / "tokenizer" / "tokenizer.json"))
    pipe = load_pipeline(resolve({"model": str(folder), "device": "cpu"}).config.model)
    wanted = written.encode("a\x07a").ids
    assert 2 not in wanted
    assert pipe.tokenizer("a\x07a").input_ids == wanted


# --- two transformers: masks, search steps, mask files


@pytest.mark.parametrize(
    ("steps", "stage", "expected"),
    [
        (50, (), (10, 30)),
        (40, (26,), (8, 17, 26, 33)),
        (50, (33,), (10, 21, 33, 41)),
        (40, (4,), (8, 24)),
        (40, (40,), (8, 24)),
        (40, (0,), (8, 24)),
        (4, (2,), (0, 1, 2, 3)),
    ],
)
def test_each_stage_searches_at_its_share_of_the_schedule(
    steps: int, stage: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """At its first step after warm-up, and again after half of what is left of the stage."""
    chosen = {50: {}, 40: {"search_steps": (8, 24), "search_steps_for": 40}, 4: {}}[steps]
    config = method_config("adaspa", chosen).searching
    assert config.schedule(steps, stage) == expected


def test_exact_search_steps_stay_and_a_stage_begins_with_one() -> None:
    config = method_config("adaspa", {"search_steps": (2, 20)}).searching
    assert config.schedule(40, (10,)) == (2, 10, 20)


def test_a_ramp_changes_where_it_says_in_every_stage() -> None:
    config = method_config("adaspa", {"sparsity": "0:0.5,8%:0.7,20%:0.95", "search_steps": (30,)}).searching
    assert config.schedule(50, (33,)) == (0, 4, 10, 30, 33)


def test_masks_and_lse_are_freed_at_the_switch(both: Any) -> None:
    layers_at: dict[int, set[int]] = {}
    with apply(both, **(SPARSE | {"search_steps": (0,)})) as handle:
        handle.clock.listen(
            clock.Listener(
                clock.Order.READERS,
                step_end=lambda step: layers_at.setdefault(step, {layer for layer, _, _ in handle.masks()}),
            )
        )
        run(both, **GUIDED, callback_on_step_end=lambda _pipe, _step, _time, values: values)
        assert not handle.engine.memory.entries()
    assert layers_at == {0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}}


@pytest.mark.parametrize(
    "cache",
    [
        {"cache": "adacache", "adacache_reuses": (4,) * 6},
        {"cache": "first-block", "first_block_threshold": 1000.0},
    ],
    ids=lambda cache: cache["cache"],
)
def test_what_a_cache_keeps_is_freed_at_the_switch(both: Any, cache: dict[str, Any]) -> None:
    """No tensor of the video's tokens lives between the last step of one transformer and the first of the other."""
    kept: dict[int, int] = {}

    def count(step: int) -> None:
        if step not in (2, 3, 8):  # looking takes long
            return
        shape = family_of(both).shape(both)
        tokens = torch.Size([3 * 4 * 6, shape.heads * shape.head_dim])
        kept[step] = sum(type(one) is Tensor and one.shape[-2:] == tokens for one in gc.get_objects())

    with apply(both, **SPARSE, **cache) as handle:
        handle.clock.listen(clock.Listener(clock.Order.OBSERVERS, step_end=count, end=lambda: count(8)))
        for _ in range(2):  # the first transformer's cache is back in the second run
            run(both, num_inference_steps=8)
            assert handle._attachment.stages(8) == (4,)
            assert {step for step, number in kept.items() if not number} == {3, 8}
        assert handle.cache is not None
        assert handle.cache.report()["skipped"] > 0


def test_no_lse_is_kept_for_the_other_stage() -> None:
    policy = make_policy(method_config("adaspa", {"search_steps": (0, 20)}).searching, 40, (20,))
    assert policy.stages == (20,)
    assert not any(policy.keeps_lse(step) for step in range(40))
    assert [plan.phase for plan in policy.plan(range(19, 22))] == ["search", "search", "sparse"]


@pytest.mark.parametrize("other_steps", [4, 8])
def test_masks_of_a_file_serve_both_transformers(tmp_path: Path, other_steps: int) -> None:
    """Also with four steps, of which each transformer makes two: then no step needs to be dense."""
    folder, file = save(wan("2.2"), tmp_path / "pipe"), tmp_path / "masks.safetensors"
    settings = small_run(folder, tmp_path / "out", height=64, width=96, frames=9, block_size=8, flow_shift=3.0)
    search = resolve(settings | {"steps": 8, "search_steps": (1, 5)})
    found = search_masks(search, SearchOptions(file), [PROMPT], Listener())
    assert found.description.stages == ((2, 4),)
    assert [found.description.steps_of(layer) for layer in range(4)] == [(1,), (1,), (4, 5), (4, 5)]
    assert list(found.verify())
    stored = settings | {"steps": other_steps, "masks": str(file), "masks_from_start": True}
    del stored["search_steps"]
    (report,) = make_reports(resolve(stored), Listener())
    assert {step["phase"] for step in report["steps"]} <= {"loaded masks", "sparse"}
    assert {search["layer"] for search in report["searches"]} == {0, 1, 2, 3}


def test_masks_of_one_transformer_are_drawn_and_compared(tmp_path: Path) -> None:
    folder, file = save(wan("2.2"), tmp_path / "pipe"), tmp_path / "masks.safetensors"
    settings = small_run(folder, tmp_path / "out", height=64, width=96, frames=9, block_size=8, flow_shift=3.0)
    found = search_masks(resolve(settings | {"search_steps": (1,)}), SearchOptions(file), [PROMPT], Listener())
    assert found.description.search_steps == (1, 2)
    chosen = MaskChoice.of([found])
    assert (chosen.layers, chosen.steps) == ((0, 1), (1,))
    assert MaskChoice.of([found], layers=(2,)).steps == (2,)
    with pytest.raises(ConfigError, match="layers 2 do not all have the search steps 1"):
        MaskChoice.of([found], layers=(2,), steps=(1,))
    assert {(layer, step) for _, (layer, _, step) in masks_to_read([found], chosen)} == {(0, 1), (1, 1)}
    assert {(overlap.layer, overlap.steps) for overlap in compare(found, found)} == {
        (0, (1, 1)), (1, (1, 1)), (2, (2, 2)), (3, (2, 2)),
    }  # fmt: skip


@pytest.mark.parametrize("method", ["diffusers", "full", "adaspa"])
def test_of_each_transformer_some_steps_of_each_phase_are_computed(method: str, tmp_path: Path) -> None:
    folder = save(wan("2.2"), tmp_path / "pipe")
    flags: dict[str, Any] = {"method": method, "random_weights": True, "steps_per_phase": 1, "flow_shift": 3.0}
    flags |= {"steps": 16, "search_steps_for": 16, "search_steps": (2, 9)} if method == "adaspa" else {"steps": 16}
    if method == "diffusers":
        flags["attention_backend"] = "auto"
    (report,) = make_reports(resolve(small_run(folder, tmp_path / "out", **flags)), Listener())
    computed = [step["step"] for step in report["steps"] if not step["estimated"]]
    pipe = wan("2.2")
    (second,) = family_of(pipe).stages(pipe, 16)
    if method != "adaspa":
        assert computed == [0, 1, second, second + 1]
        return
    phases = {step["step"]: step["phase"] for step in report["steps"]}
    searched = [step for step, phase in phases.items() if "search" in phase]
    assert phases[second] == "search"
    assert len(searched) == 4
    assert set(searched) <= set(computed)
    for stage in (range(second), range(second, 16)):
        assert {phases[step] for step in stage} == {phases[step] for step in stage if step in computed}


# --- from a picture


@pytest.mark.parametrize("version", ["2.1", "2.2-5b"])
def test_a_last_picture_that_would_be_ignored_or_fail_is_refused(version: str) -> None:
    settings = {"height": 128, "width": 192, "frames": 9, "image": "a.png", "last_image": "b.png"}
    sampling = resolve(settings).config.sampling
    with pytest.raises(ConfigError, match="takes no last image"):
        check_sampling(wan_image(version), sampling)
    for other in ("2.1-flf", "2.2"):
        check_sampling(wan_image(other), sampling)


@pytest.mark.parametrize(
    ("model", "pictures"), [("wan2.2-5b-i2v", ("image",)), ("wan2.2-i2v-a14b", ("image", "last_image"))]
)
def test_one_frame_that_would_be_the_picture_is_refused(model: str, pictures: tuple[str, ...], tmp_path: Path) -> None:
    """Before anything is loaded."""
    picture().save(tmp_path / "picture.png")
    resolved = resolve({"model": model, "frames": 1, **dict.fromkeys(pictures, str(tmp_path / "picture.png"))})
    with pytest.raises(ConfigError, match="one frame would be the picture") as raised:
        check_early(resolved.config.model, resolved.config.sampling)
    assert raised.value.hint == "nearest: 5"


def test_pictures_matter() -> None:
    pipe = wan_image("2.2")
    first, last = picture(), picture().rotate(90)
    plain = run(pipe, image=first)
    assert not torch.allclose(run(pipe, image=last), plain, **TOLERANCES)
    assert not torch.allclose(run(pipe, image=first, last_image=last), plain, **TOLERANCES)


def test_a_checkpoint_of_text_to_video_makes_videos_from_pictures(tmp_path: Path) -> None:
    """As Wan 2.2 TI2V, whose index names the pipeline of text to video."""
    folder = save(wan("2.2-5b"), tmp_path / "pipe")
    settings = {"model": "wan2.2-5b-i2v", "weights": str(folder), "device": "cpu"}
    assert family_of(load_pipeline(resolve(settings).config.model)).facts.images == ("image", "last_image")
    assert resolve({"model": "wan2.2-5b"}).config.model.pipeline is None
    for model, kind in (("wan2.2-5b", "WanPipeline"), ("wan2.2-5b-i2v", "WanImageToVideoPipeline")):
        config = resolve({"model": model, "random_weights": True}).config
        assert architecture_of(config.model).pipeline == kind
    assert resolve({"model": "Wan-AI/Wan2.2-TI2V-5B-Diffusers"}).origins()["fps"] == "model preset wan2.2-5b"


def test_the_first_frame_of_ti2v_stays_the_picture() -> None:
    pipe = wan_image("2.2-5b")
    size: dict[str, Any] = {"height": 128, "width": 192, "image": picture()}
    with apply(pipe, **SPARSE):
        one, two = (run(pipe, **size, prompt=prompt) for prompt in (PROMPT, "a square"))
    assert torch.equal(one[:, :, 0], two[:, :, 0])
    assert not torch.allclose(one[:, :, 1], two[:, :, 1], **TOLERANCES)


# --- few steps


def test_four_steps_are_at_the_timesteps_that_four_step_loras_were_made_for() -> None:
    """1000, 937.5, 833.3 and 625: shift 5 in the checkpoint's own scheduler; another one with that shift has others."""
    pipe = wan()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=5.0)
    pipe.scheduler.set_timesteps(4)
    assert pipe.scheduler.timesteps.tolist() == [999, 937, 833, 625]
    assert family_of(wan("2.2")).stages(wan("2.2"), 4) == (2,)


def test_four_steps_search_at_each_transformers_first_step() -> None:
    """So half of the steps are dense; with --masks and --masks-from-start none is."""
    settings = resolve({"model": "wan2.2-a14b", "steps": 4, "guidance_scale": 1.0, "guidance_scale_2": 1.0}).config
    policy = make_policy(settings.method.searching, 4, (2,))
    assert [plan.phase for plan in policy.plan(range(4))] == ["search", "cached search", "search", "cached search"]
