"""The examples run as they stand, and show what they say."""

import json
import re
import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adaspa_cli.app import app

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def printed(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_a_method_is_applied_to_a_pipeline_and_comes_off_again(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("apply_to_pipeline.py", capsys)
    assert "makes the dense video again: True" in text
    error = re.search(r"estimated attention error ([0-9.]+)%", text)
    assert error is not None
    assert 1 < float(error[1]) < 50
    psnr = re.search(r"PSNR .*: ([0-9.]+) dB", text)
    assert psnr is not None
    assert 25 < float(psnr[1]) < 80


def test_a_policy_of_ones_own_leaves_blocks_out(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("custom_policy.py", capsys)
    assert text.startswith("step 0: search, density 100%\nstep 1: sparse")
    densities = [int(density) for density in re.findall(r"sparse, density (\d+)%", text)]
    assert len(densities) == 3
    assert all(20 < density < 95 for density in densities)


def test_the_operators_compute_the_chosen_blocks_alone(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("raw_operator.py", capsys)
    recalls, errors = ([float(x) for x in re.findall(rf"{name} ?([0-9.]+)%", text)] for name in ("row:", "error"))
    assert recalls == sorted(recalls)
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] < 5


def test_a_bench_of_ones_own_makes_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = tmp_path / "bench"
    result = CliRunner().invoke(app, ["bench", "--config", str(EXAMPLES / "own_bench.yaml"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = json.loads((out / "bench.json").read_text(encoding="utf-8"))["rows"]
    assert [row["name"] for row in rows] == [
        "full",
        "adaspa-plus sparsity=0.5",
        "adaspa-plus sparsity=0.8",
        "adaspa sparsity=0.8",
    ]
    psnr = [row["quality"]["psnr"]["mean"] for row in rows[1:]]
    assert psnr == sorted(psnr, reverse=True)


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
