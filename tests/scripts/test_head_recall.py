"""What is counted of the heads that adaption moved."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import head_recall


def report(folder: Path, seed: int, densities: list[float], recalls: list[float]) -> None:
    folder.mkdir(exist_ok=True)
    search = {"layer": 0, "branch": "cond", "sample": 0, "step": 2, "density": densities, "recall": recalls}
    content = {"prompt": "a red star", "seed": seed, "searches": [search]}
    (folder / f"{seed}.report.json").write_text(json.dumps(content))


def test_sparser_and_denser_heads_are_told_apart(tmp_path: Path) -> None:
    with_, without = tmp_path / "with", tmp_path / "without"
    report(with_, 0, [0.1, 0.2, 0.2, 0.3], [0.7, 0.6, 0.5, 0.4])
    report(without, 0, [0.2] * 4, [0.9, 0.6, 0.5, 0.3])
    figures = head_recall.compare(head_recall.searches(with_), head_recall.searches(without))
    expected = {
        "searches": 1, "share of heads over 0.8": 0.25, "mean recall without": 0.575, "mean recall with": 0.55,
        "lowest recall of a search, mean, without": 0.3, "lowest recall of a search, mean, with": 0.4,
        "sparser heads, recall without": 0.9, "sparser heads, change": -0.2,
        "denser heads, recall without": 0.3, "denser heads, change": 0.1,
    }  # fmt: skip
    assert figures == pytest.approx(expected)


def test_other_runs_are_refused(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report(tmp_path / "with", 0, [0.1, 0.3], [0.7, 0.6])
    report(tmp_path / "without", 1, [0.2, 0.2], [0.7, 0.6])
    monkeypatch.setattr("sys.argv", ["head_recall", str(tmp_path / "with"), str(tmp_path / "without")])
    assert head_recall.main() == 1
    assert "which are not the same" in capsys.readouterr().err
