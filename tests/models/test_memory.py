"""The estimated memory of models and runs, against peaks that were measured and against masks as they are."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights

from adaspa_cli.attention import TokenLayout
from adaspa_cli.attention.mask_size import bit_bytes, kept_bytes, list_bytes
from adaspa_cli.config import resolve
from adaspa_cli.config.architecture import architecture_of
from adaspa_cli.config.kept_blocks import longest_row
from adaspa_cli.config.presets import preset_names
from adaspa_cli.config.weights import fp8_weights
from adaspa_cli.forecast import run as forecast_run
from adaspa_cli.forecast.calibration import Rates
from adaspa_cli.masks import Call
from adaspa_cli.masks.methods.adaspa import AdaSpa
from adaspa_cli.models import fp8_linear
from adaspa_cli.models.fp8 import Fp8Linears
from adaspa_cli.models.memory import Memory, estimate_memory, memory_by_offload
from adaspa_cli.models.registry import heavy
from adaspa_cli.sampling.mask_memory import KnownMask
from tests.sampling.test_mask_memory import known

PLUS = {"method": "adaspa-plus", "search_steps_for": 50}
AFTER_TEN = {**PLUS, "sparsity": 0.9, "search_steps": (10, 30)}
COMPILED: dict[str, Any] = {"compile": True}
FP8: dict[str, Any] = {"linear": "fp8"}
BESIDE = 2 * 9.06e9  # bfloat16 weights beside those in FP8, which are in main memory since the measurement
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
        ({"model": "hunyuan", **COMPILED, **AFTER_TEN, **FP8}, 47.52e9 - BESIDE),
        ({"model": "hunyuan", **COMPILED, "method": "adaspa-plus", **FP8}, 48.89e9 - BESIDE),
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


@pytest.mark.parametrize("name", preset_names("models"))
def test_weights_in_fp8_are_those_of_the_layers_that_are_replaced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same blocks without their numbers, a few of each model."""
    monkeypatch.setattr(fp8_linear, "_is_elsewhere", lambda _: False)
    architecture = architecture_of(resolve({"model": name}, download=False).config.model).cut(4)
    family = heavy(architecture.facts)
    with init_empty_weights():
        transformers = {
            part: family.classes().transformer.from_config(dict(config))
            for part, config in architecture.transformers.items()
        }
    pipe: Any = SimpleNamespace(_execution_device=torch.device("meta"), **transformers)
    with Fp8Linears(family, pipe, emulate=True) as linears:
        assert linears.layers == linears.of
        assert fp8_weights(architecture) == linears.weight_bytes


def test_layers_in_fp8_take_half_from_the_beginning() -> None:
    whole, fp8 = (estimated(model="wan2.2-a14b", linear=linear) for linear in ("model", "fp8"))
    assert whole.weights is not None
    assert fp8.weights == whole.weights - 2 * 40 * (8 * 5120**2 + 2 * 5120 * 13824)
    assert fp8.total == fp8.weights + fp8.activations + fp8.masks
    cut = estimated(model="wan2.2-a14b", linear="fp8", layers=8)
    assert cut.weights == pytest.approx(fp8.weights / 10, rel=0.05)


def test_layers_in_fp8_take_half_of_what_offloading_moves() -> None:
    """One of the two transformers is on the GPU; all layers are in main memory, in both dtypes."""
    whole, fp8 = (memory_by_offload("wan2.2-a14b", linear)["model"] for linear in ("model", "fp8"))
    assert whole.weights is not None
    assert whole.everything is not None
    layers = 40 * (8 * 5120**2 + 2 * 5120 * 13824)  # of one transformer
    assert fp8.weights == whole.weights - layers
    assert fp8.alone == whole.alone
    assert fp8.everything == whole.everything + 2 * layers


@pytest.mark.parametrize("model", ["tiny", "hunyuan", "hunyuan1.5-480p-i2v", "cogvideox-2b", "wan2.2-i2v-a14b"])
def test_models_and_plans_agree(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``adaspa models`` shows what ``generate --plan`` shows of the model's own video, whatever the offload mode."""
    monkeypatch.setattr(forecast_run, "check_offload", lambda _offload, _kind: None)  # this machine may have no GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cases = {("model", offload): held for offload, held in memory_by_offload(model).items()}
    cases |= {("fp8", offload): held for offload, held in memory_by_offload(model, "fp8").items()}
    assert len(cases) == 5
    for (linear, offload), held in cases.items():
        flags = {"model": model, "linear": linear, "offload": offload, "device": "cuda", "dtype": "bfloat16"}
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
        fp8 = [(held.total or 0) for held in memory_by_offload(model, "fp8").values()]
        assert shown == [f"{size / 1e9:.1f}" for size in (*totals, found["none"].weights or 0, *fp8)], model
