"""The kernel benchmark's own logic, on the CPU: masks, the gate before each time, rows that fail alone."""

import argparse
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if torch.cuda.is_available():
    pytest.skip("with a GPU the benchmark itself runs", allow_module_level=True)

from scripts import bench_kernels


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(call: Callable[[], object], _: int) -> tuple[float, float, float]:
        call()
        return 1.0, 0.0, 2.0

    monkeypatch.setattr(bench_kernels, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(bench_kernels, "DTYPE", torch.float16)
    monkeypatch.setattr(bench_kernels, "HEADS", 2)
    monkeypatch.setattr(bench_kernels, "measure", measure)


def options(**changes: Any) -> argparse.Namespace:
    values = {
        "tokens": 330, "quick": True, "masks": list(bench_kernels.MASKS), "densities": [0.5], "paths": ["portable"],
        "no_dense": False, "no_sums": False, "flex": False,
    }  # fmt: skip
    return argparse.Namespace(**values | changes)


def test_right_results_are_timed_and_the_others_say_why() -> None:
    bench = bench_kernels.Bench(1)
    bench_kernels.bench_head_dim(bench, options(paths=["portable", "hopper"]), 64)
    for row in bench.rows:
        if "portable" in row.kernel:
            assert row.problem is None
            assert row.error is not None
            assert row.teraflops
        if "hopper" in row.kernel:
            assert row.problem is not None
            assert "9.0" in row.problem
        assert row.kernel in bench_kernels.line(row)
    assert [row.kernel for row in bench.rows].count("sparse, portable") == 5


def test_a_wrong_result_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench_kernels.sparse_call

    def wrong(*args: Any) -> Callable[[], Any]:
        return lambda: (1.1 * right(*args)()[0], None)

    monkeypatch.setattr(bench_kernels, "sparse_call", wrong)
    bench = bench_kernels.Bench(1)
    bench_kernels.bench_head_dim(bench, options(no_dense=True, no_sums=True), 64)
    assert bench.rows
    for row in bench.rows:
        assert row.problem is not None
        assert "wrong result" in row.problem
        assert row.milliseconds is None


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_wrong_search_gets_no_time(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    right = bench_kernels.adaspa_kernels.block_sums
    monkeypatch.setattr(bench_kernels.adaspa_kernels, "block_sums", lambda *a, **o: factor * right(*a, **o))
    bench = bench_kernels.Bench(1)
    bench_kernels.bench_head_dim(bench, options(no_dense=True, masks=[]), 64)
    problems = {row.kernel: row.problem for row in bench.rows if row.problem}
    assert set(problems) == {"block sums, portable", "whole search of a layer"}
    assert all("wrong result" in problem for problem in problems.values())


def test_the_ceiling_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_kernels, "CEILING_SIZE", 64)
    bench = bench_kernels.Bench(1)
    bench_kernels.measure_ceiling(bench)
    assert 0 < (bench.rows[0].error or 0) < bench_kernels.OUTPUT_ERROR


def test_clustered_rows_share_more_with_their_neighbours() -> None:
    uniform, clustered = (bench_kernels.mask(kind, 64 * 60, 64, 0.2) for kind in ("uniform", "clustered"))
    assert bench_kernels.overlap(uniform) == pytest.approx(0.2, abs=0.05)
    assert bench_kernels.overlap(clustered) > 0.5
    assert (clustered.counts == 12).all()
