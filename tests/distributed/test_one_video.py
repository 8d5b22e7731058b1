"""Several processes make the video, and find the masks, that one process does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adaspa_cli.config import resolve
from adaspa_cli.config.load import method_config
from adaspa_cli.config.search_masks import SearchOptions
from adaspa_cli.distributed import deals
from adaspa_cli.distributed.heads import deal_by_cost
from adaspa_cli.distributed.teams import Teams
from adaspa_cli.jobs.search_masks import search_masks
from adaspa_cli.sampling.handle import Handle
from tests.distributed.ranks import together
from tests.models.every_family import picture
from tests.pipelines import (
    PROMPT,
    Listener,
    cogvideox,
    hunyuan_video,
    latents,
    masks_at_end,
    save,
    small_run,
    wan,
    wan_image,
)

Make = Callable[[], Any]
ADASPA = {"sparsity": 0.5, "block_size": 16, "search_steps": (1, 3)}
SMALL = {"height": 48, "width": 64}
TRUE_CFG = {"true_cfg_scale": 3.0, "negative_prompt": "blurry, a circle"}

CASES: dict[str, tuple[int, Make, str, dict[str, Any], dict[str, Any]]] = {
    "dense": (2, hunyuan_video, "full", {}, {}),
    "three heads on two": (2, lambda: hunyuan_video(num_attention_heads=3), "adaspa", ADASPA, {}),
    "uneven tokens, four heads on three": (
        3,
        lambda: hunyuan_video(num_attention_heads=4),
        "adaspa",
        ADASPA,
        {"num_frames": 5, "width": 80, "num_inference_steps": 5},
    ),
    "true guidance, one's masks": (
        2,
        lambda: hunyuan_video(num_attention_heads=3),
        "adaspa",
        ADASPA | {"share_cfg_masks": True},
        TRUE_CFG | {"num_inference_steps": 5},
    ),
    "text first": (2, lambda: cogvideox(num_attention_heads=3), "adaspa", ADASPA, {}),
    "text first, odd tokens": (
        2,
        lambda: cogvideox("1.0", use_rotary_positional_embeddings=False),
        "adaspa",
        ADASPA,
        {"height": 80, "width": 112},
    ),
    "plus": (
        2,
        lambda: hunyuan_video(num_attention_heads=3),
        "adaspa-plus",
        {"sparsity": 0.6, "block_size": 16, "search_steps": (0, 2), "probes": 16},
        {},
    ),
    "plus, two probes": (
        2,
        lambda: hunyuan_video(num_attention_heads=3),
        "adaspa-plus",
        {"sparsity": 0.6, "block_size": 16, "search_steps": (0, 2), "probes": 2},
        {},
    ),
    "an error that is limited": (
        2,
        lambda: hunyuan_video(num_attention_heads=3),
        "adaspa-plus",
        {"sparsity": 0.6, "block_size": 16, "search_steps": (0,), "probes": 16, "max_error": 0.01},
        {"num_inference_steps": 5},
    ),
    "minference": (2, hunyuan_video, "minference", {"sparsity": 0.5, "block_size": 16}, {}),
    "sparse-videogen": (2, hunyuan_video, "sparse-videogen", {"sparsity": 0.5, "block_size": 16}, {}),
    "frame-region": (2, lambda: cogvideox(num_attention_heads=3), "frame-region", ADASPA, {}),
    "two transformers": (
        2,
        lambda: wan("2.2", num_attention_heads=3),
        "adaspa",
        {"sparsity": 0.6, "block_size": 8, "search_steps": (0, 3), "token_order": "hilbert"},
        {"guidance_scale": 4.0, "num_inference_steps": 6},
    ),
    "a timestep for each token": (
        2,
        lambda: wan_image("2.2-5b"),
        "adaspa-plus",
        {"sparsity": 0.6, "block_size": 8, "search_steps": (0, 2), "probes": 16},
        {"guidance_scale": 1.0, "image": picture(), "height": 160, "width": 192},
    ),
}


@pytest.mark.parametrize(("size", "make", "method", "settings", "call"), CASES.values(), ids=CASES.keys())
def test_it_is_that_of_one_process(
    size: int, make: Make, method: str, settings: dict[str, Any], call: dict[str, Any], tmp_path: Path
) -> None:
    expected, masks, _ = _run(Teams(), make, method, settings, call)

    def case(teams: Teams) -> None:
        made, own, handle = _run(teams, make, method, settings, call)
        # Bit by bit but for the repair, whose products depend on how many heads there are.
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-6 if method == "adaspa-plus" else 0)
        assert own.keys() == masks.keys()
        for key, mask in masks.items():
            heads = handle.engine._deals.of((key[0], "cond", key[2]) if settings.get("share_cfg_masks") else key)
            assert torch.equal(own[key].mask.to_bool(), heads.mine(mask.mask.to_bool())), key

    together(size, tmp_path, case)


def _run(
    teams: Teams, make: Make, method: str, settings: dict[str, Any], call: dict[str, Any]
) -> tuple[Tensor, dict[Any, Any], Handle]:
    pipe = make()
    with Handle(pipe, method_config(method, settings | {"attention_backend": "cpu"}), teams=teams) as handle:
        masks = masks_at_end(handle)
        return latents(pipe, **(SMALL | call)), masks, handle


@pytest.fixture(autouse=True)
def _any_gain_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that heads move in small runs, too, where they cost nearly the same."""
    monkeypatch.setattr(deals, "LEAST_GAIN", 0.0)


