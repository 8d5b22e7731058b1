"""The table of what fits into how much memory: its rows can be run, and failures are told apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from adaspa_cli.config import resolve
from scripts import capped_memory
from scripts.capped_memory import ROWS, main, measure, settings_of, table


@pytest.mark.parametrize("row", list(ROWS))
def test_the_settings_of_every_row_go_together(row: str) -> None:
    config = resolve(settings_of(row, "hunyuan", {}, "out")).config
    assert config.model.random_weights
    assert config.decodes
    assert (config.sampling.height, config.sampling.frames) == (720, 129)


def small(folder: Path) -> dict[str, Any]:
    size = {"height": 32, "width": 48, "frames": 5, "block_size": 16}
    return {"model": str(folder), "device": "cpu", "dtype": "float32", **size}


def test_a_row_is_measured(hunyuan_folder: Path) -> None:
    found = measure("fp8", "tiny", 24, small(hunyuan_folder))
    assert found["fits"] is True
    assert len(found["step_seconds"]) == 2
    assert found["peak_gib"] > 0


def test_what_cannot_run_says_why(hunyuan_folder: Path) -> None:
    found = measure("bf16, offload model", "tiny", 24, small(hunyuan_folder))
    assert found["fits"] is None
    assert "needs a GPU" in found["error"]


def test_the_table_tells_them_apart() -> None:
    fits: dict[str, Any] = {"row": "fp8", "gb": 24.0, "fits": True, "peak_gib": 20.04, "step_seconds": [60, 30.5]}
    fits["decoding_seconds"] = 9
    short = {"row": "bf16", "gb": 24.0, "fits": False}
    failed = {"row": "nf4", "gb": 48.0, "fits": None, "error": "no package"}
    lines = table([fits, short, failed]).splitlines()[2:]
    assert lines[0] == "| fp8 | 24 | 20.0 | 60.0 | 30.5 | 9.0 |"
    assert "does not fit" in lines[1]
    assert "failed: no package" in lines[2]


def test_one_row_is_printed_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(capped_memory, "measure", lambda *_asked: {"fits": False})
    main(["--one", "--rows", "int8", "--gb", "24"])
    assert json.loads(capsys.readouterr().out) == {"fits": False}
