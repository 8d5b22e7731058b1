"""The selection benchmark's own logic, on the CPU: both ways agree, and a wrong result gets no time."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if torch.cuda.is_available():
    pytest.skip("with a GPU the benchmark itself runs", allow_module_level=True)

from adaspa_cli.attention import TokenLayout
from adaspa_cli.masks import FoundMask, selection
from scripts import bench_selection

TASKS = ("select, head-adaptive", "select, one count")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(call: Callable[[], object], _: int) -> tuple[float, float, float]:
        call()
        return 1.0, 0.0, 1.0

    monkeypatch.setattr(bench_selection, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(bench_selection, "HEADS", 2)
    monkeypatch.setattr(bench_selection, "BLOCK", 16)
    monkeypatch.setattr(bench_selection, "LAYOUT", TokenLayout(2, 5, 7, 18, "last"))
    monkeypatch.setattr(bench_selection, "measure", measure)
    monkeypatch.setattr(bench_selection, "peak", lambda _: 1)


@pytest.mark.parametrize("kind", ["spread", "mostly zero"])
def test_both_ways_are_checked_and_timed(kind: str) -> None:
    rows = bench_selection.bench(kind, ["torch", "kernels"], 1)
    assert len(rows) == 16
    for row in rows:
        assert row.problem is None, row
        assert row.milliseconds == 1.0
        assert row.task in bench_selection.line(row)


def test_a_wrong_result_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = selection.by_kernels

    def wrong(*args: object) -> FoundMask:
        found = right(*args)  # type: ignore[arg-type]
        return FoundMask(found.mask, found.recall + 0.01)

    monkeypatch.setattr(selection, "by_kernels", wrong)
    rows = [row for row in bench_selection.bench("spread", ["kernels"], 1) if row.task in TASKS]
    assert len(rows) == 2
    for row in rows:
        assert row.problem is not None
        assert "recall differs" in row.problem
        assert row.milliseconds is None
        assert row.problem in bench_selection.line(row)


def test_lists_have_to_be_equal() -> None:
    a = torch.arange(6, dtype=torch.int16)
    b = a.clone()
    b[2] = 7
    assert bench_selection.difference((a,), (a.clone(),)) is None
    assert "1 of 6 elements differ" in str(bench_selection.difference((b,), (a,)))
    assert "torch.int32" in str(bench_selection.difference((a.int(),), (a,)))
    nan = torch.tensor([torch.nan])
    assert "recall differs" in str(bench_selection.difference((nan,), (nan,)))
