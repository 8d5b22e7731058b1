"""The estimated memory of models and runs, against peaks that were measured and against masks as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.mask_size import bit_bytes, kept_bytes, list_bytes
from adaspa_cli.config import resolve
from adaspa_cli.config.architecture import architecture_of
from adaspa_cli.config.kept_blocks import longest_row
from adaspa_cli.forecast import run as forecast_run
from adaspa_cli.forecast.calibration import Rates
from adaspa_cli.masks import Call
from adaspa_cli.masks.methods.adaspa import AdaSpa
from adaspa_cli.models.memory import Memory, estimate_memory, memory_by_offload
from adaspa_cli.sampling.mask_memory import KnownMask
from tests.sampling.test_mask_memory import known

PLUS = {"method": "adaspa-plus", "search_steps_for": 50}
AFTER_TEN = {**PLUS, "sparsity": 0.9, "search_steps": (10, 30)}
COMPILED: dict[str, Any] = {"compile": True}
FP8: dict[str, Any] = {"linear": "fp8"}
GIB = 1 << 30
TWO_STEPS: dict[str, Any] = {"method": "adaspa", "steps": 2, "search_steps": (0,), "decode": True}


def estimated(**flags: Any) -> Memory:
    config = resolve({"random_weights": True, **flags}, download=False).config
    return estimate_memory(config, architecture_of(config.model))


@pytest.mark.parametrize(
    ("flags", "measured"),
    [
        ({"model": "hunyuan", **COMPILED, "method": "full"}, 35.36e9),
        ({"model": "hunyuan", **COMPILED, **PLUS, "sparsity": 0.9, "search_steps": (0, 30)}, 37.36e9),
        ({"model": "hunyuan", **COMPILED, **PLUS, "sparsity": 0.95, "search_steps": (0, 30)}, 38.72e9),
        ({"model": "hunyuan", **COMPILED, **AFTER_TEN, **FP8}, 47.52e9),
        ({"model": "hunyuan", **COMPILED, "method": "adaspa-plus", **FP8}, 48.89e9),
        ({"model": "fasthunyuan", **COMPILED, "method": "full"}, 35.07e9),
        ({"model": "cogvideox", **COMPILED, "method": "full"}, 19.93e9),
        ({"model": "hunyuan1.5-720p", **COMPILED, "layers": 12, "method": "full"}, 10.05e9),
        ({"model": "hunyuan1.5-720p", **COMPILED, "layers": 12, **AFTER_TEN}, 10.58e9),
        ({"model": "wan2.1-14b", **COMPILED, "layers": 8, "method": "full"}, 11.80e9),
        ({"model": "wan2.1-14b", **COMPILED, "layers": 8, **AFTER_TEN}, 13.17e9),
        ({"model": "hunyuan", "layers": 3, "method": "full", "frames": 577}, 50.88e9),
        ({"model": "hunyuan", "layers": 6, "method": "full"}, 14.40e9),
        ({"model": "hunyuan", "layers": 6, "method": "full", "gpus": 2}, 11.08e9),
        ({"model": "hunyuan", "layers": 6, "method": "full", "gpus": 4}, 7.20e9),
        ({"model": "hunyuan", **TWO_STEPS, "offload": "none"}, 35.37 * GIB),
        ({"model": "hunyuan", **TWO_STEPS, "offload": "model"}, 34.89 * GIB),
        ({"model": "hunyuan", **TWO_STEPS, "offload": "group"}, 11.14 * GIB),
    ],
)
def test_it_is_near_what_was_measured(flags: dict[str, Any], measured: float) -> None:
    """Peaks on an H200 without text encoders: docs/performance.md, docs/low-memory.md and the tables they link to."""
    assert estimated(**flags).total == pytest.approx(measured, rel=0.12)


@pytest.mark.parametrize("model", ["tiny", "hunyuan", "hunyuan1.5-480p-i2v", "cogvideox-2b", "wan2.2-i2v-a14b"])
def test_models_and_plans_agree(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``adaspa models`` shows what ``generate --plan`` shows of the model's own video, whatever the offload mode."""
    monkeypatch.setattr(forecast_run, "check_offload", lambda _offload, _kind: None)  # this machine may have no GPU
    for offload, held in memory_by_offload(model).items():
        flags = {"model": model, "offload": offload, "device": "cpu", "dtype": "bfloat16"}
        config = resolve(flags, default_method="adaspa-plus", download=False).config
        planned = forecast_run.forecast(config, [], lambda _sample: Rates(0.0, 0.0, 0.0)).memory
        assert (planned.total, planned.weights, planned.masks) == (held.total, held.weights, held.masks)


@pytest.mark.parametrize("budget", ["row", "head-adaptive", "layer"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_masks_are_as_large_as_they_are_said_to_be(budget: Any, sparsity: float) -> None:
    layout = TokenLayout(6, 8, 8, 5, "last")
    policy = AdaSpa(sparsity, (0,), (16, 16), budget=budget)
    blocks, video = layout.blocks(16), len(layout.video_blocks(16))
    sums = torch.rand(3, blocks, blocks, generator=torch.Generator().manual_seed(0))
    mask = policy.search(Call(0, 0, "cond", 0, layout), sums).mask
    width = longest_row(sparsity, video, budget) + blocks - video if sparsity else 1
    assert mask.nbytes == kept_bytes(3 * blocks, width, blocks)


def test_large_masks_are_kept_as_bits() -> None:
    rows, blocks = 24 * 1859, 1859
    dense, sparse = (longest_row(sparsity, blocks - 1, "layer") for sparsity in (0.4, 0.95))
    assert kept_bytes(rows, dense, blocks) == bit_bytes(rows, blocks) + 4 * rows
    assert kept_bytes(rows, sparse, blocks) == list_bytes(rows, sparse, blocks)


def test_bits_take_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from adaspa_cli.attention import mask_size

    monkeypatch.setattr(mask_size, "LEAST_PACKED", 0)
    entry: KnownMask = known(0.1)
    mask = entry.found.mask
    rows, width = mask.counts.numel(), mask.indices.shape[-1]
    entry.pack()
    assert entry.bits is not None
    assert entry.bits.nbytes + entry.found.mask.nbytes == kept_bytes(rows, width, mask.key_blocks)


def test_offloaded_layers_leave_the_table_of_words() -> None:
    """Of a small video the text encoder's table is the peak: 256,384 words of 4096 numbers."""
    held = memory_by_offload("wan2.1-1.3b")["group"]
    assert held.total == held.alone == 256_384 * 4096 * 2
    assert estimated(model="wan2.1-1.3b", offload="group").alone == 0  # random weights have no text encoder


def test_what_offloading_keeps_in_main_memory_is_all_weights() -> None:
    found = memory_by_offload("wan2.2-a14b")
    assert {held.everything for held in found.values()} == {found["none"].weights}


def test_the_table_of_the_docs_is_that_of_the_command() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    section = page.split("## Which GPU, and how much main memory\n")[1].split("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:3] == "| `"]
    assert len(rows) > 5
    for model, *shown in rows[1:]:
        found = memory_by_offload(model)
        totals = [(held.total or 0) for held in found.values()]
        assert shown == [f"{size / 1e9:.1f}" for size in (*totals, found["none"].weights or 0)], model
