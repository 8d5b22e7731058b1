"""The linear layers' benchmark's own logic, on the CPU: sums over a step, and a wrong result gets no time."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if torch.cuda.is_available():
    pytest.skip("with a GPU the benchmark itself runs", allow_module_level=True)

from adaspa_cli.models import fp8_linear
from scripts import bench_linear
from scripts.bench_linear import Row, bench_product, bench_quantiser, products, sums


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(call: Callable[[], object], _: int) -> tuple[float, float, float]:
        call()
        return 1.0, 0.0, 1.0

    monkeypatch.setattr(bench_linear, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(bench_linear, "WIDTH", 64)
    monkeypatch.setattr(bench_linear, "MLP", 128)
    monkeypatch.setattr(bench_linear, "measure", measure)
    monkeypatch.setattr(fp8_linear, "_scaled", fp8_linear._emulated)


def rows() -> list[Row]:
    found: list[Row] = []
    for product in products(80, 16):
        bench_product(product, 1, found.append)
    return found


def test_every_way_is_checked_and_timed() -> None:
    found = rows()
    assert len(found) == 11 * 2 + 3 * 2
    for row in found:
        assert row.problem is None, row
        assert row.milliseconds == 1.0
        assert (row.error is None) == (row.way == "bf16")
        assert row.name in bench_linear.line(row)


def test_a_step_is_all_products_as_often_as_they_run() -> None:
    found = rows()
    calls = (20 * 8 + 40 * 3) / 1000
    assert sums(found) == pytest.approx(
        {"bf16": calls, "bf16, with GELU": calls, "fp8": calls, "fp8, with GELU": calls}
    )
    assert "ratio: 1.00" in bench_linear.sum_lines(sums(found))
    assert sums([*found[:-1], replace(found[-1], problem="wrong")]) == {}


def test_figures_are_written_as_json() -> None:
    found = [Row("single: out", "fp8", 80, 192, 64, 40, milliseconds=1.0)]
    content = json.loads(bench_linear.as_json(found, {"fp8": 1.5}, {"repeats": 3}))
    assert content["rows"][0]["milliseconds"] == 1.0
    assert (content["step_seconds"], content["repeats"]) == ({"fp8": 1.5}, 3)
    assert content["machine"]["device"] == "cpu"


def test_a_wrong_product_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fp8_linear._emulated
    monkeypatch.setattr(fp8_linear, "_scaled", lambda *given: 1.02 * right(*given))
    found = [row for row in rows() if row.way == "fp8"]
    assert all("wrong result: error 2" in (row.problem or "") and row.milliseconds is None for row in found)


@pytest.mark.filterwarnings("ignore:overflow")
def test_the_quantiser_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Row] = []
    bench_quantiser(20, 1, compiled=False, show=found.append)
    assert [row.way for row in found].count("kernel") == 5
    assert all(row.problem is None and row.gigabytes for row in found)
    right = bench_linear.adaspa_kernels.quantise_rows
    monkeypatch.setattr(bench_linear.adaspa_kernels, "quantise_rows", lambda x, **given: right(2 * x, **given))
    found.clear()
    bench_quantiser(20, 1, compiled=False, show=found.append)
    assert {row.problem for row in found if row.way == "kernel" and not row.gelu} == {
        "wrong result: the quantised rows are not PyTorch's"
    }
