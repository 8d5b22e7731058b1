"""The Hilbert order in whole pipelines: dense attention makes the same video, and nothing of it stays behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adaspa_cli.attention import dense_attention
from adaspa_cli.models.forward import Row
from adaspa_cli.models.registry import attach
from tests.pipelines import cogvideox, hunyuan_video, latents
from tests.token_orders import sequence_order

# The same float32 sums in another order, as in tests/models/families.
TOLERANCES = {"rtol": 1e-4, "atol": 1e-4}
LEARNED = {"use_learned_positional_embeddings": True, "use_rotary_positional_embeddings": True}
SINES = {"use_rotary_positional_embeddings": False}

Make = Callable[[], Any]
PIPELINES: dict[str, tuple[Make, dict[str, Any]]] = {
    "HunyuanVideo": (hunyuan_video, {}),
    "HunyuanVideo, true CFG": (hunyuan_video, {"true_cfg_scale": 3.0, "negative_prompt": "blurry, a circle"}),
    "CogVideoX 1.5": (cogvideox, {}),
    "CogVideoX 1.5, no guidance": (cogvideox, {"guidance_scale": 1.0}),
    "CogVideoX 1.0, sines": (lambda: cogvideox("1.0", **SINES), {}),
    "CogVideoX 1.0, learned": (lambda: cogvideox("1.0", **LEARNED), {}),
}


class Recorder:
    """Attends densely, and remembers the last layout and keys of the first layer."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Row, Tensor]] = {}

    def __call__(self, layer: int, row: Row, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not layer:
            self.seen[row.branch] = (row, k.clone())
        return dense_attention(q, k, v)[0]


def run(make: Make, settings: dict[str, Any], order: str) -> tuple[Tensor, Recorder]:
    pipe, recorder = make(), Recorder()
    attachment = attach(pipe, recorder, order)  # type: ignore[arg-type]
    made = latents(pipe, num_inference_steps=2, **settings)
    attachment.detach()
    return made, recorder


@pytest.mark.parametrize(("make", "settings"), PIPELINES.values(), ids=PIPELINES.keys())
def test_dense_attention_makes_the_same_video(make: Make, settings: dict[str, Any]) -> None:
    raster, before = run(make, settings, "raster")
    hilbert, after = run(make, settings, "hilbert")
    torch.testing.assert_close(hilbert, raster, **TOLERANCES)
    for branch, (row, keys) in before.seen.items():
        moved_row, moved = after.seen[branch]
        assert (row.layout.order, moved_row.layout.order) == ("raster", "hilbert")
        order = sequence_order(row.layout)
        torch.testing.assert_close(order.apply(keys, 2), moved, **TOLERANCES)
        assert not torch.allclose(keys, moved, **TOLERANCES)


@pytest.mark.parametrize("make", [hunyuan_video, cogvideox])
def test_nothing_stays_behind(make: Make) -> None:
    pipe = make()
    attach(pipe, Recorder(), "hilbert").detach()
    hooks = [hook for module in pipe.transformer.modules() for hook in module._forward_hooks.values()]
    assert not hooks
