"""Masks from a file: when they are loaded, when they are measured, and what they are refused for."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from adaspa_cli.attention import TokenLayout
from adaspa_cli.config import MethodConfig, ModelConfig, SamplingConfig, resolve
from adaspa_cli.config.architecture import architecture_of
from adaspa_cli.config.load import method_config
from adaspa_cli.errors import MaskFileError
from adaspa_cli.jobs.early import check_masks
from adaspa_cli.maskfiles import MaskFile, MethodFacts, ModelFacts
from adaspa_cli.maskfiles.check import (
    check_architecture,
    check_call,
    check_model,
    check_name,
    check_settings,
    open_masks,
)
from adaspa_cli.maskfiles.header import Described
from adaspa_cli.maskfiles.stored import StoredMasks, stored_policy, stored_schedule
from adaspa_cli.masks import Call, CallPlan
from adaspa_cli.masks.plan import CHECK, DENSE, LOAD, SEARCH, SPARSE
from adaspa_cli.masks.recall import mask_recall
from adaspa_cli.masks.selection import select
from adaspa_cli.masks.text import video_part
from tests.mask_files import BLOCK, HEADS, LAYOUT, block_sums, description, small_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> MaskFile:
    return small_file(tmp_path_factory.mktemp("masks") / "masks.safetensors")


def method(**settings: Any) -> MethodConfig:
    usual: dict[str, Any] = {"sparsity": 0.75, "block_size": BLOCK, "search_steps": (2, 8), "search_steps_for": 14}
    return method_config(settings.pop("method", "adaspa"), usual | settings)


def policy(file: MaskFile, steps: int = 14, **settings: Any) -> StoredMasks:
    return stored_policy(method(masks=str(file.path), **settings), file, steps)


def call(step: int, layer: int = 0, layout: TokenLayout = LAYOUT) -> Call:
    return Call(layer, step, "cond", 0, layout)


def actions(of: StoredMasks, steps: int = 14, sums: torch.Tensor | None = None) -> list[CallPlan]:
    """What the calls of one layer do; a mask that is measured or searched is so in ``sums``."""
    last, done = None, []
    for step in range(steps):
        done.append(of.decide(call(step), last))
        if done[-1] in (CHECK, SEARCH):
            assert sums is not None
            of.search(call(step), sums)
        if done[-1] != DENSE and done[-1] != SPARSE:
            last = step
    return done


def test_masks_are_loaded_at_the_steps_that_they_were_searched_at(masks: MaskFile) -> None:
    expected = [DENSE] * 2 + [LOAD] + [SPARSE] * 5
    assert actions(policy(masks)) == expected + [LOAD] + [SPARSE] * 5


def test_without_warm_up_the_first_masks_hold_from_step_zero(masks: MaskFile) -> None:
    found = actions(policy(masks, masks_from_start=True))
    assert [step for step, action in enumerate(found) if action == LOAD] == [0, 8]
    assert DENSE not in found


def test_a_skipped_call_delays_the_mask(masks: MaskFile) -> None:
    of = policy(masks)
    assert of.decide(call(5), None) == LOAD
    assert of.decide(call(9), 5) == LOAD
    assert of.decide(call(10), 9) == SPARSE


@pytest.mark.parametrize(
    ("steps", "from_start", "expected"),
    [
        (50, False, ((10, 10), (30, 30))),
        (50, True, ((0, 10), (30, 30))),
        (100, False, ((20, 10), (60, 30))),
        (25, False, ((5, 10), (15, 30))),
        (2, False, ((0, 10), (1, 30))),
        (1, True, ((0, 30),)),
    ],
)
def test_other_numbers_of_steps_scale_the_schedule(
    masks: MaskFile, steps: int, from_start: bool, expected: Any
) -> None:
    file = dataclasses.replace(masks.description, search_steps=(10, 30), steps=50)
    assert stored_schedule(file, steps, from_start=from_start) == expected


@pytest.mark.parametrize(
    ("steps", "stage", "from_start", "expected"),
    [
        (40, 26, False, ((8, 8), (17, 17), (26, 26), (33, 33))),
        (40, 26, True, ((0, 8), (17, 17), (26, 26), (33, 33))),
        (20, 13, False, ((4, 8), (8, 17), (13, 26), (16, 33))),
        (40, 15, False, ((4, 8), (9, 17), (15, 26), (27, 33))),
        (4, 2, True, ((0, 8), (1, 17), (2, 26), (3, 33))),
        (4, 4, True, ((0, 8), (2, 17))),
        (4, 0, True, ((0, 26), (2, 33))),
    ],
)
def test_masks_keep_their_place_in_their_transformers_stage(
    masks: MaskFile, steps: int, stage: int, from_start: bool, expected: Any
) -> None:
    file = dataclasses.replace(masks.description, search_steps=(8, 17, 26, 33), steps=40, layers=4, stages=((2, 26),))
    assert stored_schedule(file, steps, (stage,), from_start=from_start) == expected


@pytest.mark.parametrize(
    ("searched", "steps", "stages", "run", "message"),
    [
        ((1,), 2, ((2, 2),), (26,), "no masks of transformer 2, which makes steps 26 to 39"),
        ((8,), 40, ((2, 26),), (26,), "no masks of transformer 2, which makes steps 26 to 39"),
        ((8,), 40, (), (26,), "number of transformers is 1 in the file and 2 in the run"),
        ((26,), 40, ((2, 26),), (26,), None),  # all steps of the first are warm-up
        ((1,), 2, ((2, 2),), (40,), None),
    ],
)
def test_a_transformer_without_masks_is_refused(
    masks: MaskFile,
    searched: Any,
    steps: int,
    stages: Any,
    run: tuple[int, ...],
    message: str | None,
) -> None:
    facts = dataclasses.replace(masks.description, search_steps=searched, steps=steps, layers=4, stages=stages)
    file = dataclasses.replace(masks, description=facts)
    with nullcontext() if message is None else pytest.raises(MaskFileError, match=message):
        stored_policy(method(masks=str(masks.path)), file, 40, run)


def test_the_mask_of_each_place_is_loaded(masks: MaskFile) -> None:
    of = policy(masks)
    for layer in range(2):
        for step, stored in ((2, 2), (7, 2), (8, 8), (13, 8)):
            found = of.load(call(step, layer), CPU)
            expected = select(block_sums((layer, "cond", stored)), LAYOUT, (BLOCK, BLOCK), 0.75, head_adaptive=True)
            assert torch.equal(found.mask.to_bool(), expected.mask.to_bool())
            torch.testing.assert_close(found.recall, expected.recall)
            assert found.loaded


@pytest.mark.parametrize(("sparsity", "head_adaptive"), [(0.6, True), (0.9, True), (0.4, False)])
def test_a_ranking_gives_the_mask_of_the_run_s_sparsity(sparsity: float, head_adaptive: bool, tmp_path: Path) -> None:
    file = small_file(tmp_path / "masks.safetensors", ranked=8)
    settings = {"sparsity": sparsity, "head_adaptive": head_adaptive}
    check_settings(file, method(**settings))
    found = policy(file, **settings).load(call(2), CPU)
    sums = block_sums((0, "cond", 2))
    expected = select(sums, LAYOUT, (BLOCK, BLOCK), sparsity, head_adaptive=head_adaptive)
    assert torch.equal(found.mask.to_bool(), expected.mask.to_bool())
    torch.testing.assert_close(found.recall, expected.recall)


def other_text() -> tuple[TokenLayout, torch.Tensor]:
    """The run's own layout, with more text than the file's, and block sums that its masks were not searched in."""
    layout = dataclasses.replace(LAYOUT, text_tokens=20)
    return layout, block_sums((0, "cond", 2), layout, seed=7)


def test_recall_is_measured_on_the_run_s_own_attention_with_its_own_text(masks: MaskFile) -> None:
    layout, sums = other_text()
    of = policy(masks, masks_min_recall=0.01)
    found = of.search(call(2, layout=layout), sums)
    assert found.loaded
    (check,) = of.checks.values()
    assert (check.step, check.below, check.searched) == (2, False, False)
    torch.testing.assert_close(check.stored, torch.tensor(masks.entry((0, "cond", 2)).recall))
    kept = torch.ones(HEADS, 15, 15, dtype=torch.bool)
    video_part(kept, layout, (BLOCK, BLOCK)).copy_(masks.video_mask((0, "cond", 2)))
    torch.testing.assert_close(check.measured, (kept * sums).sum((-1, -2)) / sums.sum((-1, -2)))
    torch.testing.assert_close(check.measured, mask_recall(found.mask.to_bool(), sums))


def test_a_mask_that_fits_is_used_after_the_check(masks: MaskFile) -> None:
    done = actions(policy(masks, masks_min_recall=0.01), sums=block_sums((0, "cond", 2)))
    assert done[:4] == [DENSE, DENSE, CHECK, SPARSE]
    assert done[8] == LOAD


def test_a_mask_that_does_not_fit_is_searched_anew_and_so_are_the_later_ones(
    masks: MaskFile, caplog: pytest.LogCaptureFixture
) -> None:
    sums = block_sums((0, "cond", 2), seed=7)
    of = policy(masks, masks_min_recall=0.999)
    done = actions(of, sums=sums)
    assert [action for action in done if action not in (DENSE, SPARSE)] == [
        CHECK,
        SEARCH,
    ]
    (check,) = of.checks.values()
    assert (check.below, check.searched) == (True, True)
    found, searched = of.search(call(8), sums), of.method.search(call(8), sums)
    assert not found.loaded
    assert torch.equal(found.mask.to_bool(), searched.mask.to_bool())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "less than 0.999" in caplog.text
    assert of.decide(call(8, layer=1), 2) == LOAD, "other layers keep their masks"


def test_a_warning_alone_keeps_the_mask(masks: MaskFile, caplog: pytest.LogCaptureFixture) -> None:
    of = policy(masks, masks_min_recall=0.999, masks_fallback="warn")
    done = actions(of, sums=block_sums((0, "cond", 2), seed=7))
    assert done[8] == LOAD
    (check,) = of.checks.values()
    assert (check.below, check.searched) == (True, False)
    assert len(caplog.records) == 1


def test_a_recall_that_is_no_number_is_below(masks: MaskFile) -> None:
    of = policy(masks, masks_min_recall=0.01, masks_fallback="warn")
    of.search(call(2), torch.full((HEADS, 13, 13), torch.nan))
    assert next(iter(of.checks.values())).below


def test_each_run_has_checks_of_its_own(masks: MaskFile) -> None:
    first = policy(masks, masks_min_recall=0.01)
    first.search(call(2), block_sums((0, "cond", 2)))
    assert policy(masks, masks_min_recall=0.01).checks == {}


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"block_size": 64}, "block_size is 8 in the file and 64 in the run"),
        ({"sparsity": 0.8}, "sparsity is 0.75 in the file and 0.8 in the run"),
        ({"head_adaptive": False}, "head_adaptive is True in the file and False in the run"),
        (
            {"head_adaptive": True, "selection": "output-error"},
            "selection is mass in the file and output-error in the run",
        ),
        ({"algorithm": "frame-region"}, "algorithm is adaspa in the file and frame-region in the run"),
        ({"search_steps": (3,), "search_steps_for": None}, r"search_steps is \[2, 8\] in the file and \[3\]"),
    ],
)
def test_masks_of_another_method_are_refused(masks: MaskFile, settings: dict[str, Any], field: str) -> None:
    with pytest.raises(MaskFileError, match=field):
        open_masks(method(masks=str(masks.path), **settings))


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"method": "frame-region"}, "use --method adaspa --sparsity 0.75 --block-size 8"),
        ({"head_adaptive": False}, "use --budget head-adaptive"),
        ({"budget": "layer", "selection": "output-error"}, "use --budget head-adaptive --selection mass"),
        ({"sparsity": 0.7}, "use --sparsity 0.75; a file made with --keep-ranking serves other sparsities"),
        ({"sparsity": "0:0.5,50%:0.75", "budget": "row"}, "use --sparsity 0.75 --budget head-adaptive"),
        ({"method": "adaspa-plus", "sparsity": 0.9}, "use --method adaspa --sparsity 0.75 --block-size 8"),
    ],
)
def test_the_flag_that_fits_the_masks_is_named(masks: MaskFile, settings: dict[str, Any], hint: str) -> None:
    with pytest.raises(MaskFileError) as caught:
        open_masks(method(masks=str(masks.path), **settings))
    assert caught.value.hint == hint


@pytest.mark.parametrize("settings", [{"sparsity": 0.9}, {"method": "frame-region"}])
def test_the_method_of_the_file_is_named(tmp_path: Path, settings: dict[str, Any]) -> None:
    """One hint has all that it takes."""
    facts, layout = MethodFacts("adaspa", 0.75, False, True, "output-error", True), LAYOUT
    file = small_file(tmp_path / "plus.safetensors", method=facts, layout=dataclasses.replace(layout, order="hilbert"))
    with pytest.raises(MaskFileError) as caught:
        open_masks(method(masks=str(file.path), **settings))
    assert caught.value.hint == "use --method adaspa-plus --sparsity 0.75 --block-size 8"
    fitting = {"method": "adaspa-plus", "sparsity": 0.75, "block_size": BLOCK, "masks": str(file.path)}
    assert open_masks(resolve(fitting).config.method) is not None


def test_a_ramp_and_masks_of_one_sparsity(tmp_path: Path) -> None:
    facts = MethodFacts("adaspa", 0.75, False, True, "output-error", True)
    layout = dataclasses.replace(LAYOUT, order="hilbert")
    for ranked in (None, 12):
        file = small_file(tmp_path / f"{ranked}.safetensors", method=facts, layout=layout, ranked=ranked)
        with pytest.raises(MaskFileError, match=r"sparsity is 0.75 in the file and 0:0.4,.*,50%:0.95 in the run") as no:
            open_masks(resolve({"method": "adaspa-plus", "block_size": BLOCK, "masks": str(file.path)}).config.method)
        assert no.value.hint == "use --sparsity 0.75"


@pytest.mark.parametrize(
    ("settings", "field"), [({"selection": "output-error"}, "selection is mass"), ({"budget": "layer"}, "layer_budget")]
)
def test_a_ranking_serves_no_other_choice_of_blocks(tmp_path: Path, settings: dict[str, Any], field: str) -> None:
    file = small_file(tmp_path / "masks.safetensors", ranked=12)
    with pytest.raises(MaskFileError, match=field):
        open_masks(method(masks=str(file.path), **settings))


def test_the_model_of_the_masks_is_named(masks: MaskFile) -> None:
    with pytest.raises(MaskFileError, match="layers is 2 in the file and 8 in the run") as caught:
        check_architecture(masks, architecture_of(ModelConfig()), SamplingConfig())
    assert caught.value.hint == "the masks were searched with --model tiny"


def test_masks_of_another_budget_are_refused(tmp_path: Path) -> None:
    facts = MethodFacts("adaspa", 0.75, False, True, "output-error", True)
    file = str(small_file(tmp_path / "layer.safetensors", method=facts).path)
    with pytest.raises(MaskFileError, match="layer_budget is True in the file and False in the run"):
        open_masks(method(masks=file, selection="output-error", budget="row"))
    assert open_masks(method(masks=file, selection="output-error", budget="layer")) is not None


def test_masks_of_another_token_order_are_refused_before_the_model_is_loaded(tmp_path: Path, masks: MaskFile) -> None:
    with pytest.raises(MaskFileError, match="token_order is raster in the file and hilbert in the run") as caught:
        open_masks(method(masks=str(masks.path), token_order="hilbert"))
    assert "--token-order raster" in str(caught.value.hint)
    file = small_file(tmp_path / "hilbert.safetensors", layout=dataclasses.replace(LAYOUT, order="hilbert"))
    with pytest.raises(MaskFileError, match="token_order is hilbert in the file and raster in the run"):
        open_masks(method(masks=str(file.path)))
    assert open_masks(method(masks=str(file.path), token_order="hilbert")) is not None


def test_a_ranking_refuses_a_sparsity_that_it_does_not_reach(tmp_path: Path) -> None:
    file = small_file(tmp_path / "masks.safetensors", ranked=5)
    check_settings(file, method(sparsity=0.9))
    with pytest.raises(MaskFileError, match=r"sparsity 0.5 needs the 9 heaviest blocks of a row, and the file ranks 5"):
        check_settings(file, method(sparsity=0.5))


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"frames": 4}, "frames is 3 in the file and 4 in the run"),
        ({"height": 5}, "height is 4"),
        ({"width": 7}, "width is 8"),
        ({"text_position": "first"}, "text_position is last"),
        ({"order": "hilbert"}, "token_order is raster"),
    ],
)
def test_masks_for_other_tokens_are_refused(masks: MaskFile, changed: dict[str, Any], field: str) -> None:
    check_call(masks, "cond", LAYOUT)
    with pytest.raises(MaskFileError, match=field):
        policy(masks).decide(call(0, layout=dataclasses.replace(LAYOUT, **changed)), None)


def test_a_guidance_branch_without_masks_is_refused(tmp_path: Path) -> None:
    file = small_file(tmp_path / "masks.safetensors", branches=("cond",))
    with pytest.raises(MaskFileError, match="no masks of the guidance branch 'uncond'"):
        check_call(file, "uncond", LAYOUT)


def test_text_length_matters_only_where_it_moves_the_video(tmp_path: Path, masks: MaskFile) -> None:
    for text in (1, 4, 200):
        check_call(masks, "cond", dataclasses.replace(LAYOUT, text_tokens=text))
    first = dataclasses.replace(LAYOUT, text_position="first")
    file = small_file(tmp_path / "masks.safetensors", layout=first)
    with pytest.raises(MaskFileError, match="text_tokens is 5 in the file and 6 in the run"):
        check_call(file, "cond", dataclasses.replace(first, text_tokens=6))
    ragged = TokenLayout(3, 3, 7, 0, "last")  # 63 tokens: the last block is of video alone
    file = small_file(tmp_path / "ragged.safetensors", layout=ragged)
    with pytest.raises(MaskFileError, match="text_tokens is 0 in the file and 4 in the run"):
        check_call(file, "cond", dataclasses.replace(ragged, text_tokens=4))


class Transformer:
    config = {"num_layers": 2, "_name_or_path": "somewhere"}  # noqa: RUF012  read only


class HunyuanVideoPipeline:
    transformer = Transformer()


def test_masks_of_another_model_are_refused(tmp_path: Path) -> None:
    from adaspa_cli.maskfiles.check import config_hash, model_facts

    pipe = HunyuanVideoPipeline()
    file = small_file(
        tmp_path / "masks.safetensors",
        model=model_facts("HunyuanVideoPipeline", [pipe.transformer], ModelConfig("hunyuan")),
    )
    check_model(file, "HunyuanVideoPipeline", [pipe.transformer])
    for name in ("hunyuan", "/a/folder", "org/name"):
        check_name(file, ModelConfig(name))
    with pytest.raises(MaskFileError, match="model is hunyuan in the file and fasthunyuan in the run"):
        check_name(file, ModelConfig("fasthunyuan"))
    with pytest.raises(MaskFileError, match="random_weights is False in the file and True in the run"):
        check_name(file, ModelConfig("hunyuan", random_weights=True))
    for facts, field in (
        (
            ModelFacts("hunyuan", False, "CogVideoXPipeline", config_hash([pipe.transformer])),
            "pipeline is CogVideoXPipeline",
        ),
        (ModelFacts("hunyuan", False, "HunyuanVideoPipeline", "f" * 64), "transformer config is ffffffffffff"),
    ):
        other = small_file(tmp_path / f"{facts.pipeline}.safetensors", model=facts)
        with pytest.raises(MaskFileError, match=field):
            check_model(other, "HunyuanVideoPipeline", [pipe.transformer])


def test_the_hash_of_a_configuration_leaves_out_where_it_lay() -> None:
    from adaspa_cli.maskfiles.check import config_hash

    class Other:
        config = {"_diffusers_version": "0.1", "num_layers": 2}  # noqa: RUF012

    class Deeper:
        config = {"num_layers": 3}  # noqa: RUF012

    assert config_hash([Transformer()]) == config_hash([Other()])
    assert config_hash([Transformer()]) != config_hash([Deeper()])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layers": 9}, "layers is 9 in the file and 8 in the run"),
        ({"heads": 3}, "heads is 3 in the file and 4 in the run"),
        ({"layout": TokenLayout(9, 32, 31, 5, "last")}, "width is 31 in the file and 32 in the run"),
        ({"model": ModelFacts("tiny", False, "CogVideoXPipeline", "")}, "pipeline is CogVideoXPipeline in the file"),
    ],
)
def test_masks_of_another_architecture_or_size_are_refused_before_it_is_loaded(
    changed: dict[str, Any], message: str
) -> None:
    model = architecture_of(ModelConfig())
    fits = {"layers": 8, "heads": 4, "layout": TokenLayout(9, 32, 32, 5, "last")}
    sampling = SamplingConfig(height=256, width=256, frames=33)
    check_architecture(Described(Path("masks"), description(**fits), ""), model, sampling)
    with pytest.raises(MaskFileError, match=message):
        check_architecture(Described(Path("masks"), description(**(fits | changed)), ""), model, sampling)


def test_masks_of_one_branch_are_refused_before_a_model_with_guidance_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layout = TokenLayout(21, 30, 52, 0, "last")
    of_model = {"model": ModelFacts("wan2.1-1.3b", False, "WanPipeline", ""), "layers": 30, "heads": 12}
    facts = description(branches=("cond",), layout=layout, **of_model)
    monkeypatch.setattr(Described, "open", lambda path: Described(Path(path), facts, ""))
    flags = {"model": "wan2.1-1.3b", "masks": "masks", "block_size": BLOCK, "sparsity": 0.75}
    with pytest.raises(MaskFileError, match="no masks of the guidance branch 'uncond'"):
        check_masks(resolve(flags).config)
    check_masks(resolve(flags | {"guidance_scale": 1.0}).config)
    check_masks(resolve(flags | {"share_cfg_masks": True}).config)
