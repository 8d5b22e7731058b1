"""Every method makes videos with every model family, and its report says what it left out."""

from pathlib import Path
from typing import Any

import pytest
import torch

import adaspa_cli
from adaspa_cli.config import resolve
from adaspa_cli.config.methods import EstimatingConfig, SparseConfig, names_of
from adaspa_cli.config.presets import preset_names
from tests.pipelines import Listener, cogvideox, hunyuan_video, latents, make_reports, masks_at_end, small_run

ESTIMATING = names_of(EstimatingConfig)
METHODS = tuple(name for name in names_of(SparseConfig) if name != "adaspa")
SIZES = {
    "whole blocks": {"height": 64, "width": 96, "frames": 9},
    "ragged blocks": {"height": 48, "width": 80, "frames": 25, "sparsity": 0.8},
}


def report_of(folder: Path, out: Path, **flags: Any) -> dict[str, Any]:
    (report,) = make_reports(resolve(small_run(folder, out, **flags)), Listener())
    return report


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("family", ["hunyuan", "cogvideox"])
@pytest.mark.parametrize("method", METHODS)
def test_a_video_and_a_report_are_made(
    method: str, family: str, size: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(f"{family}_folder")
    report = report_of(folder, tmp_path, method=method, **size)
    assert (tmp_path / report["video"]["file"]).is_file()

    estimates = method in ESTIMATING
    phases = ["dense"] + ["estimate"] * 3 if estimates else ["dense", "search", "sparse", "cached search"]
    steps = [1, 2, 3] if estimates else [1, 3]
    assert [step["phase"] for step in report["steps"]] == phases
    assert report["search_steps"] == {"asked": [1, 3], "planned": steps, "done": steps}

    branches = ("cond",) if family == "hunyuan" else ("uncond", "cond")
    found = [(search["step"], search["layer"], search["branch"]) for search in report["searches"]]
    layers = range(report["model"]["layers"])
    assert sorted(found) == sorted((step, layer, branch) for step in steps for layer in layers for branch in branches)
    for search in report["searches"]:
        assert all(0 < density < 1 for density in search["density"])
        assert len(search["density"]) == report["model"]["heads"]
        if estimates:
            assert search["recall"] is None
        else:
            assert all(0 < recall <= 1 + 1e-6 for recall in search["recall"])
    for step in report["steps"]:
        at_step = [search["density"] for search in report["searches"] if search["step"] == step["step"]]
        if step["phase"] in ("estimate", "cached search"):
            mean = sum(map(sum, at_step)) / (len(at_step) * report["model"]["heads"])
            assert step["density"] == pytest.approx(mean, abs=1e-5)
        elif step["phase"] != "sparse":
            assert step["density"] == 1


@pytest.mark.parametrize("method", METHODS)
def test_one_frame_is_a_video_too(method: str, hunyuan_folder: Path, tmp_path: Path) -> None:
    report = report_of(hunyuan_folder, tmp_path, method=method, frames=1, height=96, width=96)
    assert report["density"] < 1


@pytest.mark.parametrize("method", METHODS)
def test_a_video_can_be_made_again(method: str, hunyuan_folder: Path, tmp_path: Path) -> None:
    """Sampled rows are drawn alike each time."""
    size = SIZES["whole blocks"]
    first, second = (report_of(hunyuan_folder, tmp_path / name, method=method, **size) for name in ("a", "b"))
    videos = [(tmp_path / name / r["video"]["file"]).read_bytes() for name, r in (("a", first), ("b", second))]
    assert videos[0] == videos[1]


@pytest.mark.parametrize("make", [hunyuan_video, cogvideox])
@pytest.mark.parametrize("method", METHODS)
def test_backends_agree(method: str, make: Any) -> None:
    pipe = make()
    outputs = []
    for backend in ("reference", "cpu"):
        settings = {"block_size": 16, "search_steps": (1,), "sparsity": 0.6, "attention_backend": backend}
        with adaspa_cli.apply(pipe, method, **settings) as handle:
            masks = masks_at_end(handle)
            outputs.append(latents(pipe))
            assert (masks == {}) == (method in ESTIMATING), "what is estimated anew is not kept"
    # Float32 through four steps of a random model.
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [hunyuan_video, cogvideox])
@pytest.mark.parametrize("method", METHODS)
def test_without_sparsity_the_video_is_the_dense_one(method: str, make: Any) -> None:
    """Also through the permutation of heads and back."""
    pipe = make()
    settings = {"block_size": 16, "attention_backend": "reference"}
    with adaspa_cli.apply(pipe, "full", **settings):
        dense = latents(pipe)
    with adaspa_cli.apply(pipe, method, search_steps=(1,), sparsity=0.0, **settings):
        torch.testing.assert_close(latents(pipe), dense, rtol=1e-3, atol=1e-3)
    with adaspa_cli.apply(pipe, method, search_steps=(1,), sparsity=0.8, **settings):
        assert not torch.allclose(latents(pipe), dense, rtol=1e-3, atol=1e-3)


def test_the_methods_are_presets_with_the_sparsity_and_warm_up_of_adaspa() -> None:
    assert set(METHODS) <= set(preset_names("methods"))
    for model in ("hunyuan", "fasthunyuan", "cogvideox", "tiny"):
        for steps in (50, 20):
            ours = [
                resolve({"model": model, "method": name, "steps": steps}).config.method.algorithm for name in METHODS
            ]
            adaspa = resolve({"model": model, "steps": steps}).config.method.searching
            for method, name in zip(ours, METHODS, strict=True):
                assert isinstance(method, SparseConfig)
                assert method.name == name
                assert (method.sparsity, method.block_size) == (adaspa.sparsity, adaspa.block_size)
                assert method.schedule(steps) == adaspa.schedule(steps)
