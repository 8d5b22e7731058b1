"""What every model family does with adaspa: one suite, of which a family is a parameter.

Small pipelines with random weights, against the same pipelines as diffusers runs them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from adaspa_cli import apply
from adaspa_cli.config import resolve
from adaspa_cli.config.load import method_config
from adaspa_cli.config.methods import SparseConfig, names_of
from adaspa_cli.config.search_masks import SearchOptions
from adaspa_cli.distributed.teams import Teams
from adaspa_cli.errors import ConfigError, RunError
from adaspa_cli.jobs.search_masks import search_masks
from adaspa_cli.masks.plan import DENSE
from adaspa_cli.models import fp8, fp8_linear
from adaspa_cli.models.compiled import compile_blocks
from adaspa_cli.models.fp8 import Fp8Linears, left_behind
from adaspa_cli.models.loading import load_pipeline
from adaspa_cli.models.quantised import quantise_weights
from adaspa_cli.models.registry import check_sampling, family_of
from adaspa_cli.sampling import handle as handle_module
from adaspa_cli.sampling.handle import Handle
from tests.distributed.ranks import together
from tests.models.every_family import CASES, Case, picture
from tests.models.test_lora import check_added, needs_peft, weights, write_lora
from tests.pipelines import PROMPT, Listener, latents, make_reports, save, small_run

# The same float32 sums in another order: latents of size 8 differed by 2e-5 on one machine, and other machines have
# other orders. A fifth of the blocks left out changes them by more than 2e-3.
TOLERANCES = {"rtol": 1e-4, "atol": 1e-4}
SPARSE: dict[str, Any] = {
    "method": "adaspa", "sparsity": 0.6, "block_size": 8, "search_steps": (1, 3), "attention_backend": "reference",
}  # fmt: skip
EXACT = SPARSE | {"sparsity": 0.0}
DENSELY: dict[str, Any] = {"method": "full", "attention_backend": "reference"}
METHODS = ("adaspa-no-lse-cache", "adaspa-plus", *names_of(SparseConfig))
GUIDANCE = ("guided", "unguided")


# Run every test of one family before the next: they share its pipeline.
@pytest.fixture(params=list(CASES), scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def pipe(case: Case) -> Any:
    """One pipeline for all tests of a family: they leave it as it was, which is what they are about."""
    return case.make()


@pytest.fixture(scope="module")
def run(case: Case, pipe: Any) -> Callable[..., Tensor]:
    """Makes latents, unguided if nothing is said."""

    def make(guidance: str = "unguided", **settings: Any) -> Tensor:
        return latents(pipe, **(case.call(guidance) | settings))

    return make


@pytest.fixture(scope="module")
def plain(run: Callable[..., Tensor]) -> Mapping[str, Tensor]:
    """What diffusers makes."""
    return {guidance: run(guidance) for guidance in GUIDANCE}


@pytest.fixture(scope="module")
def folder(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(pipe, tmp_path_factory.mktemp("saved") / "pipe")


def transformers(pipe: Any) -> list[Any]:
    return family_of(pipe).transformers(pipe)


def flags(case: Case, folder: Path, out: Path, guidance: str = "guided", **more: Any) -> dict[str, Any]:
    settings = {**case.size, **case.settings, "frames": 9, "block_size": 8, **getattr(case, guidance)}
    if case.pictures:
        out.parent.mkdir(exist_ok=True)
        picture().save(out.parent / "picture.png")
        settings |= dict.fromkeys(case.pictures, str(out.parent / "picture.png"))
    return small_run(folder, out, **(settings | more))


def branches(guidance: str) -> set[str]:
    return {"cond", "uncond"} if guidance == "guided" else {"cond"}


def state(pipe: Any) -> list[Any]:
    """All that a method could leave behind."""
    attached = [module for one in transformers(pipe) for module in one.modules()]
    return [
        *[set(vars(part)) for part in (pipe, pipe.scheduler, *transformers(pipe))],
        *[getattr(module, "processor", None) for module in attached],
        *[[*module._forward_hooks.values(), *module._forward_pre_hooks.values()] for module in attached],
        *["forward" in vars(module) for module in attached],
    ]


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("order", ["raster", "hilbert"])
def test_dense_attention_makes_the_same_video(
    case: Case, pipe: Any, run: Any, plain: Any, guidance: str, order: str, backend: str
) -> None:
    if backend == "triton":
        pytest.skip("tests/models/families has this on a GPU")
    with apply(pipe, "full", attention_backend=backend, token_order=order) as handle:
        assert handle.layers == case.layers
        made = run(guidance)
    assert {call.plan for call in handle.engine.calls} == {DENSE}
    assert {call.layer for call in handle.engine.calls} == set(range(case.layers))
    torch.testing.assert_close(made, plain[guidance], **TOLERANCES)


@pytest.mark.parametrize("parallel", ["tokens", "branches"])
def test_two_processes_make_the_same_video(case: Case, pipe: Any, run: Any, tmp_path: Path, parallel: str) -> None:
    """Each with half of the tokens, or with one branch of guidance."""
    method = method_config("adaspa", SPARSE)
    if parallel in case.refuses:

        def refuse(teams: Teams) -> None:
            with pytest.raises(RunError, match=case.refuses[parallel]):
                Handle(pipe, method, teams=teams)

        together(2, tmp_path, refuse)
        return
    with Handle(pipe, method) as handle:
        expected, density = run("guided"), [search.density for search in handle.engine.searches]

    def process(teams: Teams) -> None:
        with Handle(pipe, method, teams=teams) as handle:
            made = run("guided")
            searches = handle.engine.searches
        torch.testing.assert_close(made, expected, **TOLERANCES)
        if parallel == "branches":
            assert 2 * len(searches) == len(density)
        else:
            for search, whole in zip(searches, density, strict=True):
                assert torch.equal(search.density, search.heads.mine(whole))

    together(2, tmp_path, process, branches=2 if parallel == "branches" else 1)


@pytest.mark.parametrize(("method", "guidance"), [("adaspa", "unguided"), *((name, "guided") for name in METHODS)])
def test_a_method_that_leaves_nothing_out_makes_the_same_video(
    case: Case, pipe: Any, run: Any, plain: Any, method: str, guidance: str
) -> None:
    with apply(pipe, **EXACT | {"method": method}) as handle:
        made = run(guidance)
    torch.testing.assert_close(made, plain[guidance], **TOLERANCES)
    places = {(search.layer, search.branch) for search in handle.engine.searches}
    assert places == {(layer, branch) for layer in range(case.layers) for branch in branches(guidance)}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_leaves_something_out(pipe: Any, run: Any, plain: Any, method: str) -> None:
    """Guards the tests above: where blocks are dropped, the video does change. And no chance is in it."""
    few = {"probes": 2} if method == "adaspa-plus" else {}  # of 72 rows the default would repair every one
    with apply(pipe, **(SPARSE | {"method": method, "search_steps": (0,)} | few)) as handle:
        made = run("guided")
        assert torch.equal(run("guided"), made)
    assert torch.isfinite(made).all()
    assert not torch.allclose(made, plain["guided"], **TOLERANCES)
    sparse = [call for call in handle.engine.calls if call.density is not None]
    assert any((call.density < 1).any() for call in sparse)  # type: ignore[operator]


def test_both_branches_may_share_masks(pipe: Any, run: Any, plain: Any) -> None:
    with apply(pipe, **EXACT, share_cfg_masks=True) as handle:
        torch.testing.assert_close(run("guided"), plain["guided"], **TOLERANCES)
    assert {search.branch for search in handle.engine.searches} == {"cond"}


def test_the_branches_are_told_apart_the_right_way_round(pipe: Any, run: Any) -> None:
    """The first step's input does not depend on guidance: its conditional masks are those of an unguided run."""
    recalls = []
    for guidance in GUIDANCE:
        with apply(pipe, **(SPARSE | {"search_steps": (0,)})) as handle:
            run(guidance, num_inference_steps=2)
        searches = [search for search in handle.engine.searches if (search.branch, search.step) == ("cond", 0)]
        recalls.append(torch.stack([search.recall for search in searches if search.recall is not None]))
    torch.testing.assert_close(*recalls, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_a_batch_makes_the_same_videos(case: Case, pipe: Any, run: Any, guidance: str) -> None:
    prompts: dict[str, Any] = {"prompt": [PROMPT, "a square"], **case.two()}
    if guidance == "guided":
        prompts["negative_prompt"] = ["green", "at rest"]
    plain = run(guidance, **prompts)
    with apply(pipe, **EXACT) as handle:
        torch.testing.assert_close(run(guidance, **prompts), plain, **TOLERANCES)
    assert {search.sample for search in handle.engine.searches} == {0, 1}


def test_removal_restores_everything(pipe: Any, run: Any, plain: Any) -> None:
    before = state(pipe)
    with apply(pipe, **SPARSE, token_order="hilbert") as handle:
        run()
        assert state(pipe) != before
        with pytest.raises(RunError, match="already applied"):
            apply(pipe, **SPARSE)
    handle.remove()
    assert state(pipe) == before
    assert torch.equal(run(), plain["unguided"])


def test_what_fails_in_apply_leaves_nothing_attached(
    pipe: Any, run: Any, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token order that the family refuses, and the last part of all."""
    family, before = type(family_of(pipe)), state(pipe)

    def refuse(*_args: Any) -> None:
        raise RunError("not this one")

    for owner, name in ((family, "ends"), (handle_module, "make_cache")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refuse)
            with pytest.raises(RunError, match="not this one"):
                apply(pipe, **SPARSE, token_order="hilbert")
        assert state(pipe) == before
    assert torch.equal(run(), plain["unguided"])


def test_an_exception_inside_a_run_leaves_nothing_behind(pipe: Any, run: Any, plain: Any) -> None:
    last = family_of(pipe).blocks(transformers(pipe)[-1])[-1]

    def fail() -> None:
        """At the third pass of the last transformer."""
        passes = []

        def fail_later(*_args: Any) -> None:
            passes.append(1)
            if len(passes) == 3:
                raise ZeroDivisionError("in the middle")

        hook = last.register_forward_hook(fail_later)
        try:
            run(prompt="something else", num_inference_steps=8)
        finally:
            hook.remove()

    before = state(pipe)
    with apply(pipe, **SPARSE) as handle:
        whole = run()
        with pytest.raises(ZeroDivisionError):
            fail()
        assert torch.equal(run(), whole)
        assert {call.step for call in handle.engine.calls} == {0, 1, 2, 3}
    assert state(pipe) == before
    with pytest.raises(ZeroDivisionError), apply(pipe, **SPARSE):
        fail()
    assert state(pipe) == before
    assert torch.equal(run(), plain["unguided"])


def test_replacing_parts_after_apply_is_an_error(pipe: Any, run: Any) -> None:
    block = family_of(pipe).blocks(transformers(pipe)[0])[0]
    attention = getattr(block, family_of(pipe).attention)
    original, scheduler = attention.processor, pipe.scheduler
    with apply(pipe, **SPARSE):
        attention.set_processor(original)
        with pytest.raises(RunError, match="processors were replaced"):
            run()
    attention.set_processor(original)
    with apply(pipe, **SPARSE):
        pipe.scheduler = type(scheduler).from_config(scheduler.config)
        with pytest.raises(RunError, match="scheduler was replaced"):
            run()
    pipe.scheduler = scheduler


IDLE_CACHES = (
    {"cache": "adacache", "adacache_thresholds": (1e-9,), "adacache_reuses": (1, 0), "adacache_motion": False},
    {"cache": "first-block", "first_block_threshold": 0.0},
    {"cache": "taylorseer", "taylorseer_interval": 1},
    {"cache": "pab", "pab_range": 1},
)


@pytest.mark.parametrize("cache", IDLE_CACHES, ids=lambda cache: cache["cache"])
def test_a_step_cache_that_skips_nothing_changes_nothing(
    case: Case, pipe: Any, run: Any, plain: Any, cache: dict[str, Any]
) -> None:
    if cache["cache"] in case.refuses:
        with apply(pipe, **EXACT, **cache), pytest.raises(RunError, match=case.refuses[cache["cache"]]):
            run()
        assert torch.equal(run(), plain["unguided"])
        return
    with apply(pipe, **EXACT, **cache) as handle:
        torch.testing.assert_close(run(), plain["unguided"], **TOLERANCES)
    assert handle.cache is not None
    counts = handle.cache.report()
    assert counts["computed"] == counts["possible"] == 4 * case.layers // len(transformers(pipe))
    assert torch.equal(run(), plain["unguided"])


def test_caches_that_diffusers_lacks_are_known_before_a_model_is_loaded(case: Case, pipe: Any) -> None:
    lacking = {name for name, message in case.refuses.items() if message.startswith("no cache")}
    assert set(family_of(pipe).facts.no_caches) == lacking


BUSY_CACHES = (
    {"cache": "adacache", "adacache_reuses": (4,) * 6},
    {"cache": "first-block", "first_block_threshold": 1000.0},
    {"cache": "taylorseer", "taylorseer_interval": 2, "taylorseer_warmup": 1},
    {"cache": "pab", "pab_range": 2, "pab_timesteps": (-1, 1000)},
)


@pytest.mark.parametrize("cache", BUSY_CACHES, ids=lambda cache: cache["cache"])
def test_a_step_cache_skips_work_for_all_videos_alike(case: Case, pipe: Any, run: Any, cache: dict[str, Any]) -> None:
    """Two videos that are the same come out the same as alone."""
    if cache["cache"] in case.refuses:
        pytest.skip("refused: see above")
    with apply(pipe, **DENSELY, **cache) as handle:
        alone = run(num_inference_steps=8)
        assert handle.cache is not None
        assert 0 < handle.cache.report()["skipped"] < 1
        seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
        both = run(num_inference_steps=8, prompt=[PROMPT] * 2, generator=seeds, **case.two())
    torch.testing.assert_close(both, torch.cat([alone, alone]), **TOLERANCES)


def test_magcache_skips_steps_of_a_single_transformer(case: Case, pipe: Any, run: Any) -> None:
    settings = {"cache": "magcache", "magcache_ratios": (1.0,) * 8, "magcache_retention": 0.2}
    if "magcache" in case.refuses:
        with apply(pipe, **DENSELY, **settings), pytest.raises(RunError, match=case.refuses["magcache"]):
            run(num_inference_steps=8)
        return
    if len(transformers(pipe)) > 1:
        with pytest.raises(RunError, match="this model has two"):
            apply(pipe, **DENSELY, **settings)
        return
    with apply(pipe, **DENSELY, **settings) as handle:
        assert torch.isfinite(run(num_inference_steps=8)).all()
    assert handle.cache is not None
    assert 0 < handle.cache.report()["skipped"] < 1


def test_merged_tokens_make_a_video(pipe: Any, run: Any) -> None:
    with apply(pipe, "tomesd", tome_ratio=0.3) as handle:
        assert torch.isfinite(run()).all()
    assert handle.merging is not None
    assert 0.2 < (handle.merging.merged or 0) < 0.4


def test_compiled_blocks_make_the_same_video(case: Case, plain: Any) -> None:
    pipe = case.make()
    for one in transformers(pipe):
        compile_blocks(family_of(pipe).blocks(one), torch.device("cpu"), backend="eager")
    with apply(pipe, **EXACT):
        made = latents(pipe, **case.call("guided"))
    torch.testing.assert_close(made, plain["guided"], **TOLERANCES)


def test_linear_layers_in_fp8_come_and_go(
    case: Case, pipe: Any, run: Any, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp8_linear, "_is_elsewhere", lambda _: True)
    monkeypatch.setattr(fp8, "machine_memory", lambda: (None, None))  # room for all
    before = state(pipe)
    storages = {StorageWeakRef(value.untyped_storage()) for one in transformers(pipe) for value in one.parameters()}
    with Fp8Linears(family_of(pipe), pipe, emulate=True) as linears:
        assert linears.layers == linears.of == case.linears
        assert sum(storage.expired() for storage in storages) == linears.layers  # none stays on the device
        made = run()
    truth = plain["unguided"]
    assert 1e-5 < float((made - truth).norm() / truth.norm()) < 0.2
    assert state(pipe) == before
    assert torch.equal(run(), truth)


def test_weights_that_fp8_takes_are_left_in_main_memory(case: Case) -> None:
    """The rest tells where the pipeline is. The meta device stands for a GPU."""
    pipe, meta = case.make(), torch.device("meta")
    with left_behind(family_of(pipe), pipe):
        pipe.to(meta)
    assert {pipe._execution_device, *(one.device for one in transformers(pipe))} == {meta}
    left = [name for one in transformers(pipe) for name, value in one.named_parameters() if not value.is_meta]
    assert len(left) == case.linears


def test_weights_in_eight_bits_make_the_video_of_diffusers(case: Case, plain: Any) -> None:
    pipe = case.make()
    quantise_weights(family_of(pipe), pipe, "fp8", torch.device("cpu"))
    quantised = latents(pipe, **case.call("unguided"))
    with apply(pipe, **EXACT):
        torch.testing.assert_close(latents(pipe, **case.call("unguided")), quantised, **TOLERANCES)
    truth = plain["unguided"]
    assert 1e-5 < float((quantised - truth).norm() / truth.norm()) < 0.3


def test_a_lora_is_fused_by_its_scale(case: Case, folder: Path, tmp_path: Path) -> None:
    """Into the first transformer, of the first block and of the last."""
    needs_peft()
    settings = {"model": str(folder), "device": "cpu", "dtype": "float32", **case.settings}
    plain = load_pipeline(resolve(settings).config.model)
    first, *others = transformers(plain)
    blocks = [family_of(plain).blocks(first)[place] for place in (0, -1)]
    wanted = {id(getattr(block, family_of(plain).attention).to_q) for block in blocks}
    names = tuple(name for name, module in first.named_modules() if id(module) in wanted)
    added = write_lora(tmp_path / "style.safetensors", first, names)
    settings["lora_high" if others else "lora"] = [f"{tmp_path / 'style.safetensors'}:0.5"]
    loaded = load_pipeline(resolve(settings).config.model)
    check_added(transformers(loaded)[0], weights(first), {key: 0.5 * value for key, value in added.items()})
    for before, after in zip(others, transformers(loaded)[1:], strict=True):
        check_added(after, weights(before), {})
    truth = latents(loaded, **case.call("unguided"))
    with apply(loaded, **EXACT):
        torch.testing.assert_close(latents(loaded, **case.call("unguided")), truth, **TOLERANCES)


def test_a_saved_pipeline_makes_a_video_and_a_report(case: Case, folder: Path, tmp_path: Path) -> None:
    (report,) = make_reports(resolve(flags(case, folder, tmp_path)), Listener())
    assert (tmp_path / report["video"]["file"]).is_file()
    assert report["model"]["layers"] == case.layers
    assert {search["layer"] for search in report["searches"]} == set(range(case.layers))
    assert {search["branch"] for search in report["searches"]} == {"cond", "uncond"}


def test_random_weights_make_latents_of_the_same_size(case: Case, plain: Any, folder: Path, tmp_path: Path) -> None:
    """Without a VAE and text encoders."""
    resolved = resolve(flags(case, folder, tmp_path, random_weights=True))
    built = load_pipeline(resolved.config.model, decode=False)
    assert (built.vae is None) == (not case.pictures and not family_of(built).facts.asks_vae)
    assert latents(built, **case.call("guided"), num_inference_steps=2).shape == plain["guided"].shape
    (report,) = make_reports(resolved, Listener())
    assert report["model"]["layers"] == case.layers


def test_sizes_that_the_model_does_not_make_are_refused(case: Case, pipe: Any) -> None:
    right = {**case.size, "frames": 9, **case.guided}
    check_sampling(pipe, resolve(right).config.sampling)
    for wrong, message in (({"height": case.size["height"] + 8}, "height must be"), ({"frames": 8}, r"k \+ 1 frames")):
        with pytest.raises(ConfigError, match=message):
            check_sampling(pipe, resolve(right | wrong).config.sampling)


def test_masks_of_a_file_are_what_was_searched(case: Case, folder: Path, tmp_path: Path) -> None:
    settings = flags(case, folder, tmp_path / "out")
    search_masks(resolve(settings), SearchOptions(tmp_path / "masks.safetensors"), [PROMPT], Listener())
    (online,) = make_reports(resolve(settings), Listener())
    from_file = settings | {"masks": str(tmp_path / "masks.safetensors"), "out": str(tmp_path / "stored")}
    (stored,) = make_reports(resolve(from_file), Listener())
    wanted, found = (
        {(search["layer"], search["branch"], search["step"]): search["density"] for search in report["searches"]}
        for report in (online, stored)
    )
    assert found.keys() == wanted.keys()
    assert all(found[place] == pytest.approx(wanted[place]) for place in wanted)