def test_heads_stay_where_moving_them_gains_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deals, "LEAST_GAIN", 0.05)

    def case(teams: Teams) -> None:
        dealt = deals.Deals(teams.tokens)
        key = (0, "cond", 0)
        assert dealt.turn(key, 4) is None
        own = dealt.of(key).mine(torch.tensor([2.0, 2.0, 2.0, 1.7]))  # dealt by cost, the slowest has 3.9 of 4.0
        dealt.note(key, own)
        assert dealt.turn(key, 4) is None
        dealt.note(key, dealt.of(key).mine(torch.tensor([3.0, 2.0, 1.0, 1.0])))  # 4.0 of 5.0
        moved = dealt.turn(key, 4)
        assert moved is not None
        assert [heads.deal for heads in moved] == [((0, 1), (2, 3)), ((0, 3), (1, 2))]

    together(2, tmp_path, case)


def test_heads_move_to_where_they_cost_the_same(tmp_path: Path) -> None:
    """At a search step, and their masks with them: at its next call a layer has them dealt anew."""

    def case(teams: Teams) -> None:
        pipe = hunyuan_video(num_attention_heads=4)
        with Handle(pipe, method_config("adaspa", ADASPA | {"attention_backend": "cpu"}), teams=teams) as handle:
            masks = masks_at_end(handle)
            latents(pipe, **SMALL, num_inference_steps=5)  # one after the last search, at which heads move
            dealt = {key: handle.engine._deals.of(key) for key in masks}
        assert any(heads.deal != ((0, 1), (2, 3)) for heads in dealt.values())
        for key, found in masks.items():
            costs = dealt[key].gather(found.mask.density())
            own, best = (
                max(float(costs[list(hand)].sum()) for hand in deal)
                for deal in (dealt[key].deal, deal_by_cost(costs.tolist(), 2))
            )
            assert own <= best / (1 - deals.LEAST_GAIN) + 1e-6

    together(2, tmp_path, case)


def test_masks_are_kept_as_bits_where_that_is_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaspa_cli.attention import mask_size

    monkeypatch.setattr(mask_size, "LEAST_PACKED", 0)
    monkeypatch.setattr(mask_size, "PACKED_TIMES", 0)
    test_it_is_that_of_one_process(*CASES["uneven tokens, four heads on three"], tmp_path)


