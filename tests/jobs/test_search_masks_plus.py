"""Mask files of adaspa-plus: searched by scores in another order of tokens, used again, refused in raster order."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adaspa_cli.config import resolve
from adaspa_cli.config.search_masks import SearchOptions
from adaspa_cli.errors import MaskFileError
from adaspa_cli.jobs.search_masks import search_masks
from adaspa_cli.maskfiles import MaskFile
from tests.pipelines import PROMPT, Listener, make_reports, small_run

PLUS = {"method": "adaspa-plus", "sparsity": 0.6, "search_rows": 4, "probes": 8, "search_steps": (1, 3)}


def searched(folder: Path, out: Path, prompts: list[str], **changed: Any) -> MaskFile:
    resolved = resolve(small_run(folder, out.parent / "runs", **(PLUS | changed)))
    return search_masks(resolved, SearchOptions(out), prompts, Listener())


def masks(file: MaskFile) -> list[torch.Tensor]:
    return [file.read(place, "bits") for place in file.description.places()]


def test_a_file_of_one_video_makes_the_video_of_its_search(hunyuan_folder: Path, tmp_path: Path) -> None:
    file = searched(hunyuan_folder, tmp_path / "masks.safetensors", [PROMPT])
    assert file.description.layout.order == "hilbert"
    own = small_run(hunyuan_folder, tmp_path / "own", **PLUS)
    loaded = small_run(hunyuan_folder, tmp_path / "loaded", **PLUS, masks=str(tmp_path / "masks.safetensors"))
    reports = [next(iter(make_reports(resolve(flags), Listener()))) for flags in (own, loaded)]
    densities = [{s["layer"]: s["density"] for s in report["searches"] if s["step"] == 3} for report in reports]
    assert densities[0] == densities[1]
    assert reports[1]["compensation"]["after"] is not None


def test_scores_are_averaged_over_prompts(hunyuan_folder: Path, tmp_path: Path) -> None:
    other = "a green star rotates"
    alone = [searched(hunyuan_folder, tmp_path / f"{n}.safetensors", [p]) for n, p in enumerate((PROMPT, other))]
    twice = searched(hunyuan_folder, tmp_path / "twice.safetensors", [PROMPT, PROMPT])
    both = searched(hunyuan_folder, tmp_path / "both.safetensors", [PROMPT, other])
    assert all(torch.equal(a, b) for a, b in zip(masks(alone[0]), masks(twice), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(masks(alone[0]), masks(both), strict=True))
    assert [entry.density for entry in both.description.entries] == [
        pytest.approx(entry.density, abs=0.2) for entry in alone[0].description.entries
    ]


def test_a_file_of_another_token_order_is_refused(hunyuan_folder: Path, tmp_path: Path) -> None:
    searched(hunyuan_folder, tmp_path / "masks.safetensors", [PROMPT])
    flags = small_run(hunyuan_folder, tmp_path / "out", **PLUS, masks=str(tmp_path / "masks.safetensors"))
    with pytest.raises(MaskFileError, match="order is hilbert in the file and raster in the run"):
        next(iter(make_reports(resolve(flags | {"token_order": "raster"}), Listener())))
