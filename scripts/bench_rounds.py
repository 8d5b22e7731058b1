"""What keeping the Hopper kernel's teams in step is worth: with and without it, launches taken in turn.

    PYTHONPATH=.:kernels python -m scripts.bench_rounds
    ncu -k regex:hopper_block_sparse -c 1 --metrics dram__bytes_read.sum,lts__t_sectors_op_read.sum,\
lts__t_sectors_op_read_lookup_hit.sum python -m scripts.bench_rounds --once with

Shapes and timings are those of ``bench_kernels``: single launches behind a pause, taken in turn so that both see the
same temperature, and half a second each without a pause.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adaspa_cli.report.machine import machine, versions
from scripts.bench_kernels import DEVICE, OUTPUT_ERROR, TOKENS, attention_error, inputs, mask, measure, sparse_call

CASES = ((128, 64, 0.2), (128, 128, 0.2), (128, 128, 1.0), (64, 64, 0.2))  # head dim, block, density
WAYS = ("with", "without")


@contextmanager
def rounds(way: str) -> Iterator[None]:
    """Have the launcher keep the teams in step, or not, whatever the size of the cache."""
    from adaspa_kernels import hopper_block_sparse

    rule = hopper_block_sparse.keeps_step
    hopper_block_sparse.keeps_step = lambda _: way == "with"
    try:
        yield
    finally:
        hopper_block_sparse.keeps_step = rule


def compare(head_dim: int, block: int, density: float, repeats: int) -> str:
    """One line: TFLOP/s of single launches and sustained, both ways."""
    tokens = TOKENS[head_dim]
    x = inputs(tokens, head_dim)
    kept = mask("uniform", tokens, block, density)
    call = sparse_call(x, kept, "hopper")
    flops = 4 * tokens * tokens * head_dim * x.q.shape[1] * float(kept.density().mean())
    single: dict[str, list[float]] = {way: [] for way in WAYS}
    sustained: dict[str, float] = {}
    for way in WAYS:
        with rounds(way):
            error = attention_error(x, *call(), kept)
        if not error <= OUTPUT_ERROR:
            raise SystemExit(f"wrong result {way} rounds: error {error:.1e}")
    for _ in range(repeats):
        for way in WAYS:
            with rounds(way):
                milliseconds, _, sustained[way] = measure(call, 1)
            single[way].append(milliseconds)
    cells = [
        f"{way} {flops / statistics.median(single[way]) / 1e9:.0f}, sustained {flops / sustained[way] / 1e9:.0f}"
        for way in WAYS
    ]
    return f"D {head_dim}, {block}x{block}, {density:.0%} kept, TFLOP/s: {'; '.join(cells)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--once", choices=WAYS, help="one launch of the first case, for a profiler")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_rounds needs a CUDA device", file=sys.stderr)
        return 1
    if options.once:
        head_dim, block, density = CASES[0]
        x = inputs(TOKENS[head_dim], head_dim)
        with rounds(options.once):
            sparse_call(x, mask("uniform", TOKENS[head_dim], block, density), "hopper")()
        torch.cuda.synchronize()
        return 0
    print(f"{versions()}\n{machine(DEVICE)}")
    for case in CASES:
        print(compare(*case, options.repeats), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