GUIDED: dict[str, tuple[int, Make, dict[str, Any], float]] = {
    "a batch": (2, cogvideox, {}, 1e-4),  # products of one row, not of two
    "two passes": (2, hunyuan_video, TRUE_CFG, 0),
    "a batch, tokens split too": (4, cogvideox, {}, 1e-4),
    "two passes, tokens split too": (4, hunyuan_video, TRUE_CFG, 0),
}


@pytest.mark.parametrize(("size", "make", "call", "tolerance"), GUIDED.values(), ids=GUIDED.keys())
def test_guidance_branches_run_at_the_same_time(
    size: int, make: Make, call: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    expected, masks, alone = _run(Teams(), make, "adaspa", ADASPA, call)

    def case(teams: Teams) -> None:
        made, own, handle = _run(teams, make, "adaspa", ADASPA, call)
        torch.testing.assert_close(made, expected, rtol=0, atol=tolerance)
        branch = ("cond", "uncond")[teams.branches.rank]
        assert own.keys() == {key for key in masks if key[1] == branch}
        assert len(handle.engine.calls) == len(alone.engine.calls) // 2

    together(size, tmp_path, case, branches=2)


CACHES: dict[str, tuple[str, dict[str, Any]]] = {
    "adacache": ("adacache", {"adacache_reuses": (2, 1, 1, 0), "adacache_thresholds": (0.1, 0.3, 0.5)}),
    "first-block": ("full", {"cache": "first-block", "first_block_threshold": 0.2}),
    "magcache-calibration": ("magcache-calibration", {}),
    "pab": ("pab", {}),
}


@pytest.mark.parametrize(("method", "settings"), CACHES.values(), ids=CACHES.keys())
def test_caches_decide_alike(method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    call = {"num_inference_steps": 6}
    expected, _, alone = _run(Teams(), hunyuan_video, method, settings, call)
    assert alone.cache is not None
    report = alone.cache.report()

    def case(teams: Teams) -> None:
        made, _, handle = _run(teams, hunyuan_video, method, settings, call)
        assert handle.cache is not None
        torch.testing.assert_close(made, expected, rtol=0, atol=0)
        assert handle.cache.report() == {
            key: pytest.approx(value, rel=1e-4) if key in ("ratios", "distance", "motion") else value
            for key, value in report.items()
        }

    together(2, tmp_path, case)


def test_masks_of_a_file(tmp_path: Path) -> None:
    """Each process takes those of its heads, and measures its share of the recall."""
    make, call = lambda: hunyuan_video(num_attention_heads=3), {"num_inference_steps": 6}
    settings = ADASPA | {"masks": str(_searched(tmp_path)), "masks_min_recall": 0.5}
    expected, masks, alone = _run(Teams(), make, "adaspa", settings, call)

    def case(teams: Teams) -> None:
        made, own, handle = _run(teams, make, "adaspa", settings, call)
        torch.testing.assert_close(made, expected, rtol=0, atol=0)
        for key, mask in masks.items():
            heads = handle.engine._deals.of(key)
            assert torch.equal(own[key].mask.to_bool(), heads.mine(mask.mask.to_bool()))
        checks, theirs = handle.engine.policy.checks, alone.engine.policy.checks  # type: ignore[union-attr]
        assert checks.keys() == theirs.keys()
        for key, check in theirs.items():
            torch.testing.assert_close(checks[key].measured, check.measured)

    together(2, tmp_path, case)


def _searched(folder: Path) -> Path:
    """A mask file of a small HunyuanVideo with three heads."""
    pipeline = save(hunyuan_video(num_attention_heads=3), folder / "pipeline")
    run = small_run(pipeline, folder / "out", steps=6, search_steps=(1, 3), **SMALL, frames=9)
    out = folder / "masks.safetensors"
    search_masks(resolve(run), SearchOptions(out), [PROMPT], Listener())
    return out
