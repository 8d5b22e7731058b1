"""Several processes make the video, and find the masks, that one process does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adaspa_cli.config.load import method_config
from adaspa_cli.distributed.teams import Teams
from adaspa_cli.sampling.handle import Handle
from tests.distributed.ranks import together
from tests.pipelines import cogvideox, hunyuan_video, latents, masks_at_end

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


def test_heads_move_to_where_they_cost_the_same(tmp_path: Path) -> None:
    """At a search step, and their masks with them: at its next call a layer has them dealt anew."""

    def case(teams: Teams) -> None:
        pipe = hunyuan_video(num_attention_heads=4)
        with Handle(pipe, method_config("adaspa", ADASPA | {"attention_backend": "cpu"}), teams=teams) as handle:
            masks = masks_at_end(handle)
            latents(pipe, **SMALL)
            deals = {key: handle.engine._deals.of(key) for key in masks}
        assert any(heads.deal != ((0, 1), (2, 3)) for heads in deals.values())
        for key, found in masks.items():
            costs = deals[key].gather(found.mask.density())
            parts = [float(costs[list(hand)].sum()) for hand in deals[key].deal]
            even = [float(part.sum()) for part in costs.split(2)]
            assert max(parts) <= max(even) + 1e-6

    together(2, tmp_path, case)


def test_masks_are_kept_as_bits_where_that_is_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaspa_cli.sampling import mask_memory

    monkeypatch.setattr(mask_memory, "LEAST_PACKED", 0)
    monkeypatch.setattr(mask_memory, "PACKED_TIMES", 0)
    test_it_is_that_of_one_process(*CASES["uneven tokens, four heads on three"], tmp_path)
