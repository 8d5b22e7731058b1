"""What two choices of the Hopper kernel are worth: rounds, and the fixed reference. Each way in turn, in one run.

    PYTHONPATH=.:kernels python -m scripts.bench_choices
    ncu -k regex:hopper_block_sparse -c 1 --metrics dram__bytes_read.sum,lts__t_sectors_op_read.sum,\
lts__t_sectors_op_read_lookup_hit.sum python -m scripts.bench_choices --once "with rounds"

A call is two launches, the second for rows whose weights left the range of the fixed reference; ``-c 1`` is the first.
In *all rows again* every row does: its first tile scores 100 or more below the others.

Shapes and timings are those of ``bench_kernels``: single calls behind a pause, taken in turn so that all ways see the
same temperature, and half a second each without a pause.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adaspa_cli.attention.block_mask import BlockMask
from adaspa_cli.report.machine import machine, versions
from scripts.bench_kernels import (
    DEVICE,
    OUTPUT_ERROR,
    TOKENS,
    Inputs,
    attention_error,
    inputs,
    mask,
    measure,
    sparse_call,
)

# What the launcher decides otherwise, by the name of a way.
SWITCHES = {
    "with rounds": {"keeps_step": lambda _: True},
    "without rounds": {"keeps_step": lambda _: False},
    "fixed reference": {},
    "running maximum": {"keeps_reference": lambda _: False},
    "all rows again": {},
}
ROUNDS = ("with rounds", "without rounds")
REFERENCE = ("fixed reference", "running maximum", "all rows again")
# Head dim, block, density, and the ways.
CASES = (
    (128, 64, 0.2, ROUNDS),
    (128, 128, 0.2, ROUNDS),
    (128, 128, 1.0, ROUNDS),
    (64, 64, 0.2, ROUNDS),
    (128, 64, 0.2, REFERENCE),
    (128, 128, 0.2, REFERENCE),
    (128, 128, 1.0, REFERENCE),
    (64, 64, 0.2, REFERENCE),
    (64, 128, 0.2, REFERENCE),
)
RISE = 16  # of the first element of a key; with that of a query, and the scale, 180 to 256 of a score


@contextmanager
def choice(way: str) -> Iterator[None]:
    """Have the launcher take one way, whatever its own rules say."""
    from adaspa_kernels import hopper_block_sparse

    rules = {name: getattr(hopper_block_sparse, name) for name in SWITCHES[way]}
    vars(hopper_block_sparse).update(SWITCHES[way])
    try:
        yield
    finally:
        vars(hopper_block_sparse).update(rules)


def problem(way: str, head_dim: int, block: int, density: float) -> tuple[Inputs, BlockMask]:
    """Inputs and mask; for *all rows again* rows keep the last two blocks, which score far below the others."""
    x = inputs(TOKENS[head_dim], head_dim)
    kept = mask("uniform", TOKENS[head_dim], block, density)
    if way == "all rows again":
        x.q[..., 0] = 128
        x.k[..., : -2 * block, 0] = RISE
        x.k[..., -2 * block :, 0] = 0
        count = kept.indices.shape[-1]
        kept.indices[..., count - 2] = kept.key_blocks - 2
        kept.indices[..., count - 1] = kept.key_blocks - 1
    return x, kept


def compare(head_dim: int, block: int, density: float, ways: tuple[str, ...], repeats: int) -> str:
    """One line: TFLOP/s of single calls and sustained, by way."""
    calls = {}
    flops = 0.0
    for way in ways:
        x, kept = problem(way, head_dim, block, density)
        calls[way] = sparse_call(x, kept, "hopper")
        flops = 4 * TOKENS[head_dim] ** 2 * head_dim * x.q.shape[1] * float(kept.density().mean())
        with choice(way):
            error = attention_error(x, *calls[way](), kept)
        if not error <= OUTPUT_ERROR:
            raise SystemExit(f"wrong result, {way}: error {error:.1e}")
    single: dict[str, list[float]] = {way: [] for way in ways}
    sustained: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            with choice(way):
                milliseconds, _, unbroken = measure(calls[way], 1)
            single[way].append(milliseconds)
            sustained[way].append(unbroken)
    cells = [
        f"{way} {flops / statistics.median(single[way]) / 1e9:.0f}, "
        f"sustained {flops / statistics.median(sustained[way]) / 1e9:.0f}"
        for way in ways
    ]
    return f"D {head_dim}, {block}x{block}, {density:.0%} kept, TFLOP/s: {'; '.join(cells)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--once", choices=list(SWITCHES), help="one call of the first case, for a profiler")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_choices needs a CUDA device", file=sys.stderr)
        return 1
    if options.once:
        x, kept = problem(options.once, *CASES[0][:3])
        with choice(options.once):
            sparse_call(x, kept, "hopper")()
        torch.cuda.synchronize()
        return 0
    print(f"{versions()}\n{machine(DEVICE).line()}")
    for case in CASES:
        print(compare(*case, options.repeats), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
