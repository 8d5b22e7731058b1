"""What is compared between the branches of guidance."""

from pathlib import Path
from typing import Any

import pytest

from adaspa_cli.config import resolve
from scripts import cfg_recall
from tests.pipelines import small_run

GUIDED = {"true_cfg_scale": 3.0, "negative_prompt": "green squares everywhere, at rest", "height": 64, "frames": 9}


def test_own_masks_recall_at_least_as_much_as_shared_ones(hunyuan_folder: Path, tmp_path: Path) -> None:
    """Without head adaption an own mask is the best of its size; head by head, layer by layer."""
    settings = small_run(hunyuan_folder, tmp_path, head_adaptive=False, seed=[0, 1], **GUIDED)
    notes: list[str] = []
    found = cfg_recall.compare(resolve(settings), notes.append)
    assert notes == [f"{done} of 8 steps done" for done in range(1, 9)]
    assert sorted(found.own) == sorted(found.shared) == [1, 3]
    for step in (1, 3):
        assert len(found.own[step]) == 4 * 2  # layers, seeds
        for own, shared in zip(found.own[step], found.shared[step], strict=True):
            assert (own >= shared - 1e-6).all()
            assert (shared > 0).all()
    (first, own, shared, worst), *_, (last, *_) = found.rows()
    assert (first, last) == ("step 1", "all")
    assert 0 < shared < own <= 1
    assert 0 < worst < 1


def test_a_run_without_guidance_is_refused(hunyuan_folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [f"--set={key}={value}" for key, value in small_run(hunyuan_folder, Path("x")).items() if key != "prompt"]
    sets = [text.replace("(", "[").replace(")", "]") for text in sets]
    monkeypatch.setattr("sys.argv", ["cfg_recall", "--prompt", "a star", *sets])
    assert cfg_recall.main() == 1
    assert "no unconditional branch" in capsys.readouterr().err
